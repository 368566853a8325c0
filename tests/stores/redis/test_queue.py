"""Queues of several processes on one Redis server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus, Settings
from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.redis import RedisStore
from tests.waiting import until

pytestmark = pytest.mark.anyio

NO_POLLING = Settings(poll_interval=timedelta(hours=1), sweep_interval=timedelta(hours=1))
QUICK = Settings(
    lease=timedelta(seconds=1),
    redelivery=timedelta(seconds=1),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    grace=timedelta(seconds=1),
)


async def test_other_processes_start_a_job_and_notice_its_end_at_once(
    redis_url: str, namespace: str
) -> None:
    url = f"{redis_url}?namespace={namespace}"
    desk = AsyncJobs(url, dispatcher="worker", settings=NO_POLLING)
    works = AsyncJobs(url, settings=NO_POLLING)
    for jobs in (desk, works):
        jobs.handler("double")(double)
    async with desk, works:
        with anyio.fail_after(60):  # out of an hour between two polls
            for number in range(20):
                job = (await desk.enqueue("double", number)).job
                assert (await desk.wait(job.id)).result == 2 * number


async def test_a_cancellation_reaches_the_process_that_runs_the_job(
    redis_url: str, namespace: str
) -> None:
    url = f"{redis_url}?namespace={namespace}"
    desk = AsyncJobs(url, dispatcher="worker", settings=NO_POLLING)
    works = AsyncJobs(url, settings=NO_POLLING)
    for jobs in (desk, works):
        jobs.handler("endless")(endless)
    async with desk, works:
        with anyio.fail_after(60):
            job = (await desk.enqueue("endless", None)).job
            await desk.next_change(job.id, after=job.version)
            await desk.cancel(job.id)
            assert (await desk.wait(job.id)).status is JobStatus.CANCELLED


async def test_a_killed_server_loses_no_accepted_job_and_needs_no_restart(
    serve: Callable[..., Any],
) -> None:
    server = serve("--appendonly", "yes", "--appendfsync", "always")
    accepted: list[JobId] = []
    refused: list[StoreUnavailable] = []
    up = anyio.Event()
    jobs = AsyncJobs(RedisStore(server.url, timeout=1), settings=QUICK)
    jobs.handler("double")(double)

    async def customer() -> None:
        while not up.is_set() or len(accepted) < 500:
            try:
                accepted.append((await jobs.enqueue("double", len(accepted))).id)
            except StoreUnavailable as error:
                refused.append(error)
                await anyio.lowlevel.checkpoint()

    async with jobs:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(16):
                    tasks.start_soon(customer)
                for _ in range(2):
                    known = len(accepted)
                    await until(lambda: len(accepted) >= known + 100)  # noqa: B023
                    await anyio.to_thread.run_sync(server.kill)
                    known = len(refused)
                    await until(lambda: len(refused) >= known + 16)  # noqa: B023
                    await anyio.to_thread.run_sync(server.start)
                up.set()
            done = [await jobs.wait(job_id) for job_id in accepted]
    assert {job.status for job in done} == {JobStatus.COMPLETED}
    assert len({job.id for job in done}) == len(accepted)
    assert all(error.__cause__ is not None for error in refused)


async def double(number: int, _job: JobContext) -> int:
    return 2 * number


async def endless(_none: None, _job: JobContext) -> None:
    await anyio.sleep_forever()
