"""A handler's cancellations and mistakes only affect its own job."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    JobContext,
    JobFailed,
    JobStatus,
    Retry,
    Settings,
)
from asyncjobs.core import lifecycle
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.execution.cancellation import belongs_to_the_loop
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import LoopClock
from asyncjobs.testing.samples import sample_submission
from tests.queues import Make, running, settled, simulated
from tests.simulation.loop import SimulatedLoop, run_simulated
from tests.waiting import until_sync

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

user: ContextVar[str] = ContextVar("user", default="nobody")


async def raise_generator_exit(_job: JobContext) -> None:
    raise GeneratorExit


async def report_half_a_row(job: JobContext) -> None:
    await job.progress(10, current=1.5)  # type: ignore[arg-type]


async def fail_with_an_error(_job: JobContext) -> None:
    raise JobFailed(ValueError("boom"), 3)  # type: ignore[arg-type]


async def fail_with_a_broken_name(_job: JobContext) -> None:
    raise JobFailed("no such file: \udcff")


async def report_a_broken_name(job: JobContext) -> None:
    await job.progress(1, "reading \udcff")


async def await_what_was_cancelled(_job: JobContext) -> None:
    raise anyio.get_cancelled_exc_class() if is_asyncio() else OSError


def is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def cancel_its_own_task(_job: JobContext) -> None:
    if is_asyncio() and (task := asyncio.current_task()) is not None:
        task.cancel()
    await anyio.sleep(0.01)


MISTAKES = [
    raise_generator_exit,
    cancel_its_own_task,
    report_half_a_row,
    fail_with_an_error,
    fail_with_a_broken_name,
    report_a_broken_name,
    await_what_was_cancelled,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: str(one.__name__))
async def test_a_handlers_mistake_only_ends_its_own_job(
    jobs: AsyncJobs, mistake: Callable[[JobContext], Any]
) -> None:
    @jobs.handler("mistaken")
    async def mistaken(_none: None, job: JobContext) -> None:
        await mistake(job)

    @jobs.handler("good")
    async def good(_none: None, _job: JobContext) -> str:
        await anyio.sleep(0.05)
        return "done"

    async with jobs:
        neighbour = (await jobs.enqueue(good, None)).job
        assert (await settled(jobs, (await jobs.enqueue(mistaken, None)).id)).status.terminal
        assert (await settled(jobs, neighbour.id)).result == "done"
        assert (await settled(jobs, (await jobs.enqueue(good, None)).id)).result == "done"


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
async def test_event_loop_exceptions_of_a_thread_fail_its_job_only(
    jobs: AsyncJobs, error: type[BaseException]
) -> None:
    @jobs.handler("thread")
    def thread(_none: None, _job: JobContext) -> None:
        raise error

    async with jobs:
        done = await settled(jobs, (await jobs.enqueue(thread, None)).id)
    assert done.error is not None
    assert done.error.code == "internal_error"


async def test_a_cancel_inside_a_task_group_of_a_thread_cancels_the_job(
    jobs: AsyncJobs,
) -> None:
    def loop(job: JobContext) -> None:
        while True:
            job.check()

    @jobs.handler("mixed")
    async def mixed(_none: None, job: JobContext) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, loop, job)

    async with jobs:
        job = await running(jobs, mixed)
        await jobs.cancel(job.id)
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


async def test_a_decorated_coroutine_can_be_cancelled(jobs: AsyncJobs) -> None:
    awaited = anyio.Event()

    async def endless(_none: None, _job: JobContext) -> None:
        awaited.set()
        await anyio.sleep_forever()

    @functools.wraps(endless)
    def wrapper(none: None, job: JobContext) -> Any:
        return endless(none, job)

    handler: Any = jobs.handler("wrapped")(wrapper)
    async with jobs:
        job = await jobs.enqueue(handler, None)
        await awaited.wait()
        await job.cancel()
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


async def test_a_job_does_not_see_the_context_of_another_request(make: Make) -> None:
    jobs = make(dispatcher=LocalDispatcher(concurrency=1))

    @jobs.handler("whose")
    async def whose(_none: None, _job: JobContext) -> str:
        seen = user.get()
        user.set("the job before")
        await anyio.lowlevel.checkpoint()
        return seen

    async with jobs:
        user.set("alice")
        made = [(await jobs.enqueue(whose, None)).job for _ in range(3)]
        assert [(await settled(jobs, job.id)).result for job in made] == ["nobody"] * 3
        user.set("nobody")


async def test_a_cancelled_runner_releases_its_job_at_once(make: Make, beside: Any) -> None:
    jobs = make(settings=Settings(poll_interval=timedelta(1), sweep_interval=timedelta(1)))
    begun = anyio.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with jobs:
        told = sample_submission(
            type="endless", payload_json=b"null", created_at=jobs.clock.now(), delivery="push"
        )
        job = lifecycle.submit(told, hold=timedelta(hours=1))  # or it would be taken as well
        await beside.insert([job])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(jobs.run, job.id)
            with anyio.fail_after(60):
                await begun.wait()
            tasks.cancel_scope.cancel()
    [left] = await beside.get([job.id])
    assert (left.status, left.attempt, left.losses) == (JobStatus.PENDING, 1, 0)


async def test_only_cancellations_by_the_loop_belong_to_the_loop() -> None:
    cancelled = anyio.get_cancelled_exc_class()
    assert not belongs_to_the_loop(GeneratorExit(), stopping=False)
    assert belongs_to_the_loop(KeyboardInterrupt(), stopping=False)
    assert not belongs_to_the_loop(ValueError(), stopping=True)
    if is_asyncio():
        assert belongs_to_the_loop(cancelled(), stopping=True)
        assert not belongs_to_the_loop(cancelled(), stopping=False)
    told: list[bool] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(cancelled) as caught:
            await anyio.lowlevel.checkpoint()
        told.append(belongs_to_the_loop(caught.value, stopping=False))
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            told.append(belongs_to_the_loop(caught.value, stopping=False))
    assert told == [True, False]


async def test_a_retry_in_any_process_waits_for_the_thread_that_timed_out(make: Make) -> None:
    working = 0
    overlaps: list[int] = []
    one, other = make(), make()

    def slow(_none: None, job: JobContext) -> int:
        nonlocal working
        working += 1
        overlaps.append(working)
        if job.attempt == 1:
            until_sync(lambda: job.cancelled)
            time.sleep(0.5)  # otherwise the other process would begin the retry at once
        working -= 1
        return job.attempt

    for jobs in (one, other):
        jobs.handler("slow", timeout=0.1, retry=Retry(max_attempts=9, initial_delay=0))(slow)
    async with one, other:
        done = await settled(one, (await one.enqueue("slow", None)).id)
    assert done.status is JobStatus.COMPLETED
    assert set(overlaps) == {1}


async def test_no_delivery_starts_a_job_before_its_run_at(jobs: AsyncJobs) -> None:
    runs: list[str] = []

    @jobs.handler("later")
    async def later(_none: None, job: JobContext) -> None:
        runs.append(job.id)

    async with jobs:
        job = await jobs.enqueue(later, None, options=EnqueueOptions(run_at=timedelta(hours=1)))
        await jobs.run(job.id)
        assert await jobs.find(job.id) == job.job
    assert runs == []


@pytest.mark.own_store
def test_invalid_progress_does_not_cost_other_jobs_their_lease() -> None:
    async def work() -> None:
        jobs = AsyncJobs("memory://", clock=LoopClock())

        @jobs.handler("long")
        async def long(_none: None, _job: JobContext) -> str:
            await anyio.sleep(3 * jobs.settings.lease.total_seconds())
            return "done"

        @jobs.handler("bad")
        async def bad(_none: None, job: JobContext) -> None:
            for _ in range(100):
                await job.progress(1, message="\udcff")
                await anyio.sleep(1)

        async with jobs:
            good = await jobs.enqueue(long, None)
            await jobs.enqueue(bad, None)
            done = await good.wait()
        assert (done.result, done.attempt) == ("done", 1)

    simulated(work)


@pytest.mark.own_store
def test_a_job_whose_handler_ignores_the_grace_period_is_released() -> None:
    store = MemoryStore()

    async def work(loop: SimulatedLoop) -> None:
        jobs = AsyncJobs(store, clock=LoopClock(), settings=Settings(grace=0))
        begun = asyncio.Event()
        ended: list[bool] = []

        @jobs.handler("deaf")
        async def deaf(_none: None, _job: JobContext) -> None:
            begun.set()
            until = loop.time() + 30
            try:
                while loop.time() < until:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(1)
            finally:
                ended.append(loop.time() < until)

        async with jobs:
            job = await jobs.enqueue(deaf, None)
            await begun.wait()
        [left] = await store.get([job.id])
        assert left is not None
        assert (left.status, left.releases) == (JobStatus.PENDING, 1)
        assert ended == [True]  # by force

    run_simulated(work, seed=0)


def test_a_generator_exit_belongs_to_the_loop() -> None:
    assert belongs_to_the_loop(GeneratorExit(), stopping=False)
