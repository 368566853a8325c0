"""The heartbeat of a process: renews the leases of its attempts and writes what handlers report."""

from __future__ import annotations

from collections.abc import Iterator

import anyio

from asyncjobs.core import lifecycle
from asyncjobs.errors import IllegalMove, LostLease, StoreError
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.records.logging import log
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings


class Heartbeat:
    """Renews the leases of all attempts and writes their reports: one batch per beat.

    Its writes do not wait behind those of outcomes: `Repository.renew` bypasses them.
    """

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._attempts: dict[str, Attempt] = {}
        self._wanted = Signal()
        self._asking = False
        self._none = anyio.Event()
        self._none.set()

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._attempts.values()))

    def __len__(self) -> int:
        return len(self._attempts)

    def attends(self) -> bool:
        """Return whether there are attempts."""
        return bool(self._attempts)

    def attend(self, attempt: Attempt) -> None:
        """Keep the attempt's lease, until `leave`."""
        # An event cannot be reset: later waits need a new one.
        if not self._attempts:
            self._none = anyio.Event()
        self._attempts[attempt.token] = attempt
        self._wanted.set()

    def leave(self, attempt: Attempt) -> None:
        """Stop renewing this lease: the end of the attempt is recorded or never will be."""
        self._attempts.pop(attempt.token, None)
        if not self._attempts:
            self._none.set()

    async def wait_until_none(self) -> None:
        """Return when the end of every attempt is recorded. Threads left behind do not count."""
        await self._none.wait()

    async def run(self) -> None:
        """Beat while there are attempts, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                # The signal may be left from an attempt that has ended; then one beat is empty.
                if not self._attempts:
                    await self._wanted.wait()
                await anyio.sleep(self._settings.progress_interval.total_seconds())
                try:
                    await self._beat()
                except StoreError as error:
                    log.warning("Leases could not be renewed: %s", error)
                    self._drop_lapsed()
                    await anyio.sleep(self._settings.poll_interval.total_seconds())

    async def _watch(self) -> None:
        """Interrupt attempts whose lease lapses while the store does not answer at all."""
        while True:
            await anyio.sleep(self._settings.poll_interval.total_seconds())
            # Only during a call, when `run` cannot do it.
            if self._asking:
                self._drop_lapsed()

    async def _beat(self) -> None:
        # Before the call, however long that takes: the store counts the lease from then.
        asked_at = anyio.current_time()
        writes = [write for one in self if (write := self._next_write(one)) is not None]
        if not writes:
            return
        self._asking = True
        try:
            written = await self._repository.renew([step for _, step in writes])
        finally:
            self._asking = False
        for (attempt, step), done in zip(writes, written, strict=True):
            lease = step.job.lease
            # Another write came first: a cancel request, an outcome, or a loss of the lease.
            if not done:
                await self._catch_up(attempt)
            elif lease is not None:
                attempt.adopt(step.job)
                # If the clock was set back meanwhile, the difference of the two times is too large.
                left = min(lease.until - self._repository.now(), self._settings.lease)
                attempt.renewed(asked_at, left)

    def _next_write(self, attempt: Attempt) -> tuple[Attempt, JobWrite] | None:
        """Return the write that is due: a new report, the lease's renewal, or both."""
        job, now = attempt.job, self._repository.now()
        moved = job
        try:
            # Once the attempt is settled, its outcome carries the last report.
            latest = None if attempt.settled else attempt.gauge.unwritten()
            if latest is not None:
                # Marked as written already; a write that fails or is refused resets it.
                attempt.gauge.written = latest
                moved = lifecycle.report(
                    job,
                    latest.progress,
                    token=attempt.token,
                    title=latest.title,
                    metadata_json=latest.metadata_json,
                )
            elif not attempt.wants_renewal():
                return None
            until = now + self._settings.lease
            renewed = lifecycle.extend(moved, now, token=attempt.token, until=until)
        except (IllegalMove, LostLease):
            return None  # the attempt has ended meanwhile
        return attempt, JobWrite(job, renewed)

    async def _catch_up(self, attempt: Attempt) -> None:
        """Read what was written in between; the next beat sends a refused report again."""
        attempt.gauge.forget_written()
        [fresh] = await self._repository.get([attempt.job.id])
        attempt.adopt(fresh)

    def _drop_lapsed(self) -> None:
        for attempt in self:
            # The failed write may have lost the report: send it again.
            attempt.gauge.forget_written()
            if attempt.lapsed():
                attempt.interrupt(Cause.LOST)
