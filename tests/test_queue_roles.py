"""Roles of processes: web processes without a worker, and workers for some queues."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus, Policy, Settings
from asyncjobs.core.job import Delivery
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError, NotOpen
from tests.queues import Make

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

QUICK = Settings(poll_interval=timedelta(seconds=0.02), grace=timedelta(hours=1))


def with_queues(jobs: AsyncJobs) -> list[str]:
    """Register one handler per queue; executions are recorded."""
    began: list[str] = []
    for queue in ("slow", "urgent", "plain"):

        @jobs.handler(queue, policy=Policy(queue=queue))
        async def note(text: str, _job: JobContext) -> None:
            began.append(text)

    return began


async def test_jobs_of_a_web_process_run_in_a_worker_only(
    make: Make,
) -> None:
    web, worker = make(dispatcher="worker", settings=QUICK), make(settings=QUICK)
    with_queues(web)
    began = with_queues(worker)
    async with web:
        job = await web.enqueue("plain", "a")
        assert (await web.find(job.id)).status is JobStatus.PENDING
        async with worker.as_worker(concurrency=1):
            done = await web.wait(job.id, timeout=60)
    assert done.status is JobStatus.COMPLETED
    assert began == ["a"]


async def test_as_worker_runs_the_jobs_of_its_own_queue(
    make: Make,
) -> None:
    jobs = make(dispatcher="worker", settings=QUICK)
    began = with_queues(jobs)
    async with jobs.as_worker() as opened:
        job = await opened.enqueue("plain", "a")
        await opened.wait(job.id, timeout=60)
    assert began == ["a"]
    assert not jobs.is_open


async def test_queues_are_served_in_the_given_order(make: Make) -> None:
    web, worker = make(dispatcher="worker"), make(settings=QUICK)
    with_queues(web)
    began = with_queues(worker)
    async with web:
        for number in range(20):
            await web.enqueue("slow", f"slow {number}")
        last = [await web.enqueue("urgent", f"urgent {number}") for number in range(20)]
        async with worker.as_worker(concurrency=1, queues=["urgent", "slow"]):
            for job in last:
                await web.wait(job.id, timeout=60)
    assert began.index("urgent 19") == 19


async def test_unnamed_queues_are_left_to_other_workers(make: Make) -> None:
    web, worker = make(dispatcher="worker"), make(settings=QUICK)
    with_queues(web)
    began = with_queues(worker)
    async with web, worker.as_worker(queues=["urgent"]):
        left = await worker.enqueue("plain", "plain")
        job = await worker.enqueue("urgent", "urgent")
        await web.wait(job.id, timeout=60)
        assert (await web.find(left.id)).status is JobStatus.PENDING
    assert began == ["urgent"]


async def test_without_named_queues_jobs_run_in_submission_order(make: Make) -> None:
    web, worker = make(dispatcher="worker"), make(settings=QUICK)
    with_queues(web)
    began = with_queues(worker)
    async with web:
        wanted = [("slow", "1"), ("urgent", "2"), ("plain", "3"), ("slow", "4")]
        sent = [await web.enqueue(*one) for one in wanted]
        async with worker.as_worker(concurrency=1):
            for job in sent:
                await web.wait(job.id, timeout=60)
    assert began == ["1", "2", "3", "4"]


async def test_hurry_releases_running_jobs_without_waiting(make: Make) -> None:
    jobs = make(settings=QUICK)
    stopped = anyio.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    reader = make(dispatcher="worker")
    started = anyio.Event()
    async with reader:
        with anyio.fail_after(60):
            async with jobs.as_worker():
                job = await jobs.enqueue(endless, None)
                await started.wait()
                jobs.hurry()
        assert stopped.is_set()
        back = await reader.find(job.id)
    assert (back.status, back.attempt, back.losses) == (JobStatus.PENDING, 1, 0)


async def test_invalid_worker_options_are_refused_before_opening(make: Make) -> None:
    jobs = make()
    with pytest.raises(ConfigurationError, match="no handlers"):
        await jobs.as_worker().__aenter__()
    with_queues(jobs)
    with pytest.raises(ConfigurationError, match=r"'nightly' \(known: slow, urgent, plain\)"):
        await jobs.as_worker(queues=["nightly"]).__aenter__()
    with pytest.raises(ConfigurationError, match="at least 1"):
        await jobs.as_worker(concurrency=0).__aenter__()
    with pytest.raises(NotOpen):
        jobs.hurry()
    assert not jobs.is_open


async def test_workers_do_not_run_the_jobs_of_an_engine(make: Make) -> None:
    class Elsewhere(WorkerDispatcher):
        delivery = Delivery.PUSH

    jobs = make(dispatcher=Elsewhere())
    with_queues(jobs)
    with pytest.raises(ConfigurationError, match="Another engine"):
        await jobs.as_worker().__aenter__()
