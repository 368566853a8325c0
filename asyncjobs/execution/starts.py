"""Jobs that are about to be started, and those of which it is not known whether they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from asyncjobs.core.handlers import Handler
from asyncjobs.core.job import Job
from asyncjobs.errors import StoreError
from asyncjobs.execution.attempt import Attempt
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import Repository
from asyncjobs.records.waiting import Signal, event_loop_clock
from asyncjobs.settings import Settings


@dataclass(eq=False, slots=True)
class Start:
    """A job that is about to be started, for which a slot is kept until `freed` is called."""

    job: Job
    handler: Handler[Any, Any]
    token: str
    #: When the job and its lease went to the store, by the event loop's clock.
    asked_at: float
    give_up_at: float
    freed: Callable[[], None]
    is_suspect: bool = False
    unwanted: bool = False
    attempt: Attempt | None = None


def holds(found: Job | None, token: str) -> TypeGuard[Job]:
    """Return whether a job runs by the lease of that token."""
    return found is not None and found.lease is not None and found.lease.token == token


class Doubts:
    """Starts whose jobs may have been stored as started: the store gave no answer.

    They are looked for until their leases have lapsed; `spawn` runs what is found.
    """

    def __init__(
        self, repository: Repository, settings: Settings, spawn: Callable[[Start, Job], None]
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._spawn = spawn
        self._clock = event_loop_clock()
        # In the order in which they came.
        self._starts: dict[Start, None] = {}
        self._stopping = False
        self._news = Signal()
        self._none = Signal()

    def add(self, start: Start) -> None:
        """Look for the job of a start from now on."""
        start.give_up_at = start.asked_at + self._settings.lease.total_seconds()
        self._starts[start] = None
        self._news.set()

    def stop(self) -> None:
        """Look once more, and for no job again."""
        self._stopping = True
        self._news.set()

    async def wait_until_none(self) -> None:
        """Return when nothing is looked for."""
        while self._starts:
            await self._none.wait()

    async def run(self) -> None:
        """Look for jobs until cancelled."""
        pause = self._settings.poll_interval.total_seconds()
        while True:
            await self._look(tuple(self._starts))
            if not self._starts:
                self._none.set()
            await self._news.wait(pause if self._starts else None)

    async def _look(self, starts: Sequence[Start]) -> None:
        if not starts:
            return
        jobs: Sequence[Job | None] = [None] * len(starts)
        try:
            jobs = await self._repository.get([one.job.id for one in starts])
        except StoreError as error:
            fields = log_fields(starts[0].job)
            log.warning("Jobs that may be stored could not be read: %s", error, extra=fields)
        now = self._clock()
        for one, found in zip(starts, jobs, strict=True):
            if holds(found, one.token):
                del self._starts[one]
                self._spawn(one, found)
            elif found is not None or self._stopping or now >= one.give_up_at:
                # It is another's by now. Or it was never stored, or is lost when its lease lapses.
                del self._starts[one]
                one.freed()
