"""A reader of a file closes it, even if its task is cancelled while a thread reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.core.job import JobId
from asyncjobs.files import FolderStorage
from asyncjobs.files.contents import Reading
from tests.queues import QUICK, finished
from tests.waiting import until

SIZE = 3_000_000


class Gated(FolderStorage):
    """Counts the contents that are open for reading, and reads each chunk when the gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = 0
        self.at_gate = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        self.open += 1
        try:
            for chunk in super().read(key, start, stop):
                self.at_gate.set()
                self.gate.wait()
                yield chunk
        finally:
            self.open -= 1

    def shut(self) -> None:
        self.gate.clear()
        self.at_gate.clear()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Gated]:
    gated = Gated(tmp_path / "files")
    yield gated
    gated.gate.set()


@pytest.fixture
async def saved(storage: Gated) -> AsyncIterator[tuple[AsyncJobs, JobId]]:
    jobs = AsyncJobs("memory://", settings=QUICK, files=storage)

    @jobs.handler("export")
    async def export(_none: None, job: JobContext) -> None:
        await job.save_file("export.bin", b"x" * SIZE)

    async with jobs:
        yield jobs, (await finished(jobs, export)).id


async def left(storage: Gated, work: Awaitable[Any]) -> None:
    """Cancel a task while it reads a chunk, which is read a little later; wait for the task."""
    task = asyncio.ensure_future(work)
    await until(storage.at_gate.is_set)
    # Of the task itself, as servers do: no scope of anyio can hold it off.
    task.cancel()
    asyncio.get_running_loop().call_later(0.1, storage.gate.set)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestCancelledReaders:
    async def test_a_file_is_closed_after_the_chunk_that_a_thread_still_reads(
        self, storage: Gated, saved: tuple[AsyncJobs, JobId]
    ) -> None:
        jobs, job_id = saved
        reading = await jobs.read_file(job_id, "export.bin")
        assert reading.take()
        storage.shut()
        await left(storage, closing(reading))
        assert storage.open == 0

    async def test_a_file_is_closed_if_its_first_chunk_is_not_awaited(
        self, storage: Gated, saved: tuple[AsyncJobs, JobId]
    ) -> None:
        jobs, job_id = saved
        storage.shut()
        await left(storage, jobs.read_file(job_id, "export.bin"))
        assert storage.open == 0


async def closing(reading: Reading) -> None:
    try:
        await reading.wait()
    finally:
        await reading.aclose()


@pytest.mark.anyio
async def test_a_closed_file_has_no_more_chunks(
    storage: Gated, saved: tuple[AsyncJobs, JobId]
) -> None:
    jobs, job_id = saved
    reading = await jobs.read_file(job_id, "export.bin")
    assert len(await anext(reading)) < SIZE
    await reading.aclose()
    assert storage.open == 0
    assert [chunk async for chunk in reading] == []
