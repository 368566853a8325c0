"""The one way by which this process reads and writes jobs.

A store seen through it merges concurrent calls, announces what is written, tells of every
transition, and never shows a job whose deadline or lease has quietly passed: readers repair what
they read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Protocol

from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.events import Event, Transition, event_of
from asyncjobs.core.job import Job, JobId, JobStatus, suspects_lane
from asyncjobs.errors import ConfigurationError, InvalidQuery, UnknownJob, UnusableConnection
from asyncjobs.protocols import (
    HOLD,
    Change,
    Clock,
    InlineReads,
    Listing,
    OpenStore,
    Page,
    Selection,
    Store,
    Transactions,
    power_of,
)
from asyncjobs.records.change_feed import ChangeFeed, Watch
from asyncjobs.records.group_commit import Bound
from asyncjobs.records.logging import is_logged, log_transition

_MOST_BEFORE = 1000

_NONE_STARTED: Mapping[JobId, Job] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class JobWrite:
    """A move that was made and is to be written: the job before it, and after it."""

    before: Job
    job: Job

    def change(self) -> Change:
        """Return what the store is to write: no wide data that it has already."""
        before, job = self.before, self.job
        if before.errors_json is not None and before.errors_json is job.errors_json:
            job = job.changed(errors_json=None)
        if before.result_json is not None and before.result_json is job.result_json:
            job = job.changed(result_json=None)
        return Change(job, before.revision)


class Audience(Protocol):
    """Whoever is told of transitions."""

    def listens(self, event: Event) -> bool:
        """Return whether `notify` would do anything for an event of that kind."""
        ...

    def notify(self, transition: Transition) -> None:
        """Tell of a transition: at once, without an error."""
        ...


class _Log:
    """The logs, where nobody else is told."""

    def listens(self, event: Event) -> bool:
        return is_logged(event)

    def notify(self, transition: Transition) -> None:
        log_transition(transition)


LOG_ALONE = _Log()


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
        """Keep the store to use, which may merge calls, and the `base` below it.

        The powers of the base are used, and leases are renewed there; each call of these has the
        `limit`, and runs in a task of `tasks`, see `Bound`. The `audience` is told of each
        transition that this process has written.
        """
        self._direct: OpenStore = base or store
        self._bound = Bound(limit.total_seconds(), tasks)
        # A store that reads at once needs no task for it.
        inline = power_of(base, InlineReads) is not None
        self._bound_reads = Bound(limit.total_seconds(), None if inline else tasks)
        self._store = store
        self._feed = feed
        self._audience = audience
        self._clock = clock
        self._listing = power_of(base, Listing)
        self._transactions = power_of(base, Transactions)

    def now(self) -> datetime:
        """Tell the time that moves are made by."""
        return self._clock.now()

    async def insert(
        self, jobs: Sequence[Job], started: Mapping[JobId, Job] = _NONE_STARTED
    ) -> Sequence[Job]:
        """Add jobs; where the id or the idempotency key is taken, get the stored job back.

        Those in `started` are stored as they are there: they begin in this process, and one write
        says both. That is two events all the same.
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
            kept = await self._replayed(found, partial(self._store.insert, [job]))
            if kept.id == job.id:
                self._written(None, kept)
            stored.append(kept)
        return stored

    async def insert_within(self, connection: object, jobs: Sequence[Job]) -> Sequence[Job]:
        """Add jobs as `Transactions.insert_within` does; raise `UnusableConnection`."""
        if self._transactions is None:
            raise UnusableConnection("the queue's store takes part in no transaction but its own")
        insert = partial(self._transactions.insert_within, connection)
        stored: list[Job] = []
        for job, found in zip(jobs, await insert(jobs), strict=True):
            kept = found
            if found.id != job.id:
                kept = await self._replayed(found, partial(insert, [job]))
            if kept.id == job.id:
                # Not announced: until the commit no other process can see the job.
                self._tell_of(None, kept)
            stored.append(kept)
        return stored

    async def get(self, ids: Sequence[JobId]) -> Sequence[Job | None]:
        """Read jobs as they must stand now; None for those that do not exist."""
        found = list(await self._store.get(ids))
        now = self._clock.now()
        for index, job in enumerate(found):
            # Not only where it is due: whoever took it may have died before making the move.
            if job is not None and _is_broken(job, now):
                found[index] = await self._repaired(job, now)
        return found

    async def find(self, job_id: JobId) -> Job:
        """Read one job; raise `UnknownJob` where it does not exist."""
        [job] = await self.get([job_id])
        if job is None:
            raise UnknownJob(job_id)
        return job

    async def list(self, which: Selection, *, limit: int, after: str | None = None) -> Page:
        """List jobs as they must stand now; raise `ConfigurationError` if the store cannot.

        What the store returns is filtered again, so that no store shows the jobs of others.
        """
        if self._listing is None:
            raise ConfigurationError("The store cannot list jobs.")
        listing = self._listing
        if unknown := which.given().keys() - listing.filters:
            names = ", ".join(sorted(unknown))
            raise ConfigurationError(f"The store cannot list jobs by these fields: {names}.")
        if limit < 1:
            raise InvalidQuery("limit", f"it is at least 1, got {limit}")
        page = await self._bound.wait_for(lambda: listing.list(which, limit=limit, after=after))
        now = self._clock.now()
        jobs = [await self._listed(job, now) for job in page.jobs]
        return Page([job for job in jobs if job and which.fits(job)], page.next)

    async def position(self, job: Job) -> int | None:
        """Tell how far in front of its queue a job waits: 1 is next, None is not known."""
        now = self._clock.now()
        waits = job.status is JobStatus.PENDING and job.lane == job.queue and job.run_at <= now
        listing = self._listing
        if listing is None or not waits:
            return None
        before = await self._bound_reads.wait_for(
            lambda: listing.count_before(job, until=now + HOLD, most=_MOST_BEFORE),
            shared_as=job.id,  # many may ask for one job
        )
        return before + 1 if before < _MOST_BEFORE else None

    async def oldest(self, queues: Sequence[str]) -> Mapping[str, timedelta]:
        """Tell for how long the first job of each queue has been due; {} if the store cannot."""
        listing = self._listing
        if listing is None or not queues:
            return {}
        now = self._clock.now()
        lanes = [*queues, *map(suspects_lane, queues)]
        moments = await self._bound.wait_for(lambda: listing.first_due(lanes))
        waited = [timedelta(0) if at is None else max(timedelta(0), now - at) for at in moments]
        pairs = zip(waited[: len(queues)], waited[len(queues) :], strict=True)
        return {queue: max(pair) for queue, pair in zip(queues, pairs, strict=True)}

    async def replace(self, steps: Sequence[JobWrite]) -> Sequence[bool]:
        """Write moves that were already made; say for each whether it was the next one."""
        if not steps:
            return ()
        written = await self._store.replace([step.change() for step in steps])
        for step, done in zip(steps, written, strict=True):
            if done:
                self._written(step.before, step.job)
        return written

    async def renew(self, steps: Sequence[JobWrite]) -> Sequence[bool]:
        """Write as `replace` does, but never behind what waits there: leases must not lapse."""
        changes = [step.change() for step in steps]
        written = await self._bound.wait_for(lambda: self._direct.replace(changes))
        for step, done in zip(steps, written, strict=True):
            if done:
                self._written(step.before, step.job)
        return written

    def acknowledge_insert(self, job: Job, started: Job) -> None:
        """Let this process know that it has stored a job as started, though the answer was lost."""
        self._tell_of(None, job)
        self._written(job, started)

    def acknowledge(self, step: JobWrite) -> None:
        """Let this process know of a write of its own whose answer was lost."""
        self._written(step.before, step.job)

    async def advance(self, job: Job, move: Callable[[Job, datetime], Job]) -> Job:
        """Make a move on the job as it stands when the write wins; raise what the move raises.

        Every refusal means that somebody else's write went through, so this ends.
        """
        while True:
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
        """Pick jobs that have been due for so long already, as `OpenStore.take` says."""
        now = self._clock.now() - overdue_by
        return await self._store.take(lanes, now=now, until=until, limit=limit)

    async def forget(self, jobs: Sequence[Job]) -> None:
        """Delete jobs, end their watches, and pass on an event for each that was still there."""
        deleted = await self._store.delete([job.id for job in jobs])
        for job, was_there in zip(jobs, deleted, strict=True):
            self._feed.forget(job.id)
            if was_there:
                self._audience.notify(Transition(Event.FORGOTTEN, job, job, self._clock.now()))

    def watch(self, job_id: JobId) -> Watch:
        """Follow one job."""
        return self._feed.watch(job_id, self.get)

    async def _listed(self, job: Job, now: datetime) -> Job | None:
        """Repair what a list shows; by a whole job, since those who watch it are told of it."""
        if lifecycle.overdue(job, now) is None:
            return None if lifecycle.forgettable(job, now) else job
        [whole] = await self.get([job.id])
        return whole and whole.narrow()

    async def _replayed(
        self, found: Job, insert_again: Callable[[], Awaitable[Sequence[Job]]]
    ) -> Job:
        """Return the job that has the key now: not one that can no longer be read."""
        repaired = await self._repaired(found, self._clock.now())
        if repaired is not None:
            return repaired
        await self.forget([found])
        [stored] = await insert_again()
        return stored

    def _written(self, before: Job | None, job: Job) -> None:
        """Let this process know of a write: the one place that each of them passes."""
        self._feed.announce(job)
        self._tell_of(before, job)

    def _tell_of(self, before: Job | None, job: Job) -> None:
        event = event_of(before, job)
        if event is not None and self._audience.listens(event):
            self._audience.notify(Transition(event, job, before, self._clock.now()))

    async def _repaired(self, job: Job, now: datetime) -> Job | None:
        if lifecycle.forgettable(job, now):
            return None
        while (moved := lifecycle.overdue(job, now)) is not None:
            [done] = await self.replace([JobWrite(job, moved)])
            if done:
                return moved
            [fresh] = await self._store.get([job.id])
            if fresh is None:
                return None
            job = fresh
        return job


def _is_broken(job: Job, now: datetime) -> bool:
    """Return whether a job is not as it must stand now."""
    return lifecycle.forgettable(job, now) or lifecycle.overdue(job, now) is not None
