"""Whoever carries jobs in an engine's own event loop may be cancelled by it, and outlives it."""

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
from asyncjobs.testing.dispatcher_conformance import until
from asyncjobs.testing.dispatcher_handlers import began, register, release

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


class Silent(WorkerDispatcher):
    """An engine that is told nothing: the test delivers."""

    delivery = Delivery.PUSH


@asynccontextmanager
async def opened() -> AsyncGenerator[tuple[AsyncJobs, AsyncMessageRunner]]:
    jobs = AsyncJobs("memory://", dispatcher=Silent(), settings=BRISK)
    register(jobs)
    residence = AsyncMessageRunner(jobs, "asyncjobs")
    await residence.open()
    try:
        yield jobs, residence
    finally:
        await residence.close()


def message_of(job: Job) -> dict[str, str]:
    return {"namespace": "asyncjobs", "id": job.id}


async def test_a_job_whose_carrier_is_cancelled_is_given_back_at_no_cost(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, residence):
        job = (await jobs.enqueue("hold", path)).job
        carrier = asyncio.create_task(residence.run(message_of(job)))
        await until(lambda: began(path) == 1, PATIENCE)
        carrier.cancel()
        with pytest.raises(asyncio.CancelledError):
            await carrier
        given_back = await jobs.find(job.id)
        assert (given_back.status, given_back.losses) == (JobStatus.PENDING, 0)
        release(path)
        await residence.run(message_of(job))
        assert (await jobs.find(job.id)).status is JobStatus.COMPLETED


async def test_a_carrier_that_is_cancelled_twice_gives_its_job_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, residence):
        job = (await jobs.enqueue("hold", path)).job
        carrier = asyncio.create_task(residence.run(message_of(job)))
        await until(lambda: began(path) == 1, PATIENCE)
        carrier.cancel()
        await asyncio.sleep(0)
        carrier.cancel()
        with pytest.raises(asyncio.CancelledError):
            await carrier
        await residence.close()
        async with jobs:
            assert (await jobs.find(job.id)).status is JobStatus.PENDING


async def test_a_time_limit_around_a_carrier_does_not_end_the_job(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, residence):
        job = (await jobs.enqueue("hold", path)).job
        with anyio.move_on_after(0.2):
            await residence.run(message_of(job))
        given_back = await jobs.find(job.id)
    assert (given_back.status, given_back.losses, began(path)) == (JobStatus.PENDING, 0, 1)


async def test_jobs_that_run_when_a_residence_is_closed_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "job"
    async with opened() as (jobs, residence):
        job = (await jobs.enqueue("hold", path)).job
        carrier = asyncio.create_task(residence.run(message_of(job)))
        await until(lambda: began(path) == 1, PATIENCE)
        await residence.close()
        await carrier
        async with jobs:
            given_back = await jobs.find(job.id)
    assert (given_back.status, given_back.losses) == (JobStatus.PENDING, 0)


async def test_a_worker_whose_store_is_away_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = AsyncJobs(f"sqlite:///{tmp_path}/missing/jobs.db", dispatcher=Silent())
    residence = AsyncMessageRunner(jobs, "asyncjobs")
    assert not await residence.try_open()
    await residence.run({"namespace": "asyncjobs", "id": "job_x"})
    assert len(caplog.records) == 2
    await residence.close()
