"""When a waiting job is handed to the dispatcher again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, Job, JobContext, Policy, Settings
from asyncjobs.core.job import Delivery, JobId
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.runtime.dispatch import is_time
from asyncjobs.testing import FaultyStore, LoopClock
from tests.queues import Make, simulated
from tests.waiting import until

pytestmark = pytest.mark.every_store

PAUSE = timedelta(seconds=30)
SWEEP = timedelta(seconds=5)


class Engine(WorkerDispatcher):
    """An engine outside, which may be away."""

    delivery = Delivery.PUSH

    def __init__(self) -> None:
        self.told: list[str] = []
        self.away = False

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if self.away:
            raise ConnectionError("nobody there")
        self.told.extend(job.id for job in jobs)


@given(looks=st.lists(st.floats(30, 35), min_size=300, max_size=300))
def test_a_job_that_waits_long_is_handed_on_ever_more_rarely(looks: list[float]) -> None:
    """However the sweeps fall between the redelivery and that and a sweep."""
    waited = 0.0
    told: list[float] = []
    for pause in looks:
        waited += pause
        if is_time(timedelta(seconds=waited), PAUSE, PAUSE + SWEEP):
            told.append(waited)
    # Once per doubling, and once more at most where two looks fall into one window.
    for power in range(8):
        begins, ends = 30 * 2**power, 30 * 2 ** (power + 1)
        assert 1 <= sum(begins <= one < ends + 35 for one in told) <= 4
    assert len(told) <= 2 * 9


def test_a_job_that_becomes_due_is_handed_on_at_once() -> None:
    for waited in (-0.5, 0, 1, 29):
        assert is_time(timedelta(seconds=waited), PAUSE, PAUSE + SWEEP)


def with_task(engine: Engine, **arguments: Any) -> AsyncJobs:
    """Make a queue in simulated time whose jobs of type "task" go to an engine."""
    web = AsyncJobs("memory://", dispatcher=engine, clock=LoopClock(), **arguments)

    @web.handler("task")
    async def task(number: int, _job: JobContext) -> int:
        return 2 * number

    return web


def test_a_job_that_an_engine_refused_is_dispatched_when_it_comes_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def work() -> None:
        engine = Engine()
        async with with_task(engine) as web:
            engine.away = True
            jobs = [await web.enqueue("task", number) for number in range(3)]
            await anyio.sleep(130)  # to where, by its age alone, it would be left alone
            engine.away = False
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert sorted(engine.told) == sorted(job.id for job in jobs)
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert len(engine.told) == 3
            for _ in range(2):  # a delivery may be doubled
                await web.run(jobs[2].id)
            assert await jobs[2].result() == 4

    simulated(work)
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [one.levelname for one in told] == ["WARNING", "INFO"]


def test_how_long_jobs_wait_in_an_engine_is_known_from_looking_after_them() -> None:
    async def work() -> None:
        web = with_task(Engine())

        @web.handler("other", policy=Policy(queue="other"))
        async def other(_none: None, _job: JobContext) -> None: ...

        async def waited() -> dict[str, float]:
            found = await web.oldest_waiting()
            return {queue: round(time.total_seconds()) for queue, time in found.items()}

        async with web:
            first = await web.enqueue("task", 1)
            await anyio.sleep(10)
            second = await web.enqueue("task", 2)
            for passed in (60, 120):
                await anyio.sleep(60 if passed == 120 else 50)
                assert await waited() == {"default": passed, "other": 0}
            await web.run(first.id)
            await anyio.sleep(80)
            assert await waited() == {"default": 190, "other": 0}
            await web.run(second.id)
            await anyio.sleep(80)
            assert await waited() == {"default": 0, "other": 0}

    simulated(work)


class Mute(Engine):
    """An engine that takes messages and may not answer; it notes how many come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.answers = anyio.Event()

    def reserve(self, most: int, /) -> int:
        return most

    def release(self, _places: int, /) -> None:
        return None

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        self.batches.append(len(jobs))
        await self.answers.wait()
        await super().dispatch(jobs)


def test_an_engine_that_does_not_answer_delays_one_submission(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        engine = Mute()
        async with with_task(engine, settings=Settings(dispatch_timeout=5)) as web:
            began = anyio.current_time()
            jobs = [await web.enqueue("task", number) for number in range(20)]
            assert anyio.current_time() - began == 5
            assert engine.batches == [1]  # the engine is not asked for a second after its refusal
            engine.answers.set()
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert set(engine.told) == {job.id for job in jobs}

    simulated(work)
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [(one.levelname, "TimeoutError" in one.message) for one in told] == [("WARNING", True)]


@pytest.mark.anyio
async def test_an_engine_is_told_at_once_of_what_came_while_it_was_told(
    make: Make, store: Any
) -> None:
    engine, counted = Mute(), FaultyStore(store)
    web = make(store=counted, dispatcher=engine)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    async with web, anyio.create_task_group() as tasks:
        tasks.start_soon(web.enqueue, task, None)
        await until(lambda: engine.batches == [1])
        for _ in range(10):
            tasks.start_soon(web.enqueue, task, None)
        await until(lambda: len(inserted(counted)) == 11)
        await anyio.wait_all_tasks_blocked()
        engine.answers.set()
    assert engine.batches == [1, 10]


def inserted(store: FaultyStore) -> list[JobId]:
    return [job_id for call in store.calls if call.method == "insert" for job_id in call.ids]
