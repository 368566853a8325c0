"""Many jobs in one call, and jobs that are stored as started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, JobStatus, LocalDispatcher, Policy
from asyncjobs.core.job import Job
from asyncjobs.errors import InvalidPayload, StoreUnavailable
from asyncjobs.protocols import Selection
from asyncjobs.testing import Faults, FaultyStore
from tests.queues import IDLE, QUICK, Make, settled
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


def calls_of(store: FaultyStore, name: str) -> int:
    return sum(call.method == name for call in store.calls)


@pytest.fixture
def counted(new_store: Any) -> FaultyStore:
    return FaultyStore(new_store())


async def test_many_jobs_are_stored_by_one_call_in_their_order(
    make: Make, counted: FaultyStore
) -> None:
    jobs = make(store=counted, dispatcher=LocalDispatcher(5))

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        handles = await jobs.enqueue_many(double, range(450), user_id="ann")
        assert calls_of(counted, "insert") == 1
        assert [await handle.result(timeout=60) for handle in handles[::50]] == [
            100 * number for number in range(9)
        ]
        for handle in handles:
            done = await settled(jobs, handle.id)
            assert (done.status, done.attempt, done.user_id) == (JobStatus.COMPLETED, 1, "ann")
        assert await jobs.enqueue_many(double, []) == []


async def test_one_invalid_payload_among_many_creates_no_job(make: Make) -> None:
    jobs = make(dispatcher="worker")

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        with pytest.raises(InvalidPayload):
            await jobs.enqueue_many("double", [1, 2, "three"])
        assert (await jobs.list(Selection(type="double"))).jobs == []


async def test_many_delayed_jobs_wait_for_their_run_at(make: Make) -> None:
    jobs = make()

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        options = EnqueueOptions(run_at=timedelta(hours=1))
        handles = await jobs.enqueue_many(double, [1, 2], options=options)
        assert [handle.job.status for handle in handles] == [JobStatus.PENDING] * 2
        assert all(handle.job.run_at > handle.job.created_at for handle in handles)


# jobs that are stored as started


async def test_a_job_that_starts_here_is_written_twice(make: Make, counted: FaultyStore) -> None:
    jobs = make(store=counted, settings=IDLE)
    told: list[tuple[str, JobStatus]] = []
    jobs.hooks.observers.append(lambda one: told.append((one.event.value, one.job.status)))

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        handle = await jobs.enqueue(double, 21)
        assert handle.job.status is JobStatus.PENDING  # as it was accepted
        done = await settled(jobs, handle.id)
        assert (done.result, done.attempt, done.version) == (42, 1, 3)
        assert (calls_of(counted, "insert"), calls_of(counted, "replace")) == (1, 1)
    assert told == [
        ("enqueued", JobStatus.PENDING),
        ("started", JobStatus.PROCESSING),
        ("completed", JobStatus.COMPLETED),
    ]


async def test_a_job_with_a_single_delivery_is_stored_as_pending(
    make: Make, counted: FaultyStore
) -> None:
    jobs = make(store=counted, policy=Policy(max_deliveries=1))

    @jobs.handler("once")
    async def once(_none: None, _job: JobContext) -> None: ...

    async with jobs:
        assert (await settled(jobs, (await jobs.enqueue(once)).id)).attempt == 1
    assert calls_of(counted, "replace") == 2  # its start, and its end


@pytest.mark.parametrize("many", [1, 3])
async def test_jobs_stored_without_an_answer_are_released_and_run(
    make: Make, counted: FaultyStore, many: int
) -> None:
    jobs = make(store=counted, settings=QUICK)
    told: list[str] = []
    jobs.hooks.observers.append(lambda one: told.append(one.event.value))

    @jobs.handler("note")
    async def note(_number: int, _job: JobContext) -> None: ...

    async with jobs:
        counted.faults = Faults(after=1, only=["insert"], most=1)
        with pytest.raises(StoreUnavailable):
            await jobs.enqueue_many(note, range(many))
        await until(lambda: told.count("completed") == many)
        for job in (await jobs.list(Selection(type="note"))).jobs:
            done = await settled(jobs, job.id)
            assert (done.status, done.losses, done.releases) == (JobStatus.COMPLETED, 0, 1)
    events = ["enqueued", "started", "released", "started", "completed"]
    assert sorted(told) == sorted(events * many)


async def test_jobs_that_may_not_be_stored_occupy_no_slot(make: Make, counted: FaultyStore) -> None:
    slow = replace(QUICK, lease=timedelta(hours=1), grace=timedelta(hours=1))
    jobs = make(store=counted, dispatcher=LocalDispatcher(2), settings=slow)

    @jobs.handler("note")
    async def note(_none: None, _job: JobContext) -> None: ...

    with anyio.fail_after(PATIENCE_SECONDS):
        async with jobs:
            counted.faults = Faults(before=1, only=["insert"], most=9)
            for _ in range(9):
                with pytest.raises(StoreUnavailable):
                    await jobs.enqueue(note)
            for _ in range(3):
                assert (await settled(jobs, (await jobs.enqueue(note)).id)).losses == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_job_of_a_cancelled_submission_sends_its_events_and_runs(
    make: Make, counted: FaultyStore
) -> None:
    jobs = make(store=counted)
    told: list[str] = []
    jobs.hooks.observers.append(lambda one: told.append(one.event.value))

    @jobs.handler("note")
    async def note(_none: None, _job: JobContext) -> None: ...

    async with jobs:
        task = asyncio.create_task(jobs.enqueue(note))
        await anyio.lowlevel.checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: "completed" in told)
    assert told == ["enqueued", "started", "released", "started", "completed"]


async def test_a_replayed_submission_does_not_start_the_job_again(jobs: AsyncJobs) -> None:
    begun: list[str] = []

    @jobs.handler("note")
    async def note(_none: None, job: JobContext) -> None:
        begun.append(job.id)

    async def submit() -> None:
        made.append((await jobs.enqueue(note, idempotency_key="once")).job)

    made: list[Job] = []
    async with jobs:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(submit)
        [job_id] = {job.id for job in made}
        await settled(jobs, job_id)
        await settled(jobs, (await jobs.enqueue(note)).id)
        assert begun.count(job_id) == 1
