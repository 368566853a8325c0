"""The seams: what the core asks of a store, of a dispatcher and of a queue.

The docstrings are the contract; implementations do not repeat them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, assert_never, cast, runtime_checkable

from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Delivery, Job, JobId, JobStatus
from asyncjobs.errors import ConfigurationError, JobUnsuccessful
from asyncjobs.settings import Seconds

R = TypeVar("R")
T = TypeVar("T")

#: Runs a job in this process and returns at once; calls the function when the slot is free again.
#: It never raises.
Begin = Callable[[Job, Callable[[], None]], None]


class Clock(Protocol):
    """Where the present comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A job to be written if the stored one still has the expected revision."""

    job: Job
    expected_revision: int


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
    """The five methods of a store, for those who neither open nor close it.

    Every method is all or nothing per job, and durable (as far as the store's documentation
    promises) when it returns. A job that comes back equals the one that went in, and shares
    nothing with it that could change. Calls may come from many tasks of one event loop at once.
    A driver's error comes out as `StoreUnavailable`, with the driver's error as its cause; a call
    that raised it may or may not have happened, and can be repeated.

    Owners, types, keys and lanes are any text, and are compared exactly. A stored job that cannot
    be read, as a newer version may have written it, harms no other: `take` moves it and leaves it
    out of what it returns (see `stores.reading.readable`), `get` and `insert` raise `UnreadableJob`
    for it, and `delete` deletes it.
    """

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        """Add jobs; return, in order, what is stored for each now.

        Where a job of the same id is stored, or one of the same (owner, type, idempotency key),
        that one is returned and nothing is written. Of two such jobs in one call the first wins.
        Jobs without a key never collide. Jobs inserted in order are due in order, where their
        `due_at` is the same.
        """
        ...

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        """Return the jobs in the order of the ids; None for each that does not exist."""
        ...

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        """Write each job whose stored revision is the expected one; say for each if it was.

        Comparing and writing are one step: of any number of racing changes that expect the same
        revision, one wins. A refused change leaves the job untouched and does not touch the
        others. Only the state half is written, and of its wide data (`result_json` and
        `errors_json`) what is not None: None leaves what is stored. Changes of one call to one job
        apply in order.
        """
        ...

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        """Pick up to `limit` jobs of these lanes with `due_at <= now`, the longest due first.

        Each is moved to `due_at = until` and returned so; nothing else of it changes, no counter
        either. Of racing takers only one gets a job for the same due moment.
        """
        ...

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        """Forget these jobs with all their data and keys; say for each if it was there.

        The ids are all different, and unknown ones are no error. Of racing calls with one id, at
        most one answers True.
        """
        ...


class Store(_Opened, OpenStore, Protocol):
    """Keeps jobs. Opened by `async with`, once per process; the constructor only keeps arguments.

    Opening raises `StoreUnavailable`, or `SchemaError` where the data is of a newer version or of
    another program. It can be opened again after it was closed.
    """

    @property
    def powers(self) -> frozenset[type]:
        """The optional protocols below that this store fulfils, such as `{Listing, StoreClock}`.

        A power that is not in the set is not used, even if the store has its methods.
        """
        ...


@runtime_checkable
class ChangeNotices(Protocol):
    """A store that can tell when something was changed by another process."""

    def changes(self) -> AsyncIterator[Sequence[JobId]]:
        """Yield ids of jobs that may have changed; an empty batch means that any job may have.

        The first batch comes at once and is empty: jobs may have changed before. Best effort: some
        changes may never be yielded, others twice or without reason. Consumers read again, and read
        now and then anyway.
        """
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs are meant: None leaves a property open, and a job must fit all others."""

    user_id: str | None = None
    type: str | None = None
    status: JobStatus | None = None

    def given(self) -> dict[str, object]:
        """Return the properties that are not None, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    def fits(self, job: Job) -> bool:
        """Return whether a job has all of the properties that are given."""
        return all(getattr(job, name) == value for name, value in self.given().items())


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs of a list; `next` is where the list goes on, None at its end."""

    jobs: Sequence[Job]
    next: str | None = None


