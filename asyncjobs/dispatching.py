"""Hands jobs to the dispatcher, and again where it may have lost them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from asyncjobs.logs import log_fields
from asyncjobs.model import Job, JobId
from asyncjobs.protocols import Dispatcher
from asyncjobs.settings import Settings

log = logging.getLogger("asyncjobs")

# More than these are handed on again at the usual pauses only.
_MOST_REMEMBERED = 10_000


class Dispatching:
    """The way to a dispatcher whose engine may be away, slow, or forgetful."""

    def __init__(self, dispatcher: Dispatcher, settings: Settings) -> None:
        self._dispatcher = dispatcher
        self._look = settings.redelivery + settings.sweep
        self._pause = settings.redelivery
        self._refused: set[JobId] = set()
        self._away = False

    async def dispatch(self, jobs: Sequence[Job]) -> None:
        """Hand jobs on; what cannot be handed on now is stored, and comes up again."""
        try:
            await self._dispatcher.dispatch(jobs)
        except Exception as error:
            # Said once: an engine that is away refuses every job.
            log.log(
                logging.DEBUG if self._away else logging.WARNING,
                "Jobs could not be dispatched; they come up again: %s",
                error,
                exc_info=error,
                extra=log_fields(jobs[0]),
            )
            self._away = True
            if len(self._refused) < _MOST_REMEMBERED:
                self._refused.update(job.id for job in jobs)
        else:
            if self._away:
                log.info("Jobs can be dispatched again")
            self._away = False

    async def dispatch_again(self, jobs: Sequence[Job], now: datetime) -> None:
        """Hand on those of some waiting jobs for which it is time."""
        due = [
            job
            for job in jobs
            if job.id in self._refused or is_time(now - job.run_at, self._pause, self._look)
        ]
        self._refused.difference_update(job.id for job in jobs)
        if due:
            await self.dispatch(due)


def is_time(waited: timedelta, pause: timedelta, look: timedelta) -> bool:
    """Tell whether a job that still waits should be handed on, having been looked at a `look` ago.

    At once, and after 1, 2, 4, 8 ... pauses: what was lost is found soon, and where an engine is
    merely behind, its queue does not fill with the same jobs over and over.
    """
    steps, before = waited / pause, (waited - look) / pause
    if steps < 1:
        return True
    return before < 1 or math.floor(math.log2(steps)) > math.floor(math.log2(before))
