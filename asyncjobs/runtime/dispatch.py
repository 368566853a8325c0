"""Hands jobs to the dispatcher, and again where it may have lost them."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.job import Delivery, Job, JobId
from asyncjobs.protocols import Dispatcher
from asyncjobs.records.group_commit import GroupCommit
from asyncjobs.records.logging import log, log_fields
from asyncjobs.settings import Settings

# More than these are handed on again at the usual pauses only.
_MOST_REMEMBERED = 10_000

# For so many seconds an engine that could not be told of a job is not asked on anyone's behalf.
_LEFT_ALONE = 1.0


class DispatchRetrier:
    """The way to a dispatcher whose engine may be away, slow, or forgetful.

    What many callers hand on while an engine is being told goes out together when it was told. One
    that has refused, or not answered, is left alone for a moment: nobody's answer waits for it.
    """

    def __init__(self, dispatcher: Dispatcher, settings: Settings, tasks: TaskGroup) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        pushes = dispatcher.delivery is Delivery.PUSH
        self._hand_on = GroupCommit(self._tell, tasks) if pushes else self._tell
        self._remembered = settings.redelivery + 2 * settings.sweep_interval
        self._refused: set[JobId] = set()
        # When was looked after jobs that waited, and since when the first of each queue did.
        self._seen: deque[tuple[datetime, Mapping[str, datetime]]] = deque()
        self._away = False
        self._try_again_at = -math.inf

    async def dispatch(self, jobs: Sequence[Job]) -> None:
        """Hand jobs on; what cannot be handed on now is stored, and comes up again."""
        if self._away and anyio.current_time() < self._try_again_at:
            self._remember(jobs)
        else:
            await self._hand_on(jobs)

    async def _tell(self, jobs: Sequence[Job]) -> Sequence[None]:
        try:
            with anyio.fail_after(self._settings.dispatch_timeout.total_seconds()):
                await self._dispatcher.dispatch(jobs)
        except Exception as error:
            # Said once: an engine that is away refuses every job.
            log.log(
                logging.DEBUG if self._away else logging.WARNING,
                "Jobs could not be dispatched; they come up again: %s",
                str(error) or type(error).__name__,
                exc_info=error,
                extra=log_fields(jobs[0]),
            )
            self._away = True
            self._try_again_at = anyio.current_time() + _LEFT_ALONE
            self._remember(jobs)
        else:
            if self._away:
                log.info("Jobs can be dispatched again")
            self._away = False
        return [None] * len(jobs)

    def _remember(self, jobs: Sequence[Job]) -> None:
        if len(self._refused) < _MOST_REMEMBERED:
            self._refused.update(job.id for job in jobs)

    async def dispatch_again(self, jobs: Sequence[Job], now: datetime) -> None:
        """Hand on those of some waiting jobs for which it is time."""
        pause = self._settings.redelivery
        look = pause + self._settings.sweep_interval
        begins = [(job.queue, job.run_at) for job in sorted(jobs, key=lambda one: one.run_at)]
        self._seen.append((now, dict(reversed(begins))))
        self._forget_seen(now)
        due = [
            job for job in jobs if job.id in self._refused or is_time(now - job.run_at, pause, look)
        ]
        self._refused.difference_update(job.id for job in jobs)
        if due:
            await self._hand_on(due)

    def oldest(self, now: datetime) -> Mapping[str, timedelta]:
        """Tell for how long the first job of each queue waits, of those that were seen lately.

        One that still waits is looked after again before it is forgotten here, in some process.
        """
        self._forget_seen(now)
        found: dict[str, timedelta] = {}
        for _, begins in self._seen:
            for queue, run_at in begins.items():
                found[queue] = max(found.get(queue, timedelta(0)), now - run_at)
        return found

    def _forget_seen(self, now: datetime) -> None:
        while self._seen and self._seen[0][0] < now - self._remembered:
            self._seen.popleft()


def is_time(waited: timedelta, pause: timedelta, look: timedelta) -> bool:
    """Tell whether a job that still waits should be handed on, having been looked at a `look` ago.

    At once, and after 1, 2, 4, 8 ... pauses: what was lost is found soon, and where an engine is
    merely behind, its queue does not fill with the same jobs over and over.
    """
    steps, before = waited / pause, (waited - look) / pause
    if steps < 1:
        return True
    return before < 1 or math.floor(math.log2(steps)) > math.floor(math.log2(before))