@runtime_checkable
class InlineReads(Protocol):
    """A store whose `get` waits for nothing.

    Each caller then reads for itself: merging such reads costs more than they do.
    """


#: How far `until` of `Listing.count_before` lies after the present moment.
HOLD = timedelta(minutes=1)


@runtime_checkable
class Listing(Protocol):
    """A store that can find jobs by what they are, and by how they wait."""

    @property
    def filters(self) -> frozenset[str]:
        """The fields of `Selection` by which `list` selects, such as `{"user_id", "type"}`.

        A selection with any other field is refused and never reaches the store: a store that is
        older than a field would ignore it, and so list too much.
        """
        ...

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        """Return up to `limit` jobs that fit, the latest inserted first, from where `after` says.

        `limit` is at least 1. Values are compared exactly. Neither payload nor result is read: they
        are empty and None. Jobs inserted or deleted between two calls make no other job appear
        twice or be left out, and no new job appears behind `after`. A job that cannot be read is
        left out. Raises `InvalidQuery` for an `after` that no page of this store had as its `next`.
        """
        ...

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        """Count the jobs in the job's lane that are to begin before it; stop at `most`.

        The order is that of `take`: by `due_at`, then by insertion. But what is due in the last
        `HOLD` before `until`, so after the present moment, is held by the process that will begin
        it: it comes before all that is due by now. Those due after `until` do not count: they are
        delayed. A job that is not in that lane any more has none before it.

        It is called for each status of a waiting job, whatever waits: an index must answer it.
        """
        ...

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        """Return for each lane the earliest `due_at` of its jobs, None if it has none.

        It is called every few seconds, whatever waits: an index must answer it.
        """
        ...


@runtime_checkable
class Transactions(Protocol):
    """A store whose jobs may be inserted by a transaction of the application's own."""

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        """Insert as `insert` does, by the transaction under way on the application's connection.

        The jobs exist for others when it commits, and never did where it does not; the store tells
        others, and this process, when it has. Neither is it ended nor are its settings changed,
        and after an error it is as before the call, unless the connection is lost. Where another
        transaction under way has inserted a job of the same idempotency key, the end of that one
        is awaited. Raises `UnusableConnection` for a connection to somewhere else, without a
        transaction, or of a kind that the store does not know.
        """
        ...


@runtime_checkable
class StoreClock(Protocol):
    """A store that has a clock of its own, the same for all processes that use it."""

    async def now(self) -> datetime:
        """Return the store's present moment, aware, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about how a store is set up; `advice` says what to do, empty where all is well."""

    subject: str
    found: str
    advice: str = ""


@runtime_checkable
class Inspection(Protocol):
    """A store that can tell whether it is set up as jobs need it."""

    async def inspect(self) -> Sequence[Finding]:
        """Look at schema, server and durability; change nothing."""
        ...


@runtime_checkable
class MigrationScript(Protocol):
    """A store whose tables a person can make by a script instead of by opening it."""

    def migration_sql(self, *, since: int = 0) -> str:
        """Return what brings version `since` up to date, 0 being none at all; asks nobody.

        Raises `ConfigurationError` for a version that is not known.
        """
        ...


def power_of(store: object, power: type[T]) -> T | None:
    """Return the store as one that has a power, or None if it does not declare it."""
    return cast("T", store) if power in getattr(store, "powers", ()) else None


def check_powers(store: Store) -> None:
    """Raise `ConfigurationError` if the store declares a power whose methods it lacks."""
    for power in store.powers:
        if not isinstance(store, power):
            raise ConfigurationError(
                f"{type(store).__name__} declares the power {power.__name__}, "
                "but does not have all of its methods."
            )


class Dispatcher(_Opened, Protocol):
    """Brings jobs that wait to what runs them; opened and closed by the queue.

    Correctness does not rest on it: it may deliver late, twice or never. The start of a job is a
    compare-and-swap, and what was never started comes up again.
    """

    @property
    def delivery(self) -> Delivery:
        """PULL where our workers take jobs from their lanes, PUSH where an engine is told."""
        ...

    def reserve(self, most: int, /) -> int:
        """Keep places for up to so many jobs that are about to be stored; return for how many.

        These jobs are dispatched here at once, and others leave them alone for a while. The rest
        may be taken by anyone, and is not dispatched.
        """
        ...

    def release(self, places: int, /) -> None:
        """Give places back: the jobs are dispatched next, or were not stored."""
        ...

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        """Hand on jobs that are stored and due. An error is logged; the jobs are sent again later.

        `NotDispatched` names the jobs that the engine refused. After any other error all of these
        jobs count as refused.
        """
        ...


