"""Jobs that are about to be started, and jobs that may have been stored as started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Handler
from asyncjobs.core.job import Job
from asyncjobs.errors import StoreError
from asyncjobs.execution.attempt import Attempt
from asyncjobs.records.logging import log
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal, event_loop_clock
from asyncjobs.settings import Settings

# The most jobs in doubt; further ones are left until their leases lapse.
_MAX_DOUBTS = 1000


@dataclass(eq=False, slots=True)
class Start:
    """A job that is about to be started; its slot is taken until `freed` is called."""

    job: Job
    handler: Handler[Any, Any]
    token: str
    #: When the job and its lease were sent to the store, by the event loop's clock.
    asked_at: float
    give_up_at: float
    freed: Callable[[], None]
    is_suspect: bool = False
    unwanted: bool = False
    attempt: Attempt | None = None


def holds(found: Job | None, token: str) -> TypeGuard[Job]:
    """Return whether a job runs under the lease with that token."""
    return found is not None and found.lease is not None and found.lease.token == token


class Doubts:
    """Jobs that this process may have stored as started: the store did not answer.

    They are looked for until their leases have lapsed, and given back if they were stored. They
    keep no slots: a moment without the store would take all of them.
    """

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._clock = event_loop_clock()
        # An ordered set, oldest first.
        self._starts: dict[Start, None] = {}
        self._stopping = False
        self._news = Signal()
        self._none = Signal()

    def add(self, start: Start) -> None:
        """Look for the job of a start, from now on."""
        if len(self._starts) < _MAX_DOUBTS:
            start.give_up_at = start.asked_at + self._settings.lease.total_seconds()
            self._starts[start] = None
            self._news.set()

    def stop(self) -> None:
        """Look for the jobs once more, then give up."""
        self._stopping = True
        self._news.set()

    async def wait_until_none(self) -> None:
        """Return when no job is looked for."""
        while self._starts:
            await self._none.wait()

    async def run(self) -> None:
        """Look for jobs until cancelled."""
        pause = self._settings.poll_interval.total_seconds()
        while True:
            try:
                # Read here: a `stop` during the look wakes the wait below, for the last look.
                await self._look(tuple(self._starts), last=self._stopping)
            except StoreError as error:
                log.warning("Could not check whether jobs were stored: %s", error)
            if not self._starts:
                self._none.set()
            await self._news.wait(pause if self._starts else None)

    async def _look(self, starts: Sequence[Start], *, last: bool) -> None:
        if not starts:
            return
        time = self._clock()
        # Removed before the read: if that fails as well, the search must still end.
        for one in starts:
            if last or time >= one.give_up_at:
                del self._starts[one]  # it was never stored, or is lost when its lease lapses
        jobs = await self._repository.get([one.job.id for one in starts])
        ours: list[JobWrite] = []
        now = self._repository.now()
        for one, found in zip(starts, jobs, strict=True):
            if found is not None:
                self._starts.pop(one, None)
            if holds(found, one.token):
                # Announce the start first: its answer was lost, so watchers have not seen it.
                self._repository.acknowledge_insert(one.job, found)
                given_back = lifecycle.settle_release(found, now, token=one.token)
                ours.append(JobWrite(found, given_back))
        await self._repository.replace(ours)
