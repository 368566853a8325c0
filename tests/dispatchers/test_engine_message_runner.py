"""A message in the event loop of an engine's worker may be cancelled by the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs, Job
from asyncjobs.core.job import Delivery, JobStatus
from asyncjobs.dispatchers.engines.messages import AsyncMessageRunner
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import began, register, release
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class NoEngine(WorkerDispatcher):
    """Sends nothing: the test delivers."""

    delivery = Delivery.PUSH


@asynccontextmanager
async def opened() -> AsyncGenerator[tuple[AsyncJobs, AsyncMessageRunner]]:
    jobs = AsyncJobs("memory://", dispatcher=NoEngine(), settings=BRISK)
    register(jobs)
    runner = AsyncMessageRunner(jobs, "asyncjobs")
    await runner.open()
    try:
        yield jobs, runner
    finally:
        await runner.close()


def message_of(job: Job) -> dict[str, str]:
    return {"namespace": "asyncjobs", "id": job.id}


async def test_a_job_of_a_cancelled_message_is_released_without_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, runner):
        job = (await jobs.enqueue("hold", path)).job
        running = asyncio.create_task(runner.run(message_of(job)))
        await until(lambda: began(path) == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        given_back = await jobs.find(job.id)
        assert (given_back.status, given_back.losses) == (JobStatus.PENDING, 0)
        release(path)
        await runner.run(message_of(job))
        assert (await jobs.find(job.id)).status is JobStatus.COMPLETED


async def test_a_message_that_is_cancelled_twice_releases_its_job(
    tmp_path: Path,
) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, runner):
        job = (await jobs.enqueue("hold", path)).job
        running = asyncio.create_task(runner.run(message_of(job)))
        await until(lambda: began(path) == 1)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await runner.close()
        async with jobs:
            assert (await jobs.find(job.id)).status is JobStatus.PENDING


async def test_a_time_limit_of_the_engine_does_not_end_the_job(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, runner):
        job = (await jobs.enqueue("hold", path)).job
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as limit:
                tasks.start_soon(cancel_when_started, limit, path)
                await runner.run(message_of(job))
        given_back = await jobs.find(job.id)
    assert (given_back.status, given_back.losses, began(path)) == (JobStatus.PENDING, 0, 1)


async def test_running_jobs_are_released_when_the_runner_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, runner):
        job = (await jobs.enqueue("hold", path)).job
        running = asyncio.create_task(runner.run(message_of(job)))
        await until(lambda: began(path) == 1)
        await runner.close()
        await running
        async with jobs:
            given_back = await jobs.find(job.id)
    assert (given_back.status, given_back.losses) == (JobStatus.PENDING, 0)


async def test_an_unavailable_store_raises_no_error_in_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = AsyncJobs(f"sqlite:///{tmp_path}/missing/jobs.db", dispatcher=NoEngine())
    runner = AsyncMessageRunner(jobs, "asyncjobs")
    assert not await runner.try_open()
    await runner.run({"namespace": "asyncjobs", "id": "job_x"})
    assert len(caplog.records) == 2
    await runner.close()


async def cancel_when_started(limit: anyio.CancelScope, path: Path) -> None:
    await until(lambda: began(path) == 1)
    limit.cancel()
