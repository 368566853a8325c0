"""The protocols between the core and its stores, dispatchers, callback senders and tracers.

The docstrings are the contract; implementations do not repeat them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from types import TracebackType
from typing import Protocol, Self, TypeVar, cast, runtime_checkable

from asyncjobs.core.job import Delivery, Job, JobId, JobStatus
from asyncjobs.core.labels import Tallies as TallyChanges
from asyncjobs.core.labels import Tally, label_of_batch, label_of_tag
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import ConfigurationError
from asyncjobs.handles import JobHandle as JobHandle  # noqa: PLC0414  # part of the interface
from asyncjobs.handles import JobQueue as JobQueue  # noqa: PLC0414  # as above

T = TypeVar("T")

#: Runs a job in this process and returns at once; calls the function when the slot is free again.
#: It never raises.
Begin = Callable[[Job, Callable[[], None]], None]


class Clock(Protocol):
    """The source of the current time."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A job to write if the stored job still has the expected revision.

    `labels` are those that the job gets by this change, for a store with the filters `tag` and
    `batch`. `tallies` are added to the counters of the labels, by a store that has the power
    `Tallies`.
    """

    job: Job
    expected_revision: int
    labels: tuple[str, ...] = ()
    tallies: TallyChanges | None = None


class _Opened(Protocol):
    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...


class OpenStore(Protocol):
    """The five methods of a store, for code that neither opens nor closes it.

    Every method is all or nothing per job, and durable when it returns, as far as the store's
    documentation promises. A returned job equals the one that was stored, and shares no mutable
    data with it. Many tasks of one event loop may call at once. A driver's error is raised as
    `StoreUnavailable`, with the driver's error as its cause; the call may or may not have had an
    effect, and can be repeated.

    Owners, types, keys and lanes may be any text, and are compared exactly. A stored job that
    cannot be read, because a newer version wrote it for example, does not affect others: `take`
    moves it and leaves it out of its result (see `stores.reading.readable`), `get` and `insert`
    raise `UnreadableJob` for it, and `delete` deletes it.
    """

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        """Add jobs; return, in order, what is stored for each now.

        If a job with the same id or the same (owner, type, idempotency key) is stored, that job is
        returned and nothing is written. Of two such jobs in one call the first wins. Jobs without a
        key never collide. Jobs with the same `due_at` become due in the order of insertion.
        """
        ...

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        """Return the jobs in the order of the ids; None for each that does not exist."""
        ...

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        """Write each job whose stored revision is the expected one; return for each whether it was.

        Comparing and writing are one atomic step: of any number of racing changes that expect the
        same revision, exactly one wins. A refused change affects neither its job nor the other
        changes. Only the state half is written, plus the wide data (`result_json` and
        `errors_json`) that is not None; None leaves the stored value. Changes of one call to one
        job apply in order.
        """
        ...

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        """Pick up to `limit` jobs of these lanes with `due_at <= now`, the longest due first.

        Each job's `due_at` becomes `until`, in the store and in the result; nothing else changes,
        no counter either. Of racing calls only one gets a job for the same due time.
        """
        ...

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        """Delete these jobs with all their data and keys; return for each whether it existed.

        The ids are all different, and unknown ones are no error. Of racing calls with one id, at
        most one returns True for it.
        """
        ...


class Store(_Opened, OpenStore, Protocol):
    """Stores jobs. Opened by `async with`, once per process; the constructor only stores arguments.

    Opening raises `StoreUnavailable`, or `SchemaError` if the data belongs to a newer version or to
    another program. A closed store can be opened again.
    """

    @property
    def powers(self) -> frozenset[type]:
        """The optional protocols below that this store implements, such as `{Listing, StoreClock}`.

        A power that is not in the set is not used, even if the store has its methods.
        """
        ...


@runtime_checkable
class ChangeNotices(Protocol):
    """A store that can report when another process has changed something."""

    def changes(self) -> AsyncIterator[Sequence[JobId]]:
        """Yield ids of jobs that may have changed; an empty batch means any job.

        The first batch comes at once and is empty, for all earlier changes. Delivery is best
        effort: changes may be missed, or reported twice or without reason. Consumers read the jobs
        again, and also read from time to time without a notice.
        """
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects jobs: None leaves a property open, and a job must match all others.

    `members=False` leaves out the jobs that belong to a batch. The text of a status is converted.
    Raises `ValueError` for any other.
    """

    user_id: str | None = None
    type: str | None = None
    status: JobStatus | None = None
    tag: str | None = None
    batch: JobId | None = None
    members: bool = True

    def __post_init__(self) -> None:
        if self.status is not None and type(self.status) is not JobStatus:
            object.__setattr__(self, "status", JobStatus(self.status))

    @property
    def label(self) -> str | None:
        """The label under which a store finds the jobs; None if there is no tag and no batch.

        A selection has a tag or a batch, not both.
        """
        if self.batch is not None:
            return label_of_batch(self.batch, failed=self.status is JobStatus.FAILED)
        return None if self.tag is None else label_of_tag(self.tag, self.user_id)

    def given(self) -> dict[str, object]:
        """Return the properties by which jobs are left out, by name."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value is not field.default}

    def fits(self, job: Job) -> bool:
        """Return whether a job has all of the given properties."""
        return all(_matches(job, name, value) for name, value in self.given().items())


def _matches(job: Job, name: str, value: object) -> bool:
    match name:
        case "tag":
            return value in job.tags
        case "members":
            return job.batch is None
        case _:
            return bool(getattr(job, name) == value)


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list of jobs; `next` is the cursor of the next page, None at the end."""

    jobs: Sequence[Job]
    next: str | None = None


