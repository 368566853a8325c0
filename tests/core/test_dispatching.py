"""When a waiting job is handed to the dispatcher again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, Job, JobContext, Settings
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.dispatching import is_time
from asyncjobs.model import Delivery
from asyncjobs.testing import ManualClock

PAUSE = timedelta(seconds=30)
SWEEP = timedelta(seconds=5)
#: Slow enough to be done by hand.
IDLE = Settings(sweep=timedelta(seconds=20), poll=timedelta(days=1))


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


@pytest.mark.anyio
@pytest.mark.own_store
async def test_what_an_engine_refused_is_handed_on_as_soon_as_it_comes_up(
    make: Callable[..., AsyncJobs], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, engine = ManualClock(), Engine()
    web = make(clock=clock, dispatcher=engine, settings=IDLE)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    async with web:
        sweep = web._running.housekeeping.sweep
        await anyio.wait_all_tasks_blocked()
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
