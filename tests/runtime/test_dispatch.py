"""When a waiting job is handed to the dispatcher again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, Job, JobContext, Policy, Settings
from asyncjobs.core.job import Delivery, JobId
from asyncjobs.dispatchers.engines.push import (
    AwaitedDispatcher,
    BlockingDispatcher,
    Message,
    queue_of,
)
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.runtime.dispatch import is_time
from asyncjobs.testing import FaultyStore, ManualClock
from asyncjobs.testing.samples import sample_job

pytestmark = pytest.mark.every_store

PAUSE = timedelta(seconds=30)
SWEEP = timedelta(seconds=5)
#: Slow enough to be done by hand.
IDLE = Settings(sweep_interval=timedelta(seconds=20), poll_interval=timedelta(days=1))


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


async def until(met: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not met():  # noqa: ASYNC110  # whatever it is
            await anyio.sleep(0.005)


async def looked(jobs: AsyncJobs) -> None:
    """Wait for the sweep that a process begins with: those that follow are the test's own."""
    await until(lambda: jobs._running.maintenance._looked_at_neglected > -math.inf)


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


@pytest.mark.anyio
async def test_what_an_engine_refused_is_handed_on_as_soon_as_it_comes_up(
    make: Callable[..., AsyncJobs], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, engine = ManualClock(), Engine()
    web = make(clock=clock, dispatcher=engine, settings=IDLE)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    async with web:
        sweep = web._running.maintenance.sweep
        await looked(web)
        engine.away = True
        jobs = [await web.enqueue(task, None) for _ in range(3)]
        for _ in range(4):  # to where, by its age alone, it would be left alone
            clock.advance(IDLE.redelivery)
            await sweep()
        engine.away = False
        clock.advance(IDLE.redelivery)
        await sweep()
        assert sorted(engine.told) == sorted(job.id for job in jobs)
        clock.advance(IDLE.redelivery)
        await sweep()
        assert len(engine.told) == 3
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [one.levelname for one in told] == ["WARNING", "INFO"]


@pytest.mark.anyio
async def test_how_long_an_engine_lets_jobs_wait_is_known_by_looking_after_them(
    make: Callable[..., AsyncJobs],
) -> None:
    clock = ManualClock()
    web = make(clock=clock, dispatcher=Engine(), settings=IDLE)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    @web.handler("other", policy=Policy(queue="other"))
    async def other(_none: None, _job: JobContext) -> None: ...

    async with web:
        await looked(web)
        first = await web.enqueue(task, None)
        clock.advance(timedelta(seconds=10))
        await web.enqueue(task, None)
        for minutes in (1, 2):
            clock.advance(timedelta(seconds=50 if minutes == 1 else 60))
            await web._running.maintenance.sweep()
            waited = {"default": timedelta(minutes=minutes), "other": timedelta(0)}
            assert await web.oldest_waiting() == waited
        await web.run(first.id)
        clock.advance(timedelta(seconds=80))
        await web._running.maintenance.sweep()
        assert (await web.oldest_waiting())["default"] == timedelta(seconds=190)
        clock.advance(timedelta(seconds=80))  # nobody has seen any of them since
        assert (await web.oldest_waiting())["default"] == timedelta(0)


class Mute(Engine):
    """An engine that takes messages and may not answer; it notes how many come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.answers = anyio.Event()

    @contextmanager
    def reservation(self) -> Generator[bool]:
        yield True

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        self.batches.append(len(jobs))
        await self.answers.wait()
        await super().dispatch(jobs)


@pytest.mark.anyio
async def test_an_engine_that_does_not_answer_keeps_nobody_waiting(
    make: Callable[..., AsyncJobs], caplog: pytest.LogCaptureFixture
) -> None:
    clock, engine = ManualClock(), Mute()
    hasty = replace(IDLE, dispatch_timeout=timedelta(seconds=0.05))
    web = make(clock=clock, dispatcher=engine, settings=hasty)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    async with web:
        await looked(web)
        began = anyio.current_time()
        jobs = [await web.enqueue(task, None) for _ in range(20)]
        # The others are not told for the moment, which is a second.
        assert len(engine.batches) <= 1 + anyio.current_time() - began
        engine.answers.set()
        clock.advance(IDLE.redelivery)
        await web._running.maintenance.sweep()
        assert sorted(engine.told) == sorted(job.id for job in jobs)
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [(one.levelname, "TimeoutError" in one.message) for one in told] == [("WARNING", True)]


@pytest.mark.anyio
async def test_an_engine_is_told_at_once_of_what_came_while_it_was_told(
    make: Callable[..., AsyncJobs], store: Any
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


class Picky(AwaitedDispatcher[None]):
    """Refuses one type of jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def send(self, message: Message, job: Job) -> None:
        if job.type == "refused":
            raise LookupError("no such queue")
        self.told.append(message["id"])


class PickyInThread(BlockingDispatcher[None]):
    """The same, where telling blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def send_now(self, message: Message, job: Job) -> None:
        if job.type == "refused":
            raise LookupError("no such queue")
        self.told.append(message["id"])


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Picky, PickyInThread])
async def test_a_message_that_is_refused_keeps_back_none_of_the_others(
    kind: type[Picky | PickyInThread],
) -> None:
    jobs = [sample_job(type=name) for name in ("fine", "refused", "fine")]
    dispatcher = kind()
    with pytest.raises(LookupError, match="no such queue"):
        await dispatcher.dispatch(jobs)
    assert dispatcher.told == [jobs[0].id, jobs[2].id]


def test_a_message_names_a_job_and_nothing_of_it() -> None:
    job = sample_job(payload_json=b'"secret"', user_id="ada")
    message = Picky().message_of(job)
    assert message == {"namespace": "asyncjobs", "id": job.id, "trace": job.trace_id}


def test_the_default_queue_is_the_one_that_an_engine_uses_unasked() -> None:
    assert queue_of(sample_job()) is None
    assert queue_of(sample_job(queue="slow")) == "slow"