@runtime_checkable
class InlineReads(Protocol):
    """A store whose `get` never waits.

    Each caller then reads separately: merging such reads costs more than the reads.
    """


#: How far `until` of `Listing.count_before` lies after the current time.
HOLD = timedelta(minutes=1)


@runtime_checkable
class Listing(Protocol):
    """A store that can list jobs by their properties, and count those that wait."""

    @property
    def filters(self) -> frozenset[str]:
        """The fields of `Selection` by which `list` selects, such as `{"user_id", "type"}`.

        A selection with any other field is refused before it reaches the store: a store older than
        a field would ignore it, and return too many jobs. There is one exception. Without
        `members`, `list` is called with `members=True`, and the members are removed from its pages,
        which have fewer jobs then.
        """
        ...

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        """Return up to `limit` matching jobs after the cursor `after`, the latest inserted first.

        `limit` is at least 1. Values are compared exactly. If the selection has a `label`, the
        store finds the jobs by an index of labels, see `core.labels.labels_of` and
        `Change.labels`. If the members of batches are left out, a page is fast even if ten thousand
        of them are newer than its jobs. Payloads and results are not read: they
        are empty and None. If jobs are inserted or deleted between two calls, no other job is
        repeated or left out, and no new job appears behind `after`. Unreadable jobs are left out.
        Raises `InvalidQuery` for an `after` that was not the `next` of a page of this store.
        """
        ...

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        """Count the jobs in the job's lane that begin before it; stop at `most`.

        The order is that of `take`: by `due_at`, then by insertion. There are two exceptions. Jobs
        due in the last `HOLD` before `until`, that is after now, are held by the process that will
        begin them, so they come before all waiting jobs. Jobs due after `until` are delayed and do
        not count. For a job that has left the lane, the count is 0.

        This is called for each status request of a waiting job, however many wait, so an index must
        answer it.
        """
        ...

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        """Return for each lane the earliest `due_at` of its jobs, None if it has none.

        This is called every few seconds, however many jobs wait, so an index must answer it.
        """
        ...


@runtime_checkable
class Tallies(Protocol):
    """A store that counts jobs by label, in the same atomic step in which it writes them.

    `insert` adds `core.labels.tallies_of` each job that it adds, but of none that exists already.
    `replace` adds `Change.tallies` of each change that it writes, but of none that it refuses.
    `delete` subtracts nothing, but removes the counters of a label with the last job that has it.
    `take` changes no counter.
    """

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        """Return the counters of each label; a label without jobs has none.

        Counters that are 0 may be left out. Takes the same time whatever the number of jobs.
        """
        ...


