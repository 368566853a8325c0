"""A job that has ended is retried as a new job, which refers to the old one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    JobContext,
    JobFailed,
    JobStatus,
    Policy,
    Selection,
    handler,
)
from asyncjobs.core.job import JobId
from asyncjobs.errors import IllegalMove, StoreUnavailable, UnknownJob
from asyncjobs.testing import Faults, FaultyStore, ManualClock
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
    assert (new.traceparent, new.fingerprint) == (None, None)
    assert new.idempotency_key != old.idempotency_key


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


async def test_a_job_is_retried_once_and_its_retry_can_be_retried(make: Make) -> None:
    one, other = make(), make()
    runs: list[int] = []

    @handler("fail")
    async def fail(number: int) -> None:
        runs.append(number)
        raise JobFailed("It is bad.")

    one.include(fail)
    other.include(fail)
    async with one, other:
        old = await one.wait((await one.enqueue(fail, 1, user_id="ann")).id, timeout=60)
        made: set[JobId] = set()

        async def retry(jobs: AsyncJobs) -> None:
            made.add((await jobs.retry(old.id)).id)

        async with anyio.create_task_group() as tasks:
            for jobs in (one, other, one, other):
                tasks.start_soon(retry, jobs)
        [first] = [await one.wait(job_id, timeout=60) for job_id in made]
        assert (await other.retry(old.id)).job == first
        second = await one.wait((await one.retry(first.id)).id, timeout=60)
        assert (second.retry_of, second.status) == (first.id, JobStatus.FAILED)
    assert len(runs) == 3


async def test_a_retry_whose_answer_was_lost_is_found_again(make: Make, new_store: Any) -> None:
    store = FaultyStore(new_store())
    jobs = make(store=store, dispatcher="worker")
    kind = jobs.external("print", payload=str, result=str)
    async with jobs:
        old = (await jobs.enqueue(kind, "a")).job
        await jobs.fail(old.id, "No paper.")
        store.faults = Faults(after=1, only=("insert",))
        with pytest.raises(StoreUnavailable):
            await jobs.retry(old.id)
        store.faults = Faults()
        new = (await jobs.retry(old.id)).job
        page = await jobs.list(Selection(type="print"))
    assert {job.id for job in page.jobs} == {old.id, new.id}


async def test_a_job_whose_retry_was_deleted_is_retried_again(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, dispatcher="worker", policy=Policy(retention=timedelta(hours=1)))
    kind = jobs.external("print", payload=str, result=str)
    async with jobs:
        old = (await jobs.enqueue(kind, "a")).job
        await jobs.fail(old.id, "No paper.")
        new = await jobs.retry(old.id)
        await jobs.fail(new.id, "No paper.")
        assert (await jobs.retry(old.id)).id == new.id
        await jobs.store.delete([new.id])
        again = (await jobs.retry(old.id)).job
    assert (again.id != new.id, again.retry_of) == (True, old.id)


async def test_a_job_is_found_for_its_owner_only(jobs: AsyncJobs) -> None:
    kind = jobs.external("print", payload=str, result=str)
    async with jobs:
        own = (await jobs.enqueue(kind, "a", user_id="ann")).job
        anonymous = (await jobs.enqueue(kind, "a")).job
        assert await jobs.find(own.id, user_id="ann") == own
        assert await jobs.find(anonymous.id, user_id=None) == anonymous
        assert await jobs.find(own.id) == own
        for job, user_id in ((own, "bob"), (own, None), (anonymous, "ann")):
            with pytest.raises(UnknownJob):
                await jobs.find(job.id, user_id=user_id)


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
