"""Takes due jobs from their lanes and offers them to the dispatcher of this process."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from itertools import chain

import anyio

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Registry
from asyncjobs.core.job import Job, JobId, JobStatus, suspects_lane
from asyncjobs.errors import StoreError
from asyncjobs.protocols import Embedded
from asyncjobs.records.logging import log
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

# The most hints that are kept; further jobs are found by polling.
_MAX_HINTS = 10_000

# How many polls a job without a handler here is left alone, at least and at most.
_PAUSES = (1, 4)

# How much later a job may be due here than in the process that just made it due.
_CLOCKS_DIFFER = timedelta(seconds=0.05)


class Lanes:
    """The lanes that a worker serves, by rank.

    If lanes were named, earlier ones come first; otherwise all have the same rank. Handlers may be
    registered at any time.
    """

    def __init__(self, registry: Registry, named: Sequence[str] | None = None) -> None:
        self._registry = registry
        self._named = None if named is None else tuple((lane,) for lane in named)
        # All served lanes, and the queues of the registry that they were made from.
        self._served: frozenset[str] = frozenset()
        self._queues: tuple[str, ...] | None = None

    @property
    def ranks(self) -> Sequence[Sequence[str]]:
        """The lanes to take from, in turn; lanes of one rank are taken from together."""
        if self._named is not None:
            return self._named
        return (self._registry.queues,) if self._registry.queues else ()

    @property
    def suspects(self) -> Sequence[str]:
        """The lanes of the suspects of these queues."""
        return [suspects_lane(queue) for rank in self.ranks for queue in rank]

    def has_handler(self, job: Job) -> bool:
        """Return whether this process has a handler for a job."""
        return self._registry.handler(job.type) is not None

    def __contains__(self, lane: str) -> bool:
        # By identity: the registry makes a new tuple when a queue is added.
        if self._queues is not self._registry.queues:
            self._queues = self._registry.queues
            self._served = frozenset(chain(self.suspects, *self.ranks))
        return lane in self._served


class Fetcher:
    """Feeds one dispatcher: hints wake it up, and it polls in case hints are lost."""

    def __init__(
        self, lanes: Lanes, repository: Repository, dispatcher: Embedded, settings: Settings
    ) -> None:
        self._lanes = lanes
        self._repository = repository
        self._dispatcher = dispatcher
        self._settings = settings
        self._wake = Signal()
        self._sleeps_until = repository.now()
        self._took_at = -math.inf
        # The due times of jobs that this process knows of: a heap.
        self._coming: list[datetime] = []
        self._unknown_types: set[str] = set()
        # The one suspect that runs or is about to run here, and when to look for the next one.
        self._suspect: JobId | None = None
        self._look_for_suspects_at = -math.inf

    def hint(self, job: Job | None) -> None:
        """Note that a job waits, or (None) that any job may; look for it when it is due."""
        if job is None:
            # Look now, and once more soon: by this clock the job may not be due yet.
            self._wake.set()
            soon = self._repository.now() + _CLOCKS_DIFFER
            if not self._coming or soon < self._coming[0]:
                heappush(self._coming, soon)
        elif job.status is JobStatus.PENDING and job.due_at is not None and self.serves(job.lane):
            if len(self._coming) < _MAX_HINTS:
                heappush(self._coming, job.due_at)
            # Other suspects wait for the next poll; this one is known to be there.
            if lifecycle.is_suspect(job):
                self._look_for_suspects_at = -math.inf
            # A later job needs no wake-up: the next take shortens the sleep to its due time.
            if job.due_at < self._sleeps_until:
                self._wake.set()

    async def run(self) -> None:
        """Take and offer jobs until cancelled."""
        while True:
            await self._dispatcher.wait_for_room()
            try:
                more = await self._take()
            except StoreError as error:
                log.warning("Due jobs could not be taken: %s", error)
                await anyio.sleep(self._settings.poll_interval.total_seconds())
                continue
            # A hint that came during the take has set the signal, and this wait ends at once.
            if not more:
                await self._wake.wait(self._pause())

    def serves(self, lane: str) -> bool:
        """Return whether this worker takes jobs of that lane."""
        return lane in self._lanes

    def took_within(self, time: timedelta) -> bool:
        """Return whether this worker looked for jobs within that time; a full one does not look."""
        return anyio.current_time() - self._took_at < time.total_seconds()

    def suspect_ended(self, job_id: JobId) -> None:
        """Note that a suspect no longer runs here, so the next one may."""
        if self._suspect == job_id:
            self._suspect = None
            self._look_for_suspects_at = -math.inf
            self._wake.set()

    async def give_back(self, jobs: Sequence[Job]) -> None:
        """Let other workers begin jobs at once that were taken or accepted here but not begun."""
        now = self._repository.now()
        await self._repository.replace(
            [JobWrite(job, lifecycle.requeue(job)) for job in jobs if job.run_at <= now]
        )

    async def _take(self) -> bool:
        """Take as many jobs as there is room for; return whether more may be due."""
        limit = self._dispatcher.room
        self._took_at = anyio.current_time()
        now = self._repository.now()
        while self._coming and self._coming[0] <= now:
            heappop(self._coming)
        # Set before the takes: hints that arrive during them are compared with the new time.
        self._sleeps_until = min([now + self._settings.poll_interval, *self._coming[:1]])
        taken: list[Job] = []
        for rank in self._lanes.ranks:
            if len(taken) < limit:
                until = now + self._settings.redelivery
                taken += await self._repository.take(rank, until=until, limit=limit - len(taken))
        more = bool(taken) and len(taken) == limit
        # Otherwise the jobs have filled all the room, and a suspect needs a place as well.
        if not more:
            taken += await self._take_suspect(now)
        late = [job.id for job in taken if job.deadline <= now]
        if late:
            await self._repository.get(late)  # readers record missed deadlines
        refused: list[Job] = []
        unknown: list[Job] = []
        for job in taken:
            if job.deadline > now:
                if not self._lanes.has_handler(job):
                    unknown.append(job)
                elif not self._offer(job):
                    refused.append(job)
        await self.give_back(refused)
        await self._leave_to_others(unknown)
        return more

    async def _leave_to_others(self, jobs: Sequence[Job]) -> None:
        """Return jobs without a handler here to their lanes, as during a rolling deploy.

        They are due again after a random pause. With a fixed one, this process could be the first
        to look each time, and no other process would ever get them.
        """
        for job in jobs:
            if job.type not in self._unknown_types:
                self._unknown_types.add(job.type)
                log.warning(
                    "No handler for type %r here: its jobs are left to other workers", job.type
                )
        now, poll = self._repository.now(), self._settings.poll_interval
        writes: list[JobWrite] = []
        for job in jobs:
            pause = poll * random.uniform(*_PAUSES)  # noqa: S311  # not a secret
            writes.append(JobWrite(job, lifecycle.requeue(job, now + pause)))
        await self._repository.replace(writes)

    async def _take_suspect(self, now: datetime) -> Sequence[Job]:
        """Take a suspect if none runs here; once per poll at most, unless a hint names one."""
        time = anyio.current_time()
        if self._suspect is not None or time < self._look_for_suspects_at:
            return ()
        self._look_for_suspects_at = time + self._settings.poll_interval.total_seconds()
        until = now + self._settings.redelivery
        return await self._repository.take(self._lanes.suspects, until=until, limit=1)

    def _offer(self, job: Job) -> bool:
        accepted = self._dispatcher.offer(job)
        if accepted and lifecycle.is_suspect(job):
            self._suspect = job.id
        return accepted

    def _pause(self) -> float:
        """Return the seconds until the next poll, or until a job from a hint is due."""
        pause = self._sleeps_until - self._repository.now()
        # Bounded, because the clock may have been set meanwhile.
        return max(timedelta(0), min(pause, self._settings.poll_interval)).total_seconds()