@runtime_checkable
class OutputStreams(Protocol):
    """A store that keeps the output of jobs; see `core.output`.

    Streams are deleted with their job. Appending changes neither the job nor its revision, but
    counts as a change of the job for `ChangeNotices`.
    """

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        """Add items to streams; return for each append the new end, or why it was refused.

        In one atomic step, an append is checked and stored as one chunk. These are the reasons to
        refuse it; if there are several, the first one is returned:

        - GONE: there is no such job.
        - ENDED: the job is not processing. After a read of the ended job, nothing is appended.
        - STALE: a higher epoch has begun.
        - KIND: the stream is of another kind.
        - MOVED: the append has a `position`, and the stream does not end there. If a chunk with the
          same epoch and data begins there, this is a repetition: nothing is stored, and the end of
          that chunk is returned.
        - FULL: the job's items or bytes would exceed the limits of the append, or its streams
          `MAX_STREAMS`.

        An append without units makes the stream, but adds no chunk; its `position` is ignored.
        Appends of one call to one stream apply in order; after a refused one, later ones to the
        same stream are refused for the same reason. Of two appends whose calls do not overlap, the
        earlier one comes first.
        """
        ...

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        """Refuse appends of lower epochs to all streams of a job from now on, also to new ones.

        A lower epoch than before changes nothing; neither does an unknown job.
        """
        ...

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        """Return the chunks after each position, in order; None for a stream that does not exist.

        At the end of a stream or beyond it there are no chunks.
        """
        ...

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        """Return the streams of each job, by name."""
        ...


@runtime_checkable
class Transactions(Protocol):
    """A store that can insert jobs in a transaction of the application."""

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        """Insert as `insert` does, in the transaction in progress on the application's connection.

        The jobs exist for others once it commits, and never if it does not. After the commit the
        store notifies all processes, including this one. It neither ends the transaction nor
        changes its settings; after an error the transaction is as before the call, unless the
        connection is lost. If another open transaction has inserted a job with the same idempotency
        key, the call waits for that transaction. Raises `UnusableConnection` for a connection to
        another database, without a transaction, or of an unknown type.
        """
        ...


@runtime_checkable
class StoreClock(Protocol):
    """A store with its own clock, the same for all processes that use it."""

    async def now(self) -> datetime:
        """Return the store's current time, aware, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One aspect of a store's set-up; `advice` is what to do about it, empty if all is well."""

    subject: str
    found: str
    advice: str = ""


@runtime_checkable
class Inspection(Protocol):
    """A store that can check its own set-up."""

    async def inspect(self) -> Sequence[Finding]:
        """Inspect schema, server and durability; change nothing."""
        ...


@runtime_checkable
class MigrationScript(Protocol):
    """A store whose tables can be made by a script instead of by opening it."""

    def migration_sql(self, *, since: int = 0) -> str:
        """Return the script that updates version `since` (0: no tables); uses no connection.

        Raises `ConfigurationError` for an unknown version.
        """
        ...


def power_of(store: object, power: type[T]) -> T | None:
    """Return the store as an implementation of `power`, or None if it does not declare it."""
    return cast("T", store) if power in getattr(store, "powers", ()) else None


def check_powers(store: Store) -> None:
    """Raise `ConfigurationError` if the store declares a power but lacks its methods."""
    for power in store.powers:
        if not isinstance(store, power):
            raise ConfigurationError(
                f"{type(store).__name__} declares the power {power.__name__}, "
                "but does not have all of its methods."
            )


