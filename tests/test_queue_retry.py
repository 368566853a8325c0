"""A job that has ended is retried as a new job, which refers to the old one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, JobStatus
from asyncjobs.core.job import JobId
from asyncjobs.errors import IllegalMove, UnknownJob
from tests.queues import Make

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


async def test_the_new_job_has_the_limits_of_the_old_one_and_runs(jobs: AsyncJobs) -> None:
    @jobs.handler("divide", timeout=7)
    async def divide(number: int, _job: JobContext) -> int:
        return 100 // number

    options = EnqueueOptions(deadline=60, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    async with jobs:
        made = (
            await jobs.enqueue(divide, 5, user_id="ann", idempotency_key="k", options=options)
        ).job
        old = await jobs.wait(made.id, timeout=60)
        new = (await jobs.retry(old.id)).job
        done = await jobs.wait(new.id, timeout=60)
        again = (await jobs.enqueue(divide, 5, user_id="ann", idempotency_key="k")).job
        assert await jobs.find(old.id) == old
    assert (done.status, done.result, done.retry_of) == (JobStatus.COMPLETED, 20, old.id)
    assert (done.user_id, done.timeout, done.retry) == ("ann", timedelta(seconds=7), old.retry)
    assert done.deadline - done.created_at == timedelta(seconds=60)
    assert again.id == old.id
    assert new.id != old.id
    assert new.trace_id != old.trace_id
    assert (new.traceparent, new.idempotency_key, new.fingerprint) == (None, None, None)


async def test_a_process_without_the_handler_can_retry_a_job(make: Make) -> None:
    one, other = make(), make(dispatcher="worker")

    @one.handler("echo")
    async def echo(text: str, _job: JobContext) -> str:
        return text

    async with one:
        old = await one.wait((await one.enqueue(echo, "a")).id, timeout=60)
        async with other:
            new = (await other.retry(old.id)).job
        assert (await one.wait(new.id, timeout=60)).result == "a"


async def test_a_retried_external_job_is_external_again(jobs: AsyncJobs) -> None:
    kind = jobs.external("print", payload=str, result=str)
    async with jobs:
        old = (await jobs.enqueue(kind, "a")).job
        await jobs.fail(old.id, "No paper.")
        new = (await jobs.retry(old.id)).job
        done = await jobs.complete(new.id, "printed")
    assert (new.delivery, done.status) == (old.delivery, JobStatus.COMPLETED)


async def test_a_job_that_has_not_ended_cannot_be_retried(make: Make) -> None:
    jobs = make(dispatcher="worker")

    @jobs.handler("echo")
    async def echo(text: str, _job: JobContext) -> str:
        return text

    async with jobs:
        job = (await jobs.enqueue(echo, "a")).job
        with pytest.raises(IllegalMove, match="is pending and cannot be run again"):
            await jobs.retry(job.id)
        with pytest.raises(UnknownJob):
            await jobs.retry(JobId("job_x"))
