"""Sends jobs to the dispatcher, and sends them again if it may have lost them."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.job import Delivery, Job, JobId
from asyncjobs.core.lifecycle import UNHANDLED_LANE
from asyncjobs.errors import AsyncJobsError, NotDispatched
from asyncjobs.protocols import Dispatcher, ServesQueues
from asyncjobs.records.group_commit import GroupCommit
from asyncjobs.records.logging import log, log_fields
from asyncjobs.settings import Settings

# The limit of each collection of jobs here. Jobs beyond it are dispatched again at the usual pauses
# only.
_MAX_REMEMBERED = 10_000

# The pause after an engine refused a job or did not answer.
_PAUSE_SECONDS = 1.0

_MAX_BATCH_SIZE = 512

# A warning names queues whose jobs wait in the engine for longer than this.
_LONG_WAIT = timedelta(minutes=1)


@dataclass
class _RefusedType:
    """A job type whose jobs wait here until the engine accepts a job of the type."""

    next_attempt: float
    jobs: dict[JobId, Job] = field(default_factory=dict[JobId, Job])


class DispatchRetrier:
    """Dispatches to an engine that may be down, slow or forgetful.

    Jobs that arrive during a call of the dispatcher are dispatched together after it. An error
    starts a pause, in which no caller waits: jobs that arrive are dispatched when it ends. If the
    engine refuses only some types, the jobs of other types are dispatched without a pause. One job
    of each refused type is tried per pause. Refused jobs are dispatched again when they are due in
    the maintenance lane.
    """

    def __init__(self, dispatcher: Dispatcher, settings: Settings, tasks: TaskGroup) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._tasks = tasks
        #: Whether jobs sent from this process reach workers through an engine.
        self.pushes = dispatcher.delivery is Delivery.PUSH
        # A caller waits for the call in progress, and then for its own.
        longest = 2 * settings.dispatch_timeout + timedelta(seconds=_PAUSE_SECONDS)
        self._hand_on = GroupCommit(self._try, tasks, longest) if self.pushes else self._try
        self._remembered = settings.redelivery + 2 * settings.sweep_interval
        self._refused: set[JobId] = set()
        self._refused_types: dict[str, _RefusedType] = {}
        # The times at which waiting jobs were inspected, each with the earliest `run_at` per queue.
        self._seen: deque[tuple[datetime, Mapping[str, datetime]]] = deque()
        self._long_waits: set[str] = set()
        self._pause_ends = -math.inf
        # Jobs that arrive in a pause, or before all of those have been tried.
        self._held: deque[Job] = deque()
        # Jobs that were dispatched before; they are tried after the held jobs.
        self._repeats: deque[Job] = deque()
        self._is_catching_up = False
        # The number of jobs whose callers wait for the dispatcher.
        self._in_line = 0
        self._has_warned = False

    async def dispatch(self, jobs: Sequence[Job]) -> None:
        """Dispatch jobs now or, after an error, when the pause is over. Never raises.

        A caller waits for the call in progress and for its own, never for a third.
        """
        await self._send_or_hold(jobs, self._held)

    async def _send_or_hold(self, jobs: Sequence[Job], queue: deque[Job]) -> None:
        refused = [job for job in jobs if job.type in self._refused_types]
        if refused:
            self._hold(refused, queue)
            jobs = [job for job in jobs if job.type not in self._refused_types]
        is_full = self._in_line and self._in_line + len(jobs) > _MAX_BATCH_SIZE
        if self._pauses or self._held or is_full:
            self._hold(jobs, queue)
        elif jobs:
            await self._send(jobs)

    async def _send(self, jobs: Sequence[Job]) -> None:
        self._in_line += len(jobs)
        try:
            await self._hand_on(jobs)
        except AsyncJobsError as error:  # the queue is closing, or the calls took too long
            log.log(
                logging.DEBUG if self._has_warned else logging.WARNING,
                "Jobs were not dispatched; they will be dispatched later: %s",
                error,
            )
            self._has_warned = True
            self._remember(jobs)
        finally:
            self._in_line -= len(jobs)

    @property
    def _pauses(self) -> bool:
        return anyio.current_time() < self._pause_ends

    def _hold(self, jobs: Sequence[Job], queue: deque[Job]) -> None:
        """Dispatch jobs when the pause is over; jobs over the limit wait until they are due."""
        for job in jobs:
            if refused := self._refused_types.get(job.type):
                if len(refused.jobs) < _MAX_REMEMBERED or job.id in refused.jobs:
                    refused.jobs[job.id] = job
                    continue
            elif len(queue) < _MAX_REMEMBERED:
                queue.append(job)
                continue
            self._remember([job])
        if not self._is_catching_up:
            self._is_catching_up = True
            try:
                self._tasks.start_soon(self._catch_up)
            except RuntimeError:  # the queue has closed; the jobs are due again in the store
                self._is_catching_up = False

    async def _catch_up(self) -> None:
        try:
            while True:
                await anyio.sleep(max(0.0, self._pause_ends - anyio.current_time()))
                if batch := self._next_batch():
                    await self._send(batch)
                    continue
                times = [one.next_attempt for one in self._refused_types.values() if one.jobs]
                if not times:
                    return
                await anyio.sleep(min(times) - anyio.current_time())
        finally:
            self._is_catching_up = False

    def _next_batch(self) -> list[Job]:
        """Remove and return the jobs to try now, with at most one job of each refused type."""
        now, batch = anyio.current_time(), list[Job]()
        for queue in (self._held, self._repeats):
            while queue and len(batch) < _MAX_BATCH_SIZE:
                job = queue.popleft()
                if refused := self._refused_types.get(job.type):
                    refused.jobs[job.id] = job
                else:
                    batch.append(job)
        for refused in self._refused_types.values():
            if refused.jobs and refused.next_attempt <= now and len(batch) < _MAX_BATCH_SIZE:
                batch.append(refused.jobs.pop(next(iter(refused.jobs))))
                refused.next_attempt = now + _PAUSE_SECONDS
        return batch

    async def _try(self, jobs: Sequence[Job]) -> Sequence[None]:
        answers = [None] * len(jobs)
        if self._pauses:  # an error ended the call that these jobs waited for
            self._hold(jobs, self._held)
            return answers
        try:
            with anyio.fail_after(self._settings.dispatch_timeout.total_seconds()):
                await self._dispatcher.dispatch(jobs)
        except NotDispatched as error:
            taken = [job for job in jobs if job.id not in error.refused]
            self._note_taken(taken)
            refused = [job for job in jobs if job.id in error.refused]
            # A known refusal of a type does not affect other types.
            if not taken and any(job.type not in self._refused_types for job in refused):
                self._pause()
            self._note_refused(refused, error, {job.type for job in taken})
        except Exception as error:  # noqa: BLE001  # logged
            self._pause()
            self._note_refused(jobs, error)
        else:
            self._note_taken(jobs)
        return answers

    def _pause(self) -> None:
        self._pause_ends = anyio.current_time() + _PAUSE_SECONDS

    def _note_refused(
        self, jobs: Sequence[Job], error: Exception, taken: AbstractSet[str] = frozenset()
    ) -> None:
        """Note the types of refused jobs, except those of which other jobs were `taken`."""
        types = {job.type for job in jobs}
        # Once per type, since every job of the type is refused.
        log.log(
            logging.DEBUG if types <= self._refused_types.keys() else logging.WARNING,
            "Jobs of type %s could not be dispatched; they will be dispatched later: %s",
            ", ".join(sorted(types)),
            str(error) or type(error).__name__,
            exc_info=error,
            extra=log_fields(jobs[0]) if jobs else {},
        )
        for job_type in types - taken:
            later = anyio.current_time() + _PAUSE_SECONDS
            self._refused_types.setdefault(job_type, _RefusedType(later)).next_attempt = later
        self._remember(jobs)

    def _note_taken(self, jobs: Sequence[Job]) -> None:
        again = self._refused_types.keys() & {job.type for job in jobs}
        for job_type in again:
            self._repeats.extend(self._refused_types.pop(job_type).jobs.values())
        if again:
            self._hold((), self._repeats)
            log.info("Jobs of type %s can be dispatched again", ", ".join(sorted(again)))

    def _remember(self, jobs: Sequence[Job]) -> None:
        if len(self._refused) < _MAX_REMEMBERED:
            self._refused.update(job.id for job in jobs)

    async def dispatch_again(self, jobs: Sequence[Job], now: datetime) -> None:
        """Dispatch those of the waiting jobs for which `is_time` returns True."""
        pause = self._settings.redelivery
        look = pause + self._settings.sweep_interval
        begins = [(job.queue, job.run_at) for job in sorted(jobs, key=lambda one: one.run_at)]
        self._seen.append((now, dict(reversed(begins))))
        self._warn_of_long_waits(jobs, now)
        self._leave_to_sweeps(now)
        due = [
            job
            for job in jobs
            if job.id in self._refused
            or job.type in self._refused_types
            or job.lane == UNHANDLED_LANE
            or is_time(now - job.run_at, pause, look)
        ]
        self._refused.difference_update(job.id for job in jobs)
        await self._send_or_hold(due, self._repeats)

    def _leave_to_sweeps(self, now: datetime) -> None:
        """Drop jobs of refused types that a sweep, here or in another process, finds again."""
        for refused in self._refused_types.values():
            stale = [job for job in refused.jobs.values() if job.due_at and job.due_at <= now]
            self._remember(stale)
            for job in stale:
                del refused.jobs[job.id]

    def oldest(self, now: datetime) -> Mapping[str, timedelta]:
        """Return how long the oldest waiting job of each queue has waited, among jobs seen lately.

        A job that still waits is seen again, in some process, before its entry is dropped here.
        """
        self._forget_seen(now)
        found: dict[str, timedelta] = {}
        for _, begins in self._seen:
            for queue, run_at in begins.items():
                found[queue] = max(found.get(queue, timedelta(0)), now - run_at)
        return found

    def _warn_of_long_waits(self, jobs: Sequence[Job], now: datetime) -> None:
        """Log once per queue that its jobs have waited for long: perhaps no worker serves it."""
        self._long_waits &= {q for q, waited in self.oldest(now).items() if waited >= _LONG_WAIT}
        for job in sorted(jobs, key=lambda one: one.run_at):
            if now - job.run_at < _LONG_WAIT or job.queue in self._long_waits:
                continue
            self._long_waits.add(job.queue)
            advice = ""
            if isinstance(self._dispatcher, ServesQueues):
                advice = self._dispatcher.how_to_serve(job.type, job.queue)
            log.warning(
                "Job %s (%s) has waited for %d s in the queue %s, and no worker has started it. %s",
                job.id,
                job.type,
                (now - job.run_at).total_seconds(),
                job.queue,
                advice,
                extra=log_fields(job),
            )

    def _forget_seen(self, now: datetime) -> None:
        while self._seen and self._seen[0][0] < now - self._remembered:
            self._seen.popleft()


def is_time(waited: timedelta, pause: timedelta, look: timedelta) -> bool:
    """Return whether to dispatch a waiting job that was last inspected a `look` ago.

    It is dispatched at once and after 1, 2, 4, 8 ... pauses. Lost jobs are found soon, but an
    engine that is merely slow does not get the same jobs over and over.
    """
    steps, before = waited / pause, (waited - look) / pause
    if steps < 1:
        return True
    return before < 1 or math.floor(math.log2(steps)) > math.floor(math.log2(before))