class Dispatcher(_Opened, Protocol):
    """Brings waiting jobs to the workers that run them; opened and closed by the queue.

    Correctness does not depend on it: it may deliver late, twice or never. Starting a job is a
    compare-and-swap, and a job that was never started comes up again.
    """

    @property
    def delivery(self) -> Delivery:
        """PULL if our workers take jobs from their lanes, PUSH if an engine delivers them."""
        ...

    def reserve(self, most: int, /) -> int:
        """Reserve places for up to `most` jobs about to be stored; return how many were reserved.

        Jobs with a place are dispatched here at once, and other processes leave them alone for a
        while. Any process may take the rest, which is not dispatched.
        """
        ...

    def release(self, places: int, /) -> None:
        """Return places: their jobs are dispatched next, or were not stored."""
        ...

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        """Dispatch stored jobs that are due. An error is logged; the jobs are sent again later.

        `NotDispatched` names the jobs that the engine refused. After any other error all of these
        jobs count as refused.
        """
        ...


@runtime_checkable
class ServesQueues(Protocol):
    """A dispatcher whose engine has named queues, each of which needs a worker."""

    def queue_for(self, job_type: str, queue: str, /) -> str | None:
        """Return the engine's queue for a job type and its `Policy.queue`; None for the default.

        A worker started without queues serves the default one.
        """
        ...

    def how_to_serve(self, job_type: str, queue: str, /) -> str:
        """Return how to start workers for such jobs, as a sentence for logs and `check`."""
        ...

    def served_queues(self) -> frozenset[str] | None:
        """Return the queues that running workers serve; None if the engine cannot report them.

        Blocks for seconds at most. The default queue's name is included if it is served.
        """
        ...


@runtime_checkable
class Embedded(Protocol):
    """A dispatcher that runs jobs in this process, and so needs a worker in it."""

    @property
    def room(self) -> int:
        """How many more jobs `offer` would accept now."""
        ...

    def open(self, begin: Begin) -> None:
        """Run jobs by `begin` from now on, until `close`."""
        ...

    def claim(self, job_id: JobId, /) -> Callable[[], None] | None:
        """Take a slot for a job that begins now, without `begin`; return a function to free it.

        Returns None if every slot is in use.
        """
        ...

    def offer(self, job: Job) -> bool:
        """Run the job as soon as a slot is free; return False if there is no room."""
        ...

    async def wait_for_room(self) -> None:
        """Return when `room` is not zero."""
        ...

    def close(self) -> Sequence[Job]:
        """Stop accepting and beginning jobs; return the accepted jobs that have not begun."""
        ...

    async def wait_until_idle(self) -> None:
        """Return when no job is running."""
        ...


@dataclass(frozen=True, slots=True)
class CallbackResult:
    """The result of one call to a callback URL: without an `error` it was delivered.

    After an error the next call is made after `again`; None means that no more calls are made.
    """

    error: str | None = None
    again: timedelta | None = None


class CallbackSender(Protocol):
    """Sends the ends of jobs to the callback URLs of the jobs."""

    @property
    def concurrency(self) -> int:
        """How many calls one process may make at the same time."""
        ...

    @property
    def host_concurrency(self) -> int:
        """How many of them may go to one host, so that a silent host leaves room for others."""
        ...

    @property
    def timeout(self) -> timedelta:
        """The longest duration of one call. If its process dies, another calls within that time."""
        ...

    def check(self, url: str, /) -> None:
        """Raise `InvalidCallback` for a URL that must not be called."""
        ...

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        """Make one call for a job that has ended; `job.callback.calls` calls were made before.

        Checks the URL again, since it may have been accepted under other rules. May be called twice
        for the same end: both messages have the same id, so that receivers can deduplicate.
        """
        ...


class Spans(Protocol):
    """Opens the spans of a tracer; both methods yield the `traceparent` to pass on."""

    def submitting(
        self, kind: str, queue: str, traceparent: str | None, /
    ) -> AbstractContextManager[str | None]:
        """Enclose the submission of a job to a queue; the job stores the yielded value."""
        ...

    def attempting(
        self, job: Job, stop_reason: Callable[[], str | None], /
    ) -> AbstractContextManager[str | None]:
        """Enclose the call of a handler; the handler's exceptions pass through.

        `stop_reason` returns why the runtime stopped the handler (`timeout`, `cancel`, ...), or
        None if it did not.
        """
        ...


class Traced(Protocol):
    """Holds the current tracer, which may be replaced while the queue is open."""

    @property
    def spans(self) -> Spans:
        """The current tracer."""
        ...
