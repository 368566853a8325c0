"""A handle follows one job: its states, its end and its result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext, JobHandle, JobQueue, JobStatus
from asyncjobs.errors import InvalidResult, JobUnsuccessful, UnknownJob

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


class Sum(BaseModel):
    total: int


async def test_a_handle_returns_the_result_as_the_type_of_the_handler(jobs: AsyncJobs) -> None:
    @jobs.handler("add")
    async def add(numbers: list[int], _job: JobContext) -> Sum:
        return Sum(total=sum(numbers))

    async with jobs:
        handle = await jobs.enqueue(add, [1, 2])
        assert await handle.result() == Sum(total=3)
        assert (await handle.wait()).result == {"total": 3}
        by_name: JobHandle[Any] = await jobs.enqueue("add", [1, 2])
        assert await by_name.result() == Sum(total=3)
    assert (handle.id, handle.job.status) == (handle.job.id, JobStatus.PENDING)
    assert repr(handle) == f"<JobHandle {handle.id} (add)>"


async def test_a_handle_without_a_handler_returns_the_result_as_json(jobs: AsyncJobs) -> None:
    @jobs.handler("add")
    async def add(numbers: list[int], _job: JobContext) -> Sum:
        return Sum(total=sum(numbers))

    async with jobs:
        old = await jobs.enqueue(add, [1, 2])
        await old.result()
        assert await (await jobs.retry(old.id)).result() == {"total": 3}


async def test_the_result_of_an_unsuccessful_job_raises_with_that_job(jobs: AsyncJobs) -> None:
    kind = jobs.external("import", payload=int, result=int)
    async with jobs:
        failed, cancelled = [await jobs.enqueue(kind, number) for number in range(2)]
        await jobs.fail(failed.id, "No such file.")
        with pytest.raises(JobUnsuccessful, match=r"\(import\) failed: No such file\.") as raised:
            await failed.result()
        assert raised.value.job == await jobs.find(failed.id)
        assert (await cancelled.cancel()).status is JobStatus.CANCELLED
        with pytest.raises(JobUnsuccessful, match=r"\(import\) was cancelled") as raised:
            await cancelled.result()
        assert raised.value.job.status is JobStatus.CANCELLED


@pytest.mark.parametrize("timeout", [0.01, timedelta(seconds=0.01)])
async def test_a_wait_for_a_running_job_ends_after_its_timeout(
    jobs: AsyncJobs, timeout: float | timedelta
) -> None:
    kind = jobs.external("import", payload=int, result=int)
    async with jobs:
        handle = await jobs.enqueue(kind, 1)
        assert await handle.wait(timeout=timeout) == handle.job
        assert await jobs.wait(handle.id, timeout=timeout) == handle.job
        assert await jobs.next_change(handle.id, timeout=timeout) == handle.job
        with pytest.raises(TimeoutError, match=rf"{handle.id} \(import\) is pending"):
            await handle.result(timeout=timeout)
        assert await jobs.find(handle.id) == handle.job


async def test_a_result_that_does_not_match_the_type_raises_invalid_result(
    jobs: AsyncJobs, make: Any
) -> None:
    old = jobs.external("import", payload=int, result=str)
    later = make()
    new = later.external("import", payload=int, result=int)
    async with jobs, later:
        await jobs.complete((await jobs.enqueue(old, 1, idempotency_key="k")).id, "many")
        with pytest.raises(InvalidResult):
            await (await later.enqueue(new, 1, idempotency_key="k")).result()


async def test_a_handle_of_a_deleted_job_raises_unknown_job(jobs: AsyncJobs, beside: Any) -> None:
    kind = jobs.external("import", payload=int, result=int)
    async with jobs:
        handle = await jobs.enqueue(kind, 1)
        await beside.delete([handle.id])
        for verb in (handle.wait, handle.result, handle.cancel):
            with pytest.raises(UnknownJob):
                await verb()


async def test_a_handle_iterates_over_the_states_of_its_job(jobs: AsyncJobs) -> None:
    kind = jobs.external("import", payload=int, result=int)
    async with jobs:
        handle = await jobs.enqueue(kind, 1)
        seen: list[tuple[JobStatus, int]] = []
        with anyio.fail_after(60):
            async for job in handle:
                seen.append((job.status, job.progress))
                if job.status is JobStatus.PENDING:
                    await jobs.update_progress(handle.id, 40)
                elif job.progress == 40:
                    await jobs.complete(handle.id, 7)
    assert seen[0] == (JobStatus.PENDING, 0)
    assert (JobStatus.PROCESSING, 40) in seen
    assert seen[-1] == (JobStatus.COMPLETED, 100)


async def test_a_handle_of_a_running_job_asks_it_to_stop(jobs: AsyncJobs) -> None:
    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        began.set()
        await anyio.sleep_forever()

    began = anyio.Event()
    async with jobs:
        handle = await jobs.enqueue(endless, None)
        await began.wait()
        asked = await handle.cancel()
        assert asked.cancel_requested_at is not None
        assert (await handle.wait(timeout=60)).status is JobStatus.CANCELLED


@pytest.mark.parametrize("catches", [False, True])
async def test_a_handler_that_awaits_a_cancelled_job_is_not_cancelled_itself(
    jobs: AsyncJobs, *, catches: bool
) -> None:
    child = jobs.external("child", payload=int, result=int)
    children: list[JobHandle[int]] = []
    begun = anyio.Event()

    @jobs.handler("parent")
    async def parent(_none: None, _job: JobContext) -> int:
        children.append(await jobs.enqueue(child, 1))
        begun.set()
        try:
            return await children[0].result()
        except Exception:
            if catches:
                return 0
            raise

    async with jobs:
        handle = await jobs.enqueue(parent, None)
        await begun.wait()
        await children[0].cancel()
        done = await handle.wait(timeout=60)
    if catches:
        assert (done.status, done.result) == (JobStatus.COMPLETED, 0)
    else:
        assert done.status is JobStatus.FAILED
        assert done.error is not None
        assert done.error.code == "internal_error"


async def test_the_queue_protocol_returns_handles(jobs: AsyncJobs) -> None:
    queue: JobQueue = jobs
    kind = jobs.external("import", payload=int, result=int)
    async with jobs:
        handle = await queue.enqueue(kind, 1)
        assert await queue.get(handle.id) == handle.job
