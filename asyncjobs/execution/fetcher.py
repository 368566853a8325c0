"""Takes due jobs from their lanes and gives them to a dispatcher that runs them here."""

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

# More jobs than these are found by polling.
_MAX_HINTS = 10_000

# For how many polls a job that has no handler here is left alone.
_PAUSES = (1, 4)

# What another process has just made due may be due here by so much later.
_CLOCKS_DIFFER = timedelta(seconds=0.05)


class Lanes:
    """The lanes that a worker serves, by rank.

    Where they were named, the earlier goes before the later; else all are served alike. Handlers
    may be registered at any time.
    """

    def __init__(self, registry: Registry, named: Sequence[str] | None = None) -> None:
        self._registry = registry
        self._named = None if named is None else tuple((lane,) for lane in named)
        # All lanes that are served, and the queues of the registry when that was so.
        self._served: frozenset[str] = frozenset()
        self._queues: tuple[str, ...] | None = None

    @property
    def ranks(self) -> Sequence[Sequence[str]]:
        """The lanes to ask in turn, those of one rank at once."""
        if self._named is not None:
            return self._named
        return (self._registry.queues,) if self._registry.queues else ()

    @property
    def suspects(self) -> Sequence[str]:
        """The lanes of the suspects of these queues."""
        return [suspects_lane(queue) for rank in self.ranks for queue in rank]

    def has_handler(self, job: Job) -> bool:
        """Tell whether this process can run a job of these lanes."""
        return self._registry.handler(job.type) is not None

    def __contains__(self, lane: str) -> bool:
        if self._queues is not self._registry.queues:
            self._queues = self._registry.queues
            self._served = frozenset(chain(self.suspects, *self.ranks))
        return lane in self._served


class Fetcher:
    """Feeds one dispatcher: woken by hints, polling in case hints are lost."""

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
        # When jobs are due that this process knows of: a heap.
        self._coming: list[datetime] = []
        self._unknown_types: set[str] = set()
        # The one suspect that runs here, or is about to; when the next one is looked for.
        self._suspect: JobId | None = None
        self._look_for_suspects_at = -math.inf

    def hint(self, job: Job | None) -> None:
        """Note that a job waits, or (None) that any may: look when it is due."""
        if job is None:
            self._wake.set()
            soon = self._repository.now() + _CLOCKS_DIFFER
            if not self._coming or soon < self._coming[0]:
                heappush(self._coming, soon)
        elif job.status is JobStatus.PENDING and job.due_at is not None and self.serves(job.lane):
            if len(self._coming) < _MAX_HINTS:
                heappush(self._coming, job.due_at)
            if lifecycle.is_suspect(job):
                self._look_for_suspects_at = -math.inf
            if job.due_at < self._sleeps_until:
                self._wake.set()

    async def run(self) -> None:
        """Take and give until cancelled."""
        while True:
            await self._dispatcher.wait_for_room()
            try:
                more = await self._take()
            except StoreError as error:
                log.warning("Due jobs could not be taken: %s", error)
                await anyio.sleep(self._settings.poll_interval.total_seconds())
                continue
            if not more:
                await self._wake.wait(self._pause())

    def serves(self, lane: str) -> bool:
        """Tell whether jobs of that lane are taken here."""
        return lane in self._lanes

    def took_within(self, time: timedelta) -> bool:
        """Tell whether this worker has looked for jobs lately; a full one has no reason to."""
        return anyio.current_time() - self._took_at < time.total_seconds()

    def suspect_ended(self, job_id: JobId) -> None:
        """Note that a suspect does not run here any more; the next one may."""
        if self._suspect == job_id:
            self._suspect = None
            self._look_for_suspects_at = -math.inf
            self._wake.set()

    async def give_back(self, jobs: Sequence[Job]) -> None:
        """Let others begin at once what was taken or accepted here but will not begin here."""
        now = self._repository.now()
        await self._repository.replace(
            [JobWrite(job, lifecycle.requeue(job)) for job in jobs if job.run_at <= now]
        )

    async def _take(self) -> bool:
        """Take as much as there is room for; tell whether there may be more."""
        limit = self._dispatcher.room
        self._took_at = anyio.current_time()
        now = self._repository.now()
        while self._coming and self._coming[0] <= now:
            heappop(self._coming)
        self._sleeps_until = min([now + self._settings.poll_interval, *self._coming[:1]])
        taken: list[Job] = []
        for rank in self._lanes.ranks:
            if len(taken) < limit:
                until = now + self._settings.redelivery
                taken += await self._repository.take(rank, until=until, limit=limit - len(taken))
        more = bool(taken) and len(taken) == limit
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
        """Put jobs back that have no handler here, as during a rolling deploy.

        They are due again after a pause of random length: with a fixed one, this process could be
        the first to look each time, and no other would ever get them.
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
            pause = poll * random.uniform(*_PAUSES)  # noqa: S311  # no secret
            writes.append(JobWrite(job, lifecycle.requeue(job, now + pause)))
        await self._repository.replace(writes)

    async def _take_suspect(self, now: datetime) -> Sequence[Job]:
        """Take a suspect if none runs here; not more often than polls, unless one is hinted at."""
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
        """Sleep to the next poll, or to the moment when a job is due that was hinted at."""
        pause = self._sleeps_until - self._repository.now()
        # Never longer than to the next poll, whatever the clock was set to meanwhile.
        return max(timedelta(0), min(pause, self._settings.poll_interval)).total_seconds()
