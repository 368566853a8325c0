"""A worker opens shared resources before its first job, and ends if they are lost."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus
from tests.waiting import until

if TYPE_CHECKING:
    from tests.workers.conftest import Workers

pytestmark = [pytest.mark.anyio, pytest.mark.every_store(without="memory")]

TARGET = "sharing:jobs"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def jobs(workers: Workers) -> AsyncJobs:
    jobs = AsyncJobs(workers.store, dispatcher="worker")

    @jobs.handler("use")
    async def use(_seconds: float, _job: JobContext) -> bool:
        return False

    return jobs


async def test_a_worker_closes_its_resources_after_its_last_job(
    workers: Workers, jobs: AsyncJobs, folder: Path
) -> None:
    worker = workers.start(target=TARGET)
    async with jobs:
        job = await jobs.enqueue("use", 0.3)
        await until((folder / "began").exists)
        worker.send_signal(signal.SIGTERM)
        assert (await jobs.wait(job.id, timeout=60)).result is True
    assert await workers.ended(worker) == 0
    assert (folder / "closed").exists()


async def test_a_worker_whose_lifespan_fails_takes_no_job_and_logs_why(
    workers: Workers, jobs: AsyncJobs, folder: Path
) -> None:
    (folder / "away").touch()
    async with jobs:
        job = await jobs.enqueue("use", 0)
        assert await workers.ended(workers.start(target=TARGET)) == 1
        found = await jobs.find(job.id)
        assert (found.status, found.attempt) == (JobStatus.PENDING, 0)
    await workers.logged("the database is away")
    await workers.logged("Error: The lifespan of the handlers could not be opened")


async def test_a_worker_that_loses_its_resources_ends_with_an_error(
    workers: Workers, jobs: AsyncJobs, folder: Path
) -> None:
    worker = workers.start(target=TARGET)
    async with jobs:
        job = await jobs.enqueue("use", 0)
        assert (await jobs.wait(job.id, timeout=60)).result is True
        (folder / "lost").touch()
        assert await workers.ended(worker) == 1
        later = await jobs.enqueue("use", 0)
        assert (await jobs.find(later.id)).status is JobStatus.PENDING
    await workers.logged("This process starts no more jobs")
