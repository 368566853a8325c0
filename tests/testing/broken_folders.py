"""Folder stores that are only atomic within one opener or within one process.

A second process creates them by name, so they are in a separate module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from anyio.to_thread import run_sync

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import (
    Append,
    Appended,
    Chunk,
    OutputPart,
    ReadFrom,
    StreamInfo,
    StreamKind,
)
from asyncjobs.protocols import Change, OutputStreams
from custom_store import FolderStore

T = TypeVar("T")

_LOCK = threading.Lock()

# Between a broken call's read and its write, other calls run.
_PAUSE_SECONDS = 0.002


class TakesInTwoSteps(FolderStore):
    """Finds due jobs in one step, and moves them in another, under a lock of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        def take() -> Sequence[Job]:
            with self.lock:
                due = self._alone(lambda: self._due(lanes, now, limit))
                time.sleep(_PAUSE_SECONDS)
                return self._alone(lambda: [self._move(job, until) for job in due])

        return await run_sync(take)

    def _due(self, lanes: Sequence[str], now: datetime, limit: int) -> list[Job]:
        jobs = self._take(lanes, now, now, limit)
        return jobs[:limit]

    def _move(self, job: Job, until: datetime) -> Job:
        record = self._record(job.id)
        assert record is not None
        moved = job.changed(due_at=until)
        self._write(job.id, type(record).of(moved, record.order), before=record)
        return moved

    def _alone(self, work: Callable[[], T]) -> T:
        return self._locked(lambda _: work())


class TakesUnderALockOfItsProcess(TakesInTwoSteps):
    """Does the same under a lock that all openers of one process share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = _LOCK


class ReplacesInTwoSteps(FolderStore):
    """Compares the revision in one step, and writes in another, under a lock of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        def replace() -> Sequence[bool]:
            with self.lock:
                return [self._compare_then_write(change) for change in changes]

        return await run_sync(replace)

    def _compare_then_write(self, change: Change) -> bool:
        found = self._locked(lambda _: self._record(change.job.id))
        if found is None or found.revision != change.expected_revision:
            return False
        time.sleep(_PAUSE_SECONDS)
        new = type(found).of(change.job, found.order)
        self._locked(lambda _: self._write(change.job.id, new, before=found))
        return True


class ReplacesUnderALockOfItsProcess(ReplacesInTwoSteps):
    """Does the same under a lock that all openers of one process share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = _LOCK


class InsertsInTwoSteps(FolderStore):
    """Looks up the key in one step, and adds the job in another, under a lock of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        def insert() -> Sequence[Job]:
            with self.lock:
                return [self._look_then_add(job) for job in jobs]

        return await run_sync(insert)

    def _look_then_add(self, job: Job) -> Job:
        key = self._key(job.user_id, job.type, job.idempotency_key)
        if key is not None and key.exists():
            return self._locked(lambda lock: self._insert(job, lock))
        time.sleep(_PAUSE_SECONDS)
        return self._locked(lambda lock: self._insert_whatever_is_there(job, key, lock))

    def _insert_whatever_is_there(self, job: Job, key: Path | None, lock: int) -> Job:
        if key is not None:
            key.unlink(missing_ok=True)
        return self._insert(job, lock)


class InsertsUnderALockOfItsProcess(InsertsInTwoSteps):
    """Does the same under a lock that all openers of one process share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = _LOCK


class KeepsOutput(FolderStore):
    """Keeps what is appended in a file of the job."""

    powers = FolderStore.powers | {OutputStreams}

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        def append() -> list[Appended]:
            return self._locked(lambda _: [Appended(self._append(one)) for one in appends])

        return await run_sync(append)

    def _append(self, one: Append) -> int:
        file = self._output_of(one.job_id)
        stored = file.read_bytes() if file.exists() else b""
        time.sleep(_PAUSE_SECONDS)
        file.write_bytes(stored + one.data)
        return len(stored + one.data)

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        raise NotImplementedError

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        return [self._read_output(self._output_of(one.job_id).read_bytes()) for one in reads]

    def _read_output(self, stored: bytes) -> OutputPart:
        places = range(0, len(stored), 2)
        chunks = tuple(Chunk(place, 2, 1, stored[place : place + 2]) for place in places)
        return OutputPart(StreamKind.TEXT, chunks, len(stored), 1)

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        raise NotImplementedError

    def _output_of(self, job_id: JobId) -> Path:
        return self._folder / f"{job_id}.output"


class AppendsUnderALockOfItsProcess(KeepsOutput):
    """Reads the end of a stream, and writes there, under a lock that one process shares."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        def append() -> list[Appended]:
            with _LOCK:
                return [Appended(self._append(one)) for one in appends]

        return await run_sync(append)


class KeepsAFolderPerOpener(FolderStore):
    """Shares nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / f"{id(self)}")
