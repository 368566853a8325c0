"""The only way by which this process reads and writes jobs.

It announces each write, reports each transition, and never returns a job whose deadline or lease
has passed unnoticed: readers repair what they read. The store below it may merge concurrent calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.descriptions import tag_to_find
from asyncjobs.core.events import Event, Transition, event_of
from asyncjobs.core.job import SCHEDULE_TYPE, Job, JobId, JobStatus, suspects_lane
from asyncjobs.core.labels import Tally, new_labels, tally_changes
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import (
    ConfigurationError,
    InvalidQuery,
    StorageUnavailable,
    UnknownJob,
    UnusableConnection,
)
from asyncjobs.files.contents import delete_files_of
from asyncjobs.files.storage import FileStorage
from asyncjobs.protocols import (
    HOLD,
    Change,
    Clock,
    InlineReads,
    Listing,
    OpenStore,
    OutputStreams,
    Page,
    Selection,
    Store,
    Tallies,
    Transactions,
    power_of,
)
from asyncjobs.records.change_feed import ChangeFeed, Watch
from asyncjobs.records.group_commit import NO_STREAMS, Bound
from asyncjobs.records.logging import is_logged, log, log_fields, log_transition

_MAX_POSITION = 1000
_RECORDS_PER_PAGE = 500

# The most output that one call deletes, in bytes, unless one job has more.
_MAX_DELETED_BYTES = 16 * 1024 * 1024

_NONE_STARTED: Mapping[JobId, Job] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class JobWrite:
    """A move to be written: the job before it and after it."""

    before: Job
    job: Job

    def change(self) -> Change:
        """Return what the store must write, without wide data that it already has."""
        before, job = self.before, self.job
        # Compared by identity: moves share data that they do not change, and it may be megabytes.
        if before.errors_json is not None and before.errors_json is job.errors_json:
            job = job.changed(errors_json=None)
        if before.result_json is not None and before.result_json is job.result_json:
            job = job.changed(result_json=None)
        if before.batch is None:  # nearly always
            return Change(job, before.revision)
        labels, tallies = new_labels(before, self.job), tally_changes(before, self.job)
        return Change(job, before.revision, labels, tallies)


class Audience(Protocol):
    """Receives transitions."""

    def listens(self, event: Event) -> bool:
        """Return whether `notify` would do anything for an event of that kind."""
        ...

    def notify(self, transition: Transition) -> None:
        """Handle a transition without waiting; never raises."""
        ...


class _Log:
    """Logs transitions, if there is no other audience."""

    def listens(self, event: Event) -> bool:
        return is_logged(event)

    def notify(self, transition: Transition) -> None:
        log_transition(transition)


LOG_ALONE = _Log()


async def delete_jobs(store: OpenStore, ids: Sequence[JobId]) -> list[bool]:
    """Delete jobs; return for each whether it existed.

    Deleting output takes time, in which a store may hold a lock: much of it takes several calls.
    """
    streams = power_of(store, OutputStreams)
    outputs = [()] * len(ids) if streams is None else await streams.outputs(ids)
    deleted: list[bool] = []
    portion: list[JobId] = []
    size = 0
    for job_id, output in zip(ids, outputs, strict=True):
        more = sum(stream.bytes for stream in output)
        if portion and size + more > _MAX_DELETED_BYTES:
            deleted += await store.delete(portion)
            portion, size = [], 0
        portion.append(job_id)
        size += more
    if portion:
        deleted += await store.delete(portion)
    return deleted


def _ignore(_appends: Sequence[Append], _answers: Sequence[Appended]) -> None: ...


class Repository:
    """Reads and writes jobs by the rules of `lifecycle`."""

    def __init__(
        self,
        store: OpenStore,
        feed: ChangeFeed,
        clock: Clock,
        *,
        base: Store | None = None,
        limit: timedelta = timedelta(seconds=10),
        tasks: TaskGroup | None = None,
        audience: Audience = LOG_ALONE,
    ) -> None:
        """Keep the store, which may merge calls, and the `base` below it.

        Optional powers are those of the base, and leases are renewed there; each such call has the
        `limit` and runs in a task of `tasks` (see `Bound`). The `audience` receives each transition
        that this process has written.
        """
        self._direct: OpenStore = base or store
        self._bound = Bound(limit.total_seconds(), tasks)
        # Reads that never wait need no task: a task costs more than the read.
        inline = power_of(base, InlineReads) is not None
        self._bound_reads = Bound(limit.total_seconds(), None if inline else tasks)
        self._store = store
        #: The store, for the records of schedules. They are not jobs of users: the other methods
        #: do not return them, and what happens to them is not an event.
        self.records = store
        #: The contents of the jobs' files, set by the runtime; None if the queue stores none.
        self.files: FileStorage | None = None
        #: Called with appends and their answers; set by the runtime.
        self.on_append: Callable[[Sequence[Append], Sequence[Appended]], None] = _ignore
        self._feed = feed
        self._audience = audience
        self._clock = clock
        self._listing = power_of(base, Listing)
        self._transactions = power_of(base, Transactions)
        self._tallies = power_of(base, Tallies)
        # The store itself, since it merges appends.
        self._streams = power_of(store, OutputStreams) or NO_STREAMS

    def now(self) -> datetime:
        """Return the time that moves use."""
        return self._clock.now()

    async def insert(
        self, jobs: Sequence[Job], started: Mapping[JobId, Job] = _NONE_STARTED
    ) -> Sequence[Job]:
        """Add jobs; if an id or idempotency key is taken, return the stored job instead.

        Jobs in `started` begin in this process and are stored as the started job: one write, but
        still two events.
        """
        new = [started.get(job.id, job) for job in jobs] if started else jobs
        stored: list[Job] = []
        for job, found in zip(jobs, await self._store.insert(new), strict=True):
            if found.id == job.id:
                if job.id in started:
                    self.acknowledge_insert(job, found)
                else:
                    self._written(None, found)
                stored.append(found)
                continue
            # A repeated insert stores the pending job: its start in this process is given up.
            kept = await self._replayed(found, partial(self._store.insert, [job]))
            if kept.id == job.id:
                self._written(None, kept)
            stored.append(kept)
        return stored

    async def insert_within(self, connection: object, jobs: Sequence[Job]) -> Sequence[Job]:
        """Add jobs as `Transactions.insert_within` does; raise `UnusableConnection`."""
        if self._transactions is None:
            raise UnusableConnection("the queue's store only supports its own transactions")
        insert = partial(self._transactions.insert_within, connection)
        stored: list[Job] = []
        for job, found in zip(jobs, await insert(jobs), strict=True):
            kept = found
            if found.id != job.id:
                kept = await self._replayed(found, partial(insert, [job]))
            if kept.id == job.id:
                # Not announced: before the commit no other process can see the job.
                self._tell_of(None, kept)
            stored.append(kept)
        return stored

    async def get(self, ids: Sequence[JobId]) -> Sequence[Job | None]:
        """Read jobs as they must stand now; None for those that do not exist."""
        found = list(await self._store.get(ids))
        now = self._clock.now()
        for index, job in enumerate(found):
            # Even if it is not due: the worker that took it may have died before the move.
            if job is not None and _is_broken(job, now):
                found[index] = await self._repaired(job, now)
        return found

    async def find(self, job_id: JobId) -> Job:
        """Return one job; raise `UnknownJob` if it does not exist."""
        [job] = await self.get([job_id])
        if job is None:
            raise UnknownJob(job_id)
        return job

    async def list(self, which: Selection, *, limit: int, after: str | None = None) -> Page:
        """List jobs as they must stand now; raise `ConfigurationError` if the store cannot.

        The page is filtered again: a faulty store must not show the jobs of other owners, and a
        store without the filter `members` does not leave them out.
        """
        if self._listing is None:
            raise ConfigurationError("The store cannot list jobs.")
        listing = self._listing
        asked = which if "members" in listing.filters else replace(which, members=True)
        if unknown := asked.given().keys() - listing.filters:
            names = ", ".join(sorted(unknown))
            raise ConfigurationError(f"The store cannot list jobs by these fields: {names}.")
        if limit < 1:
            raise InvalidQuery("limit", f"it must be at least 1, got {limit}")
        if which.tag is not None:
            tag_to_find(which.tag)
        if which.tag is not None and which.batch is not None:
            raise InvalidQuery("tag", "jobs are listed by a tag or by a batch, not by both")
        if which.batch is not None and not which.members:
            raise InvalidQuery("members", "all jobs of a batch are its members")
        page = await self._bound.wait_for(lambda: listing.list(asked, limit=limit, after=after))
        now = self._clock.now()
        jobs = [await self._listed(job, now) for job in page.jobs if job.schedule is None]
        return Page([job for job in jobs if job and which.fits(job)], page.next)

    async def list_records(self) -> Sequence[Job] | None:
        """Return the records of all schedules; None if the store cannot list jobs by type."""
        listing = self._listing
        if listing is None or "type" not in listing.filters:
            return None
        which = Selection(type=SCHEDULE_TYPE)
        records: list[Job] = []
        after: str | None = None
        while True:
            read = partial(listing.list, which, limit=_RECORDS_PER_PAGE, after=after)
            page = await self._bound.wait_for(read)
            records += [job for job in page.jobs if job.schedule is not None]
            if (after := page.next) is None:
                return records

    @property
    def counts(self) -> bool:
        """Whether the store counts jobs by label."""
        return self._tallies is not None

    async def tally(self, labels: Sequence[str]) -> Sequence[Tally]:
        """Return the counters of each label; raise `ConfigurationError` if the store has none."""
        tallies = self._tallies
        if tallies is None:
            raise ConfigurationError("The store does not count jobs, which batches need.")
        return await self._bound_reads.wait_for(lambda: tallies.tally(labels))

    @property
    def has_output(self) -> bool:
        """Whether the store keeps the output of jobs; else the next four methods raise.

        They raise `ConfigurationError`.
        """
        return self._streams is not NO_STREAMS

    async def append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        """Add items to streams as `OutputStreams.append` does, and announce what was added."""
        answers = await self._streams.append(appends)
        self.on_append(appends, answers)
        return answers

    async def begin_epoch(self, job_id: JobId, epoch: int) -> None:
        """Refuse appends of lower epochs from now on."""
        await self._streams.begin_epoch(job_id, epoch)

    async def read_output(self, reads: Sequence[ReadFrom]) -> Sequence[OutputPart | None]:
        """Return the chunks after each position; None for a stream that does not exist."""
        return await self._streams.read_output(reads)

    async def outputs(self, ids: Sequence[JobId]) -> Sequence[Sequence[StreamInfo]]:
        """Return the streams of each job, by name."""
        return await self._streams.outputs(ids)

    async def position(self, job: Job) -> int | None:
        """Return a job's position in its queue: 1 is next; None if it is not known."""
        now = self._clock.now()
        waits = job.status is JobStatus.PENDING and job.lane == job.queue and job.run_at <= now
        listing = self._listing
        if listing is None or not waits:
            return None
        before = await self._bound_reads.wait_for(
            lambda: listing.count_before(job, until=now + HOLD, most=_MAX_POSITION),
            shared_as=job.id,  # many clients may poll one job
        )
        return before + 1 if before < _MAX_POSITION else None

    async def oldest(self, queues: Sequence[str]) -> Mapping[str, timedelta]:
        """Return how long the first job of each queue has been due; {} if the store cannot list."""
        listing = self._listing
        if listing is None or not queues:
            return {}
        now = self._clock.now()
        # Suspects belong to their queue, but wait in a lane of their own.
        lanes = [*queues, *map(suspects_lane, queues)]
        moments = await self._bound.wait_for(lambda: listing.first_due(lanes))
        waited = [timedelta(0) if at is None else max(timedelta(0), now - at) for at in moments]
        pairs = zip(waited[: len(queues)], waited[len(queues) :], strict=True)
        return {queue: max(pair) for queue, pair in zip(queues, pairs, strict=True)}

    async def replace(self, steps: Sequence[JobWrite]) -> Sequence[bool]:
        """Write moves; return False for each job that another write changed first, else True."""
        if not steps:
            return ()
        written = await self._store.replace([step.change() for step in steps])
        for step, done in zip(steps, written, strict=True):
            if done:
                self._written(step.before, step.job)
        return written

    async def renew(self, steps: Sequence[JobWrite]) -> Sequence[bool]:
        """Write like `replace`, but bypass the writes that wait there: leases must not lapse."""
        changes = [step.change() for step in steps]
        written = await self._bound.wait_for(lambda: self._direct.replace(changes))
        for step, done in zip(steps, written, strict=True):
            if done:
                self._written(step.before, step.job)
        return written

    def acknowledge_insert(self, job: Job, started: Job) -> None:
        """Announce a job that this process stored as started although the answer was lost."""
        self._tell_of(None, job)
        self._written(job, started)

    def acknowledge(self, step: JobWrite) -> None:
        """Announce a write of this process whose answer was lost."""
        self._written(step.before, step.job)

    async def advance(self, job: Job, move: Callable[[Job, datetime], Job]) -> Job:
        """Make a move on the newest state of a job and write it; raise what the move raises."""
        # This ends: a write is refused only if another one succeeded.
        while True:
            # Made again for each state: the move may not be legal any more, and then raises.
            moved = move(job, self._clock.now())
            [done] = await self.replace([JobWrite(job, moved)])
            if done:
                return moved
            job = await self.find(job.id)

    async def take(
        self,
        lanes: Sequence[str],
        *,
        until: datetime,
        limit: int,
        overdue_by: timedelta = timedelta(0),
    ) -> Sequence[Job]:
        """Take jobs that have been due for at least `overdue_by`, like `OpenStore.take`."""
        now = self._clock.now() - overdue_by
        return await self._store.take(lanes, now=now, until=until, limit=limit)

    async def forget(self, jobs: Sequence[Job]) -> None:
        """Delete jobs, end their watches, and report an event for each that still existed.

        A job's files are deleted first: without the job, no code would find them. If that fails,
        the job is left for a later call.
        """
        if any(job.files for job in jobs):
            jobs = await self._without_files(jobs)
        deleted = await delete_jobs(self._store, [job.id for job in jobs])
        for job, was_there in zip(jobs, deleted, strict=True):
            self._feed.forget(job.id)
            # Several processes may delete the same job; only one of them reports it.
            if was_there:
                self._audience.notify(Transition(Event.FORGOTTEN, job, job, self._clock.now()))

    def watch(self, job_id: JobId) -> Watch:
        """Return a watch of one job."""
        return self._feed.watch(job_id, self.get)

    async def _listed(self, job: Job, now: datetime) -> Job | None:
        """Return a listed job, repaired if it is overdue; None if it is forgettable."""
        if lifecycle.overdue(job, now) is None:
            return None if lifecycle.forgettable(job, now) else job
        # Lists return narrow jobs, but the repair announces its job to watchers: read it whole.
        [whole] = await self.get([job.id])
        return whole and whole.narrow()

    async def _replayed(
        self, found: Job, insert_again: Callable[[], Awaitable[Sequence[Job]]]
    ) -> Job:
        """Return the job that holds the key now; a forgettable one gives the key to the new job."""
        repaired = await self._repaired(found, self._clock.now())
        if repaired is not None:
            return repaired
        # Readers treat it as gone, so it must not keep its key until maintenance deletes it.
        await self.forget([found])
        [stored] = await insert_again()
        if stored.id == found.id and self.files is not None:
            raise StorageUnavailable(repr(self.files), "files of an old job cannot be deleted")
        return stored

    async def _without_files(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Delete the files of jobs; return the jobs that have none now."""
        kept: set[JobId] = set()

        async def delete(job: Job) -> None:
            problem: object = "this process has no file storage"
            if self.files is not None:
                try:
                    await delete_files_of(self.files, job.id)
                except StorageUnavailable as error:
                    problem = error
                else:
                    return
            kept.add(job.id)
            words = "Job %s (%s) cannot be deleted yet, because of its files: %s"
            log.warning(words, job.id, job.type, problem, extra=log_fields(job))

        async with anyio.create_task_group() as tasks:
            for job in jobs:
                if job.files:
                    tasks.start_soon(delete, job)
        return [job for job in jobs if job.id not in kept]

    def _written(self, before: Job | None, job: Job) -> None:
        """Announce a write and report its event; every write of this process passes here."""
        self._feed.announce(job)
        self._tell_of(before, job)

    def _tell_of(self, before: Job | None, job: Job) -> None:
        event = event_of(before, job)
        if event is not None and self._audience.listens(event):
            self._audience.notify(Transition(event, job, before, self._clock.now()))

    async def _repaired(self, job: Job, now: datetime) -> Job | None:
        if job.schedule is not None or lifecycle.forgettable(job, now):
            return None
        while (moved := lifecycle.overdue(job, now)) is not None:
            [done] = await self.replace([JobWrite(job, moved)])
            if done:
                return moved
            # Another write came first, maybe the same repair: decide again on the newest state.
            [fresh] = await self._store.get([job.id])
            if fresh is None:
                return None
            job = fresh
        return job


def _is_broken(job: Job, now: datetime) -> bool:
    """Return whether a job must be repaired or left out now."""
    return (
        job.schedule is not None
        or lifecycle.forgettable(job, now)
        or lifecycle.overdue(job, now) is not None
    )
