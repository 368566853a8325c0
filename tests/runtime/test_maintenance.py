"""What happens to jobs that nobody looks after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Self

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobStatus,
    Policy,
    Settings,
)
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Delivery, Lease
from asyncjobs.core.lifecycle import DEADLINE_EXCEEDED, WORKER_LOST
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.protocols import Change
from asyncjobs.testing import Faults, FaultyStore, ManualClock, sample_job

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]
Make = Callable[..., AsyncJobs]

IDLE = Settings(
    poll_interval=timedelta(hours=1), sweep_interval=timedelta(hours=1), grace=timedelta(0)
)


async def abandoned(beside: Any, clock: ManualClock, **submission: object) -> Job:
    """Store a job whose worker has died in the middle of it."""
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
    """Make a queue that does nothing by itself, so that a test makes each step."""
    return make(clock=clock, settings=IDLE, dispatcher=LocalDispatcher())


async def test_a_lost_worker_s_job_waits_again(
    idle: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    job = await abandoned(beside, clock)
    async with idle:
        await anyio.wait_all_tasks_blocked()  # the sweep that a queue begins with has looked
        clock.advance(timedelta(seconds=30))
        assert await idle._running.maintenance.sweep() == 1
        found = await idle.find(job.id)
    assert (found.status, found.losses, found.lane) == (JobStatus.PENDING, 1, "default")


async def test_a_job_that_kills_its_workers_ends(
    idle: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    job = await abandoned(beside, clock, max_deliveries=1)
    async with idle:
        clock.advance(timedelta(seconds=30))
        await idle._running.maintenance.sweep()
        assert (await idle.find(job.id)).error == WORKER_LOST


async def test_a_reader_repairs_what_it_reads(
    idle: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    job = await abandoned(beside, clock)
    async with idle:
        clock.advance(timedelta(days=2))
        found = await idle.find(job.id)
    assert (found.status, found.error) == (JobStatus.FAILED, DEADLINE_EXCEEDED)
    assert await beside.get([job.id]) == [found]


async def test_readers_that_race_repair_once(
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
    """Lets somebody else write just before the next change."""

    winner: Change | None = None
    gone: Job | None = None

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        if self.winner is not None:
            assert list(await super().replace([self.winner])) == [True]
            self.winner = None
        if self.gone is not None:
            await self.delete([self.gone.id])
        return await super().replace(changes)


async def test_an_old_result_is_forgotten(idle: AsyncJobs, beside: Any, clock: ManualClock) -> None:
    kind = idle.external(
        "old", payload=int, result=int, policy=Policy(retention=timedelta(hours=1))
    )
    async with idle:
        job = (await idle.enqueue(kind, 1)).job
        await idle.complete(job.id, 1)
        clock.advance(timedelta(hours=1))
        assert await idle.get(job.id) is None
        assert await beside.get([job.id]) != [None]
        watch = idle.subscribe((await idle.enqueue(kind, 2)).id)
        await anext(watch)
        await idle._running.maintenance.sweep()
    assert await beside.get([job.id]) == [None]


async def test_who_watches_a_job_hears_that_it_is_gone(idle: AsyncJobs) -> None:
    kind = idle.external("watched", payload=int, result=int)
    async with idle:
        job = (await idle.enqueue(kind, 1)).job
        watch = idle.subscribe(job.id)
        await anext(watch)
        await idle._running.repository.forget([job.id])
        with anyio.fail_after(60):
            assert [update async for update in watch] == []


async def test_outside_work_has_its_timeout_too(idle: AsyncJobs, clock: ManualClock) -> None:
    kind = idle.external("render", payload=int, result=int, timeout=60)
    async with idle:
        job = (await idle.enqueue(kind, 1)).job
        await idle.update_progress(job.id, 5)
        clock.advance(timedelta(seconds=60))
        await idle._running.maintenance.sweep()
        found = await idle.find(job.id)
    assert found.error is not None
    assert found.error.code == "timeout"


async def test_a_deadline_is_kept_in_a_lane_that_nobody_empties(
    make: Make, beside: Any, clock: ManualClock
) -> None:
    web = make(clock=clock, settings=IDLE, dispatcher="worker")

    @web.handler("slow")
    async def slow(_none: None, _job: JobContext) -> None: ...

    async with web:
        options = [EnqueueOptions(deadline=seconds) for seconds in (3600, 30, 3600)]
        waiting = [(await web.enqueue(slow, None, options=one)).job for one in options]
        clock.advance(timedelta(seconds=90))
        await web._running.maintenance.sweep_neglected(["default"])
        found = await beside.get([job.id for job in waiting])
    assert [job.error for job in found] == [None, DEADLINE_EXCEEDED, None]
    assert [job.due_at for job in found][::2] == [job.run_at for job in waiting][::2]


class Engine:
    """A dispatcher to an engine outside, which remembers what it was told."""

    delivery = Delivery.PUSH

    def __init__(self) -> None:
        self.told: list[str] = []
        self.away = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def reservation(self) -> Reserved:
        return Reserved()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if self.away:
            raise ConnectionError("the broker is away")
        self.told.extend(job.id for job in jobs)


class Reserved:
    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        return None


async def test_a_lost_hand_off_is_made_again(
    make: Make, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = Engine()
    web = make(clock=clock, settings=IDLE, dispatcher=engine)

    @web.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with web:
        engine.away = True
        job = (await web.enqueue(double, 4)).job
        assert "could not be dispatched" in caplog.text
        engine.away = False
        clock.advance(IDLE.redelivery)
        await web._running.maintenance.sweep()
        assert engine.told == [job.id]
        assert "dispatched again" in caplog.text
        await web.run(job.id)
        await web.run(job.id)
        assert (await web.find(job.id)).result == 8


async def test_housekeeping_outlives_a_store_that_is_away(
    make: Make, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    away = FaultyStore(store, Faults(before=1, only=["take"]))
    jobs = make(store=away)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        with anyio.fail_after(60):
            while sum(call.method == "take" for call in away.calls) < 4:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            away.faults = Faults()
            job = (
                await jobs.enqueue(double, 4, options=EnqueueOptions(run_at=timedelta(0.0000001)))
            ).job
            assert (await jobs.wait(job.id)).result == 8
    assert "Maintenance could not be done" in caplog.text
    assert "could not be taken" in caplog.text


async def test_what_a_dead_process_left_is_taken_up(make: Make, beside: Any) -> None:
    jobs = make()

    @jobs.handler("export")
    async def export(_payload: object, job: JobContext) -> int:
        return job.attempt

    now = jobs.clock.now()
    waiting = sample_job(created_at=now)
    await beside.insert([waiting])
    begun = await abandoned(beside, ManualClock(now - timedelta(minutes=1)))
    async with jobs:
        assert (await jobs.wait(waiting.id, timeout=60)).result == 1
        assert (await jobs.wait(begun.id, timeout=60)).result == 2


async def test_a_bug_in_a_loop_does_not_end_the_application(
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
        job = (await jobs.enqueue(double, 4)).job
        assert (await jobs.wait(job.id, timeout=60)).result == 8
    assert "begins anew" in caplog.text


class Buggy(FaultyStore):
    """Has a bug that shows once."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.hit = anyio.Event()

    async def take(self, lanes: Sequence[str], /, **options: object) -> Sequence[Job]:
        if not self.hit.is_set():
            self.hit.set()
            raise ZeroDivisionError
        return await super().take(lanes, **options)  # type: ignore[arg-type]
