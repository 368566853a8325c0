"""Writes the outcomes of attempts in batches: the only way by which they reach the store."""

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

# The most outcomes in one write, and about the most bytes of results.
_MAX_BATCH_SIZE = 200
_MAX_BATCH_BYTES = 4 * 1024 * 1024


class Outbox:
    """The outcomes that are not written yet.

    `leave` is called with each attempt whose outcome is written or never will be. Until then the
    attempt keeps its slot and its lease: a slot that is free earlier would lose the retry that
    follows.
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
        """Add the move that records how an attempt ended."""
        self._waiting.append((attempt, move))
        self._new.set()

    async def run(self) -> None:
        """Write outcomes, as many at once as there are. A slot is kept until its outcome is in."""
        while True:
            while self._waiting:
                left = await self._record(self._next_batch())
                # To the front, in their old order: their leases are the next to lapse.
                self._waiting.extendleft(reversed(left))
                if left:
                    await anyio.sleep(self._settings.poll_interval.total_seconds())
            # An outcome that was put during the last write has set the signal.
            await self._new.wait()

    def _next_batch(self) -> list[tuple[Attempt, Move]]:
        batch = [self._waiting.popleft()]
        size = len(batch[0][0].result or b"")
        while self._waiting and len(batch) < _MAX_BATCH_SIZE and size < _MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0].result or b"")
        return batch

    async def _record(self, batch: Sequence[tuple[Attempt, Move]]) -> list[tuple[Attempt, Move]]:
        """Write some outcomes; return those to be written again after an error."""
        now = self._repository.now()
        writes: list[tuple[Attempt, Move, JobWrite]] = []
        alone: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            # An earlier write may have succeeded although its answer was lost: read the job first.
            moved = None if attempt.sent is not None else _moved(attempt, move, now)
            if moved is None:
                alone.append((attempt, move))
            else:
                # Kept before the write: if the answer is lost, the stored job is compared with it.
                attempt.sent = JobWrite(attempt.job, moved)
                writes.append((attempt, move, attempt.sent))
        try:
            written = await self._repository.replace([write for _, _, write in writes])
        except Exception as error:  # noqa: BLE001  # a bug must not block the slots forever
            return self._record_later(batch, error)
        for (attempt, move, _), done in zip(writes, written, strict=True):
            if done:
                self._leave(attempt)
            else:
                # The answer is certain: this outcome is not stored.
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
        """Write one outcome on the newest state of its job."""
        try:
            job = await self._repository.find(attempt.job.id)
            # The earlier write succeeded; without its answer it was not announced.
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
        # A store that is away needs no traceback; a bug does.
        fault = None if isinstance(error, StoreError) else error
        fields = log_fields(batch[0][0].job)
        words = "%d outcomes could not be written: %s"
        log.warning(words, len(batch), error, exc_info=fault, extra=fields)
        kept: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            # Without a lease the outcome would be refused: another worker may have the job.
            if attempt.lapsed():
                self._leave(attempt)
            else:
                kept.append((attempt, move))
        return kept


def _moved(attempt: Attempt, move: Move, now: datetime) -> Job | None:
    """Return the last known state of the job after the move; None if the move is not legal."""
    try:
        return move(attempt.job, now)
    except (IllegalMove, LostLease):
        return None


def _same_write(found: Job, sent: Job) -> bool:
    """Return whether a stored job is the one that this process sent before."""
    # Another process may have written the same revision, but not at the same time.
    return (found.revision, found.status, found.completed_at, found.run_at) == (
        sent.revision,
        sent.status,
        sent.completed_at,
        sent.run_at,
    )
