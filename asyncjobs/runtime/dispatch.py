"""Sends jobs to the dispatcher, and sends them again if it may have lost them."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
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

# Jobs beyond this number are dispatched again at the usual pauses only.
_MAX_REMEMBERED = 10_000

# The pause after an engine refused a job or did not answer.
_PAUSE_SECONDS = 1.0

_MAX_BATCH_SIZE = 512

# A warning names queues whose jobs wait in the engine for longer than this.
_LONG_WAIT = timedelta(minutes=1)


class DispatchRetrier:
    """Dispatches to an engine that may be down, slow or forgetful.

    Jobs that arrive during a call of the dispatcher are dispatched together after it. An error
    starts a pause, in which no caller waits: jobs that arrive are dispatched when it ends. Refused
    jobs are dispatched again when they are due in the maintenance lane.
    """

    def __init__(self, dispatcher: Dispatcher, settings: Settings, tasks: TaskGroup) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._tasks = tasks
        pushes = dispatcher.delivery is Delivery.PUSH
        # A caller waits for the call in progress, and then for its own.
        longest = 2 * settings.dispatch_timeout + timedelta(seconds=_PAUSE_SECONDS)
        self._hand_on = GroupCommit(self._try, tasks, longest) if pushes else self._try
        self._remembered = settings.redelivery + 2 * settings.sweep_interval
        self._refused: set[JobId] = set()
        self._refused_types: set[str] = set()
        # The times at which waiting jobs were inspected, each with the earliest `run_at` per queue.
        self._seen: deque[tuple[datetime, Mapping[str, datetime]]] = deque()
        self._long_waits: set[str] = set()
        self._pause_ends = -math.inf
        # Jobs that arrive in a pause, or before all of those have been tried.
        self._held: deque[Job] = deque()
        self._is_catching_up = False

    async def dispatch(self, jobs: Sequence[Job]) -> None:
        """Dispatch jobs now or, after an error, when the pause is over. Never raises."""
        if self._is_catching_up or self._pauses:
            self._hold(jobs)
        else:
            await self._hand_on(jobs)

    @property
    def _pauses(self) -> bool:
        return anyio.current_time() < self._pause_ends

    def _hold(self, jobs: Sequence[Job]) -> None:
        """Dispatch jobs when the pause is over; jobs over the limit wait until they are due."""
        self._held.extend(jobs[: _MAX_REMEMBERED - len(self._held)])
        if not self._is_catching_up:
            self._is_catching_up = True
            self._tasks.start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        try:
            while self._held:
                await anyio.sleep(max(0.0, self._pause_ends - anyio.current_time()))
                count = min(len(self._held), _MAX_BATCH_SIZE)
                await self._hand_on([self._held.popleft() for _ in range(count)])
        except AsyncJobsError as error:  # the queue is closing; the jobs are due again in the store
            log.warning("Jobs were not dispatched; they will be dispatched later: %s", error)
        finally:
            self._is_catching_up = False

    async def _try(self, jobs: Sequence[Job]) -> Sequence[None]:
        answers = [None] * len(jobs)
        if self._pauses:  # an error ended the call that these jobs waited for
            self._hold(jobs)
            return answers
        refused: frozenset[str] = frozenset()
        try:
            with anyio.fail_after(self._settings.dispatch_timeout.total_seconds()):
                await self._dispatcher.dispatch(jobs)
        except NotDispatched as error:
            refused = error.refused
            self._note_refused([job for job in jobs if job.id in refused], error)
        except Exception as error:  # noqa: BLE001  # logged
            self._note_refused(jobs, error)
            return answers
        self._note_taken([job for job in jobs if job.id not in refused])
        return answers

    def _note_refused(self, jobs: Sequence[Job], error: Exception) -> None:
        types = {job.type for job in jobs}
        # Once per type, since every job of the type is refused.
        log.log(
            logging.DEBUG if types <= self._refused_types else logging.WARNING,
            "Jobs of type %s could not be dispatched; they will be dispatched later: %s",
            ", ".join(sorted(types)),
            str(error) or type(error).__name__,
            exc_info=error,
            extra=log_fields(jobs[0]) if jobs else {},
        )
        self._refused_types |= types
        self._pause_ends = anyio.current_time() + _PAUSE_SECONDS
        self._remember(jobs)

    def _note_taken(self, jobs: Sequence[Job]) -> None:
        again = self._refused_types.intersection(job.type for job in jobs)
        if again:
            self._refused_types -= again
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
        due = [
            job
            for job in jobs
            if job.id in self._refused
            or job.lane == UNHANDLED_LANE
            or is_time(now - job.run_at, pause, look)
        ]
        self._refused.difference_update(job.id for job in jobs)
        if due:
            await self._hand_on(due)

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