@runtime_checkable
class ServesQueues(Protocol):
    """A dispatcher whose engine has queues by name, each of which some worker must serve."""

    def queue_for(self, job_type: str, queue: str, /) -> str | None:
        """Return the engine's queue for jobs of a type and its `Policy.queue`; None: its default.

        A worker that is given no queues serves the default.
        """
        ...

    def how_to_serve(self, job_type: str, queue: str, /) -> str:
        """Return how to start workers that get such jobs, as a sentence for logs and `check`."""
        ...

    def served_queues(self) -> frozenset[str] | None:
        """Return the queues that running workers serve; None if the engine has no answer.

        Blocks for seconds at most. The name of the default queue is among them if it is served.
        """
        ...


@runtime_checkable
class Embedded(Protocol):
    """A dispatcher that runs jobs in this very process, and so wants a worker beside it."""

    @property
    def room(self) -> int:
        """How many more jobs `offer` would accept now."""
        ...

    def open(self, begin: Begin) -> None:
        """Run jobs by `begin` from now on, until `close`."""
        ...

    def claim(self, job_id: JobId, /) -> Callable[[], None] | None:
        """Take a slot for a job that begins now, without `begin`; return what frees it.

        None if every slot is in use.
        """
        ...

    def offer(self, job: Job) -> bool:
        """Run the job as soon as there is a slot; False where there is no room."""
        ...

    async def wait_for_room(self) -> None:
        """Return when `room` is not zero."""
        ...

    def close(self) -> Sequence[Job]:
        """Accept and begin nothing more; return the jobs that were accepted but not begun."""
        ...

    async def wait_until_idle(self) -> None:
        """Return when no job runs any more."""
        ...


@dataclass(frozen=True, slots=True)
class CallbackResult:
    """The result of one call to a callback URL: without an `error` it was delivered.

    After an error the next call is made after `again`; None gives the callback up.
    """

    error: str | None = None
    again: timedelta | None = None


class CallbackSender(Protocol):
    """Sends the ends of jobs to the callback URLs that the jobs name."""

    @property
    def concurrency(self) -> int:
        """How many calls one process may make at the same time."""
        ...

    @property
    def host_concurrency(self) -> int:
        """How many of them may be to the same host, so that a silent one leaves room for others."""
        ...

    @property
    def timeout(self) -> timedelta:
        """The longest that one call takes. If its process is killed, another calls within it."""
        ...

    def check(self, url: str, /) -> None:
        """Raise `InvalidCallback` for a URL that must not be called."""
        ...

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        """Make one call for a job that has ended; `job.callback.calls` went before it.

        Checks the URL again, since it may have been accepted under other rules. May be called twice
        for the same end: the message carries the same id both times, so that receivers can
        deduplicate.
        """
        ...


class Spans(Protocol):
    """Opens the spans of a tracer; both methods yield the `traceparent` to pass on."""

    def submitting(
        self, kind: str, queue: str, traceparent: str | None, /
    ) -> AbstractContextManager[str | None]:
        """Enclose the submission of a job of a type to a queue; the job keeps what is yielded."""
        ...

    def attempting(
        self, job: Job, stop_reason: Callable[[], str | None], /
    ) -> AbstractContextManager[str | None]:
        """Enclose the call of a handler, also in time; exceptions of the handler pass through.

        `stop_reason` returns why the runtime stopped the handler (`timeout`, `cancel`, ...), or
        None if it did not.
        """
        ...


class Traced(Protocol):
    """Holds the tracer in use; it may be replaced while the queue is open."""

    @property
    def spans(self) -> Spans:
        """The present tracer."""
        ...


