"""Maintenance: lost workers, missed deadlines and expired jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobStatus,
    Policy,
)
from asyncjobs.core import lifecycle
from asyncjobs.core.job import JobId, Lease
from asyncjobs.core.lifecycle import DEADLINE_EXCEEDED, TIMED_OUT, WORKER_LOST
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.protocols import Change
from asyncjobs.testing import Faults, FaultyStore, ManualClock, sample_job
from tests.queues import IDLE, Make, settled
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]
#: Sweeps all the time, by a clock that only the test moves.
SWEEPING = replace(IDLE, sweep_interval=timedelta(seconds=0.01))


async def abandoned(beside: Any, clock: ManualClock, **submission: object) -> Job:
    """Store a job whose worker has died while running it."""
    now = clock.now()
    job = sample_job(created_at=now, **submission)
    lease = Lease(worker="dead:1", token="t", until=now + timedelta(seconds=30))
    begun = lifecycle.start(job, now, lease)
    await beside.insert([job])
    assert list(await beside.replace([Change(begun, job.revision)])) == [True]
    return begun


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def idle(make: Make, clock: ManualClock) -> AsyncJobs:
    """Make a queue that does nothing by itself."""
    return make(clock=clock, settings=IDLE, dispatcher=LocalDispatcher())


@pytest.fixture
def sweeping(make: Make, clock: ManualClock) -> AsyncJobs:
    return make(clock=clock, settings=SWEEPING)


@pytest.mark.parametrize("max_deliveries", [3, 1])
async def test_the_job_of_a_lost_worker_waits_again_or_fails(
    sweeping: AsyncJobs, beside: Any, clock: ManualClock, max_deliveries: int
) -> None:
    job = await abandoned(beside, clock, max_deliveries=max_deliveries)
    async with sweeping:
        clock.advance(timedelta(seconds=30))
        found = await changed(beside, job)
    assert found.losses == 1
    if max_deliveries == 1:
        assert (found.status, found.error) == (JobStatus.FAILED, WORKER_LOST)
    else:
        assert (found.status, found.lane) == (JobStatus.PENDING, "default")


async def changed(store: Any, job: Job) -> Job:
    """Return the stored job when a process has changed it, without repairing it as readers do."""

    async def is_changed() -> bool:
        [found] = await store.get([job.id])
        return bool(found.revision > job.revision)

    await until(is_changed)
    [found] = await store.get([job.id])
    assert isinstance(found, Job)
    return found


async def test_a_reader_repairs_what_it_reads(
    idle: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    job = await abandoned(beside, clock)
    async with idle:
        clock.advance(timedelta(days=2))
        found = await idle.find(job.id)
    assert (found.status, found.error) == (JobStatus.FAILED, DEADLINE_EXCEEDED)
    assert await beside.get([job.id]) == [found]


async def test_concurrent_readers_repair_once(
    idle: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    job = await abandoned(beside, clock)
    async with idle:
        clock.advance(timedelta(days=2))
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(idle.find, job.id)
    [left] = await beside.get([job.id])
    assert left.revision == job.revision + 1


async def test_a_repair_that_comes_too_late_reads_again(
    make: Make, store: Any, beside: Any, clock: ManualClock
) -> None:
    racing = Racing(store)
    idle = make(store=racing, clock=clock, settings=IDLE)
    job = await abandoned(beside, clock)
    async with idle:
        clock.advance(timedelta(days=2))
        racing.winner = Change(lifecycle.cancel(job, clock.now()), job.revision)
        found = await idle.find(job.id)
        assert found.status is JobStatus.CANCELLED
        assert found.cancel_requested_at is not None
        gone = await abandoned(beside, clock)
        clock.advance(timedelta(days=2))
        racing.gone = gone
        assert await idle.get(gone.id) is None


class Racing(FaultyStore):
    """Lets another process write just before the next change."""

    winner: Change | None = None
    gone: Job | None = None

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        if self.winner is not None:
            assert list(await super().replace([self.winner])) == [True]
            self.winner = None
        if self.gone is not None:
            await self.delete([self.gone.id])
        return await super().replace(changes)


async def test_an_old_result_is_hidden_from_readers_and_deleted_by_a_sweep(
    idle: AsyncJobs, sweeping: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    brief = Policy(retention=timedelta(hours=1))
    kind = idle.external("old", payload=int, result=int, policy=brief)
    async with idle:
        job = await idle.enqueue(kind, 1)
        await idle.complete(job.id, 1)
        clock.advance(timedelta(hours=1))
        assert await idle.get(job.id) is None
        assert await beside.get([job.id]) != [None]
    async with sweeping:
        await until(lambda: is_deleted(beside, job.id))


async def is_deleted(store: Any, job_id: JobId) -> bool:
    return bool(await store.get([job_id]) == [None])


async def test_a_watch_ends_when_its_job_is_deleted(jobs: AsyncJobs, beside: Any) -> None:
    kind = jobs.external("watched", payload=int, result=int)
    async with jobs:
        job = await jobs.enqueue(kind, 1)
        watch = jobs.subscribe(job.id)
        await anext(watch)
        await beside.delete([job.id])
        with anyio.fail_after(60):
            assert [update async for update in watch] == []


async def test_external_work_has_a_timeout_too(
    sweeping: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    kind = sweeping.external("render", payload=int, result=int, timeout=60)
    async with sweeping:
        job = await sweeping.enqueue(kind, 1)
        begun = await sweeping.update_progress(job.id, 5)
        clock.advance(timedelta(seconds=60))
        found = await changed(beside, begun)
    assert found.error == TIMED_OUT


async def test_deadlines_are_enforced_in_lanes_without_workers(
    make: Make, beside: Any, clock: ManualClock
) -> None:
    web = make(clock=clock, settings=IDLE, dispatcher="worker")

    @web.handler("slow")
    async def slow(_none: None, _job: JobContext) -> None: ...

    async with web:
        options = [EnqueueOptions(deadline=seconds) for seconds in (3600, 30, 3600)]
        waiting = [(await web.enqueue(slow, None, options=one)).job for one in options]
    clock.advance(timedelta(seconds=90))
    async with web:  # starts with a sweep
        await changed(beside, waiting[2])  # put back when all have been seen
    found = await beside.get([job.id for job in waiting])
    assert [job.error for job in found] == [None, DEADLINE_EXCEEDED, None]
    assert [job.due_at for job in found][::2] == [job.run_at for job in waiting][::2]


async def test_maintenance_continues_after_an_outage_of_the_store(
    make: Make, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    away = FaultyStore(store, Faults(before=1, only=["take"]))
    jobs = make(store=away)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        await until(lambda: sum(call.method == "take" for call in away.calls) > 3)
        away.faults = Faults()
        job = await jobs.enqueue(double, 4, options=EnqueueOptions(run_at=0.01))
        assert await job.result(timeout=60) == 8
    assert "Maintenance failed" in caplog.text
    assert "could not be taken" in caplog.text


async def test_jobs_of_a_dead_process_are_run(make: Make, beside: Any) -> None:
    jobs = make()

    @jobs.handler("export")
    async def export(_payload: object, job: JobContext) -> int:
        return job.attempt

    now = jobs.clock.now()
    waiting = sample_job(created_at=now)
    await beside.insert([waiting])
    begun = await abandoned(beside, ManualClock(now - timedelta(minutes=1)))
    async with jobs:
        assert (await settled(jobs, waiting.id)).result == 1
        assert (await settled(jobs, begun.id)).result == 2


async def test_an_error_in_a_background_loop_does_not_end_the_application(
    make: Make, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    buggy = Buggy(store)
    jobs = make(store=buggy)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        with anyio.fail_after(60):
            await buggy.hit.wait()
        assert await (await jobs.enqueue(double, 4)).result(timeout=60) == 8
    assert "An internal loop failed" in caplog.text


class Buggy(FaultyStore):
    """Has a bug that raises once."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.hit = anyio.Event()

    async def take(self, lanes: Sequence[str], /, **options: object) -> Sequence[Job]:
        if not self.hit.is_set():
            self.hit.set()
            raise ZeroDivisionError
        return await super().take(lanes, **options)  # type: ignore[arg-type]
