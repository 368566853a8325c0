"""Writes how attempts ended, many at once: the one way by which outcomes reach the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime

import anyio

from asyncjobs.core.job import Job
from asyncjobs.errors import IllegalMove, LostLease, StoreError, UnknownJob
from asyncjobs.execution.attempt import Attempt
from asyncjobs.execution.outcomes import Move
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

# One write of outcomes has at most so many jobs, and about so many bytes of results.
_MAX_BATCH_SIZE = 200
_MAX_BATCH_BYTES = 4 * 1024 * 1024


class Outbox:
    """The outcomes that are still to be written.

    `leave` is called with each attempt whose outcome is written, or will never be. Until then it
    keeps its slot and its lease: a slot that was free earlier would lose the retry that follows.
    """

    def __init__(
        self, repository: Repository, settings: Settings, leave: Callable[[Attempt], None]
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._leave = leave
        self._waiting: deque[tuple[Attempt, Move]] = deque()
        self._new = Signal()

    def put(self, attempt: Attempt, move: Move) -> None:
        """Let the move be written that records how an attempt ended."""
        self._waiting.append((attempt, move))
        self._new.set()

    async def run(self) -> None:
        """Write outcomes, as many at once as there are. A slot is kept until its outcome is in."""
        while True:
            while self._waiting:
                left = await self._record(self._next_batch())
                self._waiting.extendleft(reversed(left))
                if left:
                    await anyio.sleep(self._settings.poll_interval.total_seconds())
            await self._new.wait()

    def _next_batch(self) -> list[tuple[Attempt, Move]]:
        batch = [self._waiting.popleft()]
        size = len(batch[0][0].result or b"")
        while self._waiting and len(batch) < _MAX_BATCH_SIZE and size < _MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0].result or b"")
        return batch

    async def _record(self, batch: Sequence[tuple[Attempt, Move]]) -> list[tuple[Attempt, Move]]:
        """Write some outcomes; return those to be tried again, as the store is away."""
        now = self._repository.now()
        writes: list[tuple[Attempt, Move, JobWrite]] = []
        alone: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            # An earlier try may have been written, though its answer was lost: look first.
            moved = None if attempt.sent is not None else _moved(attempt, move, now)
            if moved is None:
                alone.append((attempt, move))
            else:
                attempt.sent = JobWrite(attempt.job, moved)
                writes.append((attempt, move, attempt.sent))
        try:
            written = await self._repository.replace([write for _, _, write in writes])
        except Exception as error:  # noqa: BLE001  # a fault must not cost the slots
            return self._record_later(batch, error)
        for (attempt, move, _), done in zip(writes, written, strict=True):
            if done:
                self._leave(attempt)
            else:
                attempt.sent = None
                alone.append((attempt, move))
        left: list[tuple[Attempt, Move]] = []
        for attempt, move in alone:
            try:
                await self._record_alone(attempt, move)
            except Exception as error:  # noqa: BLE001
                left += self._record_later([(attempt, move)], error)
        return left

    async def _record_alone(self, attempt: Attempt, move: Move) -> None:
        """Write one outcome on the job as it stands now, whatever was written in between."""
        try:
            job = await self._repository.find(attempt.job.id)
            if attempt.sent is not None and _same_write(job, attempt.sent.job):
                self._repository.acknowledge(JobWrite(attempt.sent.before, job))
            else:
                attempt.sent = None
                await self._advance(attempt, job, move)
        except (IllegalMove, LostLease, UnknownJob) as refused:
            log.warning("The outcome was refused: %s", refused, extra=log_fields(attempt.job))
        self._leave(attempt)

    async def _advance(self, attempt: Attempt, job: Job, move: Move) -> None:
        while True:
            moved = move(job, self._repository.now())
            attempt.job, attempt.sent = job, JobWrite(job, moved)
            [done] = await self._repository.replace([attempt.sent])
            if done:
                return
            attempt.sent = None
            job = await self._repository.find(job.id)

    def _record_later(
        self, batch: Sequence[tuple[Attempt, Move]], error: Exception
    ) -> list[tuple[Attempt, Move]]:
        fault = None if isinstance(error, StoreError) else error
        fields = log_fields(batch[0][0].job)
        words = "%d outcomes could not be written: %s"
        log.warning(words, len(batch), error, exc_info=fault, extra=fields)
        kept: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            if attempt.lapsed():
                self._leave(attempt)
            else:
                kept.append((attempt, move))
        return kept


def _moved(attempt: Attempt, move: Move, now: datetime) -> Job | None:
    """Make the move on the job as this process knows it; None if it is not legal there."""
    try:
        return move(attempt.job, now)
    except (IllegalMove, LostLease):
        return None


def _same_write(found: Job, sent: Job) -> bool:
    """Return whether a stored job is what this process has sent before."""
    return (found.revision, found.status, found.completed_at, found.run_at) == (
        sent.revision,
        sent.status,
        sent.completed_at,
        sent.run_at,
    )