class JobHandle(Generic[R]):
    """One job of a queue: what `enqueue` returns. Iterate over it for the job's states.

    `job` is the job as it stood when it was accepted. The methods read the store each time.
    """

    __slots__ = ("_kind", "_queue", "job")

    def __init__(self, queue: JobQueue, job: Job, kind: JobType[Any, R] | None = None) -> None:
        self.job = job
        self._queue = queue
        self._kind = kind

    def __repr__(self) -> str:
        return f"<JobHandle {self.job.id} ({self.job.type})>"

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self.job.id

    async def wait(self, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it has ended, or as it stands after `timeout`.

        Raises `UnknownJob` if its retention has ended.
        """
        return await self._queue.wait(self.job.id, timeout=timeout)

    async def result(self, *, timeout: Seconds | None = None) -> R:
        """Wait for the end of the job and return its result, as the type that the handler returns.

        Raises `JobUnsuccessful` if the job failed or was cancelled, `TimeoutError` if it has not
        ended after `timeout`, `InvalidResult` if the result no longer fits the type, and
        `UnknownJob` if the job's retention has ended. The job goes on whatever this raises.
        """
        job = await self.wait(timeout=timeout)
        match job.status:
            case JobStatus.PENDING | JobStatus.PROCESSING:
                raise TimeoutError(f"Job {job.id} ({job.type}) is {job.status} after {timeout} s.")
            case JobStatus.FAILED | JobStatus.CANCELLED:
                raise JobUnsuccessful(job)
            case JobStatus.COMPLETED if self._kind is not None:
                return self._kind.result_of(job)
            case JobStatus.COMPLETED:
                return cast("R", job.result)
            case _:
                assert_never(job.status)

    async def cancel(self) -> Job:
        """Cancel the job if it waits, ask it to stop if it runs; see `JobQueue.cancel`."""
        return await self._queue.cancel(self.job.id)

    def __aiter__(self) -> AsyncIterator[Job]:
        """Yield the job as it stands, then at each visible change; see `JobQueue.subscribe`."""
        return self._queue.subscribe(self.job.id)


class JobQueue(Protocol):
    """What an application sees: the verbs of the pattern."""

    async def enqueue(self, handler: Any, payload: Any, /) -> JobHandle[Any]:
        """Store a job durably, then dispatch it.

        Raises `InvalidPayload`, `PayloadTooLarge`, `UnknownType`, `IdempotencyConflict` or
        `StoreUnavailable`; in each case no job was made by this call, except that after
        `StoreUnavailable` one may exist.
        """
        ...

    async def get(self, job_id: JobId, /) -> Job | None:
        """Return the job as it stands; None for an id that never was, or is forgotten."""
        ...

    async def update_progress(
        self, job_id: JobId, percent: int, /, message: str | None = None
    ) -> Job:
        """Report for work done outside our runner; the first report starts the job.

        Raises `UnknownJob`, `IllegalMove`, or `LostLease` where one of our workers holds the job.
        """
        ...

    async def complete(self, job_id: JobId, result: Any = None, /) -> Job:
        """Record the result of work done outside our runner; raises as `update_progress`.

        A result that does not fit the type raises `InvalidResult` and changes nothing.
        """
        ...

    async def fail(self, job_id: JobId, message: str, /, *, code: str = "job_failed") -> Job:
        """Record the failure of work done outside our runner; raises as `update_progress`."""
        ...

    async def cancel(self, job_id: JobId, /, *, version: int | None = None) -> Job:
        """Cancel a waiting job; ask a running one to stop; leave a finished one as it is.

        May be repeated. With a `version`, a job at another version is left alone: raises
        `PreconditionFailed`. The comparison and the write are one atomic step. Raises `UnknownJob`.
        """
        ...

    def subscribe(self, job_id: JobId, /) -> AsyncIterator[Job]:
        """Yield the job as it stands, then at each visible change; end after its terminal state.

        A slow consumer misses states in between, never the newest. Raises `UnknownJob`; ends
        without a terminal state where the job is deleted meanwhile, or the queue closes.
        """
        ...

    async def wait(self, job_id: JobId, /, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it is terminal, or as it stands after `timeout`.

        Raises `UnknownJob`.
        """
        ...
