"""The dispatcher of a process that runs its own jobs: slots, and places in its waiting line."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from asyncjobs import Job, JobContext, JobStatus, LocalDispatcher
from asyncjobs.core.job import new_job_id
from asyncjobs.testing import sample_job
from tests.queues import Make, settled

pytestmark = pytest.mark.anyio


async def test_a_job_that_is_offered_while_it_ends_here_is_run_again() -> None:
    dispatcher = LocalDispatcher(concurrency=1)
    begun: list[int] = []
    slots: list[Callable[[], None]] = []
    job = sample_job()

    def begin(given: Job, freed: Callable[[], None]) -> None:
        begun.append(given.revision)
        slots.append(freed)

    dispatcher.open(begin)
    assert dispatcher.offer(job)
    assert dispatcher.offer(job.model_copy(update={"revision": 3}))
    slots.pop()()
    assert begun == [1, 3]
    slots.pop()()
    with anyio.fail_after(60):
        await dispatcher.wait_until_idle()


async def test_a_waiting_job_that_is_offered_again_is_kept_once(make: Make) -> None:
    dispatcher = LocalDispatcher(concurrency=1)
    jobs = make(dispatcher=dispatcher)
    let_go = anyio.Event()

    @jobs.handler("gate")
    async def gate(_none: None, _job: JobContext) -> None:
        await let_go.wait()

    async with jobs:
        made = [(await jobs.enqueue(gate, None)).job for _ in range(2)]
        for _ in range(3):
            assert dispatcher.offer(made[0])
            assert dispatcher.offer(made[1])
        assert dispatcher.room == 0
        let_go.set()
        for job in made:
            assert (await settled(jobs, job.id)).attempt == 1


async def test_a_released_reservation_makes_room_again(make: Make) -> None:
    waiter = LocalDispatcher(concurrency=1)
    jobs = make(dispatcher=waiter)

    @jobs.handler("quick")
    async def quick(_none: None, _job: JobContext) -> None: ...

    async with jobs, anyio.create_task_group() as tasks:
        assert waiter.reserve(3) == 2
        assert waiter.room == 0
        tasks.start_soon(waiter.wait_for_room)
        await anyio.lowlevel.checkpoint()
        waiter.release(2)
        with anyio.fail_after(60):
            await waiter.wait_for_room()


async def test_no_more_jobs_run_at_once_than_there_are_slots(make: Make) -> None:
    jobs = make(dispatcher=LocalDispatcher(concurrency=3))
    running = most = 0
    full = anyio.Event()

    @jobs.handler("count")
    async def count(_none: None, _job: JobContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        await anyio.wait_all_tasks_blocked()
        running -= 1

    async with jobs:
        made = [(await jobs.enqueue(count, None)).job for _ in range(30)]
        for job in made:
            assert (await jobs.wait(job.id, timeout=60)).status is JobStatus.COMPLETED
    assert most == 3


async def test_a_dispatcher_that_is_not_running_has_no_room() -> None:
    dispatcher = LocalDispatcher()
    assert dispatcher.room == 0
    assert not dispatcher.offer(sample_job())
    assert dispatcher.reserve(1) == 0
    assert dispatcher.claim(new_job_id()) is None


async def test_a_slot_from_before_a_reopen_frees_nothing() -> None:
    dispatcher = LocalDispatcher(concurrency=1)
    slots: list[Callable[[], None]] = []
    dispatcher.open(lambda _job, freed: slots.append(freed))
    assert dispatcher.offer(sample_job())
    dispatcher.close()
    dispatcher.open(lambda _job, freed: slots.append(freed))
    assert dispatcher.offer(sample_job())
    assert dispatcher.offer(sample_job())
    slots[0]()
    assert len(slots) == 2
    slots[1]()
    assert len(slots) == 3
