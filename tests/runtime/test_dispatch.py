"""When a waiting job is dispatched again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobStatus,
    Policy,
    Settings,
)
from asyncjobs.core.job import Delivery, JobId
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import NotDispatched
from asyncjobs.runtime.dispatch import is_time
from asyncjobs.testing import FaultyStore, LoopClock
from tests.queues import Make, simulated
from tests.waiting import until

pytestmark = pytest.mark.every_store

PAUSE = timedelta(seconds=30)
SWEEP = timedelta(seconds=5)


class Engine(WorkerDispatcher):
    """An engine that may be unavailable or refuse jobs of one type."""

    delivery = Delivery.PUSH

    def __init__(self, refuses: str = "") -> None:
        self.told: list[str] = []
        self.batches: list[int] = []
        self.away = False
        self.refuses = refuses

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if self.away:
            raise ConnectionError("nobody there")
        self.batches.append(len(jobs))
        taken = [job.id for job in jobs if job.type != self.refuses]
        self.told.extend(taken)
        if len(taken) < len(jobs):
            raise NotDispatched({job.id for job in jobs} - set(taken), "no such queue")


class Prompt(Engine):
    """An engine that gets a message as soon as the job is stored, as most do."""

    def reserve(self, most: int, /) -> int:
        return most


@given(looks=st.lists(st.floats(30, 35), min_size=300, max_size=300))
def test_a_waiting_job_is_dispatched_again_at_doubling_intervals(looks: list[float]) -> None:
    """However the sweeps fall between `redelivery` and `redelivery` plus a sweep."""
    waited = 0.0
    told: list[float] = []
    for pause in looks:
        waited += pause
        if is_time(timedelta(seconds=waited), PAUSE, PAUSE + SWEEP):
            told.append(waited)
    # Once per doubling, and once more if two sweeps fall into one window.
    for power in range(8):
        begins, ends = 30 * 2**power, 30 * 2 ** (power + 1)
        assert 1 <= sum(begins <= one < ends + 35 for one in told) <= 4
    assert len(told) <= 2 * 9


def test_a_job_that_becomes_due_is_dispatched_at_once() -> None:
    for waited in (-0.5, 0, 1, 29):
        assert is_time(timedelta(seconds=waited), PAUSE, PAUSE + SWEEP)


def with_task(engine: Engine, **arguments: Any) -> AsyncJobs:
    """Make a queue in simulated time whose jobs of type "task" go to an engine."""
    web = AsyncJobs("memory://", dispatcher=engine, clock=LoopClock(), **arguments)

    @web.handler("task")
    async def task(number: int, _job: JobContext) -> int:
        return 2 * number

    return web


def test_a_job_that_an_engine_refused_is_dispatched_when_it_is_due(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def work() -> None:
        engine = Engine()
        async with with_task(engine) as web:
            engine.away = True
            jobs = [await web.enqueue("task", number) for number in range(3)]
            await anyio.sleep(130)  # its age alone would not yet cause a dispatch
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


def test_jobs_of_other_types_are_dispatched_after_the_refusal_pause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def work() -> None:
        engine = Prompt(refuses="refused")
        web = with_task(engine)

        @web.handler("refused")
        async def refused(_none: None, _job: JobContext) -> None: ...

        async with web:
            began = anyio.current_time()
            taken: list[str] = []
            for number in range(100):  # ten a second
                await web.enqueue("refused", None)
                taken.append((await web.enqueue("task", number)).id)
                await anyio.sleep(0.1)
            assert anyio.current_time() - began < 11  # no submission has waited
            await anyio.sleep(1.5)
            assert engine.told == taken
            engine.refuses = ""
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert len(set(engine.told)) == 200

    simulated(work)
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [(one.levelname, "type refused" in one.message) for one in told] == [
        ("WARNING", True),
        ("INFO", True),
    ]


class Slow(Engine):
    """An engine that takes some seconds for each call; it counts attempts by job type."""

    def __init__(self, seconds: float, refuses: str = "") -> None:
        super().__init__(refuses)
        self.seconds = seconds
        self.tried = Counter[str]()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        self.tried.update(job.type for job in jobs)
        await anyio.sleep(self.seconds)
        await super().dispatch(jobs)

    def reserve(self, most: int, /) -> int:
        return most


def test_a_backlog_of_a_refused_type_does_not_delay_jobs_of_other_types() -> None:
    async def work() -> None:
        engine = Slow(0, refuses="refused")
        web = with_task(engine)
        web.handler("refused")(other)
        async with web:
            for _ in range(12):
                await web.enqueue_many("refused", [None] * 1000)
            await anyio.sleep(2)
            engine.tried.clear()
            for number in range(700):
                job = await web.enqueue("task", number)
                assert job.id in engine.told
                await anyio.sleep(0.1)
            # The pages of the sweeps do not all reach an engine that refuses them.
            assert 30 <= engine.tried["refused"] <= 71
            engine.refuses = ""
            await anyio.sleep(2 * (PAUSE + SWEEP).total_seconds())
            assert len(set(engine.told)) == 12_700

    simulated(work)


def test_a_refusal_of_one_type_in_a_batch_starts_no_pause_for_others() -> None:
    async def work() -> None:
        engine = Slow(1, refuses="refused")
        web = with_task(engine)
        web.handler("refused")(other)
        async with web, anyio.create_task_group() as tasks:
            tasks.start_soon(web.enqueue, "task", 1)
            await anyio.sleep(0.5)
            tasks.start_soon(web.enqueue, "refused", None)
            tasks.start_soon(web.enqueue, "task", 2)
            await anyio.sleep(1.6)
            assert engine.batches == [1, 2]
            job = await web.enqueue("task", 3)
            assert job.id in engine.told

    simulated(work)


def test_submissions_wait_for_at_most_two_calls_of_a_slow_engine() -> None:
    submissions = 3000

    async def work() -> None:
        engine, waits, ids = Slow(4), list[float](), set[str]()
        async with with_task(engine) as web:

            async def submit(number: int) -> None:
                began = anyio.current_time()
                ids.add((await web.enqueue("task", number)).id)
                waits.append(anyio.current_time() - began)

            async with anyio.create_task_group() as tasks:
                for number in range(submissions):
                    tasks.start_soon(submit, number)
            assert len(waits) == submissions
            assert max(waits) <= 8
            await anyio.sleep(4 * submissions / 512 + 4)
            assert set(engine.told) == ids
            assert len(engine.told) == submissions

    simulated(work)


def test_a_call_that_cannot_be_cancelled_does_not_fail_submissions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(Mute):
        async def dispatch(self, jobs: Sequence[Job], /) -> None:
            with anyio.CancelScope(shield=True):
                await super().dispatch(jobs)

    async def work() -> None:
        engine = Stuck()
        async with with_task(engine, settings=Settings(dispatch_timeout=5)) as web:
            try:
                async with anyio.create_task_group() as tasks:
                    for number in range(5):
                        tasks.start_soon(web.enqueue, "task", number)
                job = await web.enqueue("task", 5)
            finally:
                engine.answers.set()
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert len(set(engine.told)) == 6
            assert job.id in engine.told

    simulated(work)
    levels = [one.levelname for one in caplog.records if "Jobs were not dispatched" in one.message]
    assert levels == ["WARNING"]


def test_jobs_that_arrive_in_an_outage_are_dispatched_after_the_pause() -> None:
    async def work() -> None:
        engine = Prompt()
        async with with_task(engine) as web:
            engine.away = True
            for number in range(20):
                await web.enqueue("task", number)
            engine.away = False
            await anyio.sleep(1.5)
            assert len(engine.told) == 19  # all but the one that was refused
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert len(set(engine.told)) == 20

    simulated(work)


def test_a_job_whose_workers_lack_the_handler_is_soon_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        engine, old_engine = Prompt(), Prompt()
        web = with_task(engine)
        old = AsyncJobs(web.store, dispatcher=old_engine, clock=web.clock)
        old.handler("other")(other)

        async with web:
            job = await web.enqueue("task", 4)
            begins, sent = anyio.current_time(), list[float]()
            async with old:
                while len(sent) < 20:  # a worker of the old release gets each message
                    if engine.told or old_engine.told:
                        (engine.told or old_engine.told).clear()
                        sent.append(anyio.current_time() - begins)
                        await old.run(job.id)
                    await anyio.sleep(0.1)
            pauses = [after - before for before, after in pairwise(sent)]
            assert max(pauses) < 16
            # No worker answers any more: the engine's queue does not fill up.
            engine.told.clear()
            await anyio.sleep(1800)
            assert len(engine.told) <= 8
            await web.run(job.id)
            assert await job.result() == 8

    simulated(work)
    warned = [one for one in caplog.records if "No handler for type 'task'" in one.message]
    assert len(warned) == 1


def test_a_job_without_handler_in_an_engine_s_worker_keeps_its_deadline() -> None:
    async def work() -> None:
        engine = Engine()
        web = with_task(engine)
        old = AsyncJobs(web.store, dispatcher=Engine(), clock=web.clock)
        old.handler("other")(other)
        async with web:
            job = await web.enqueue("task", 4, options=EnqueueOptions(deadline=5))
            async with old:
                await old.run(job.id)
            assert (await job.wait()).status is JobStatus.FAILED

    simulated(work)


def test_a_process_that_cannot_send_leaves_the_early_repeat_to_others() -> None:
    async def work() -> None:
        engine = Engine()
        web = with_task(engine)
        old = AsyncJobs(web.store, dispatcher=Engine(), clock=web.clock)
        old.handler("other")(other)
        puller = AsyncJobs(web.store, dispatcher="worker", clock=web.clock)
        puller.handler("other")(other)
        async with web:
            job = await web.enqueue("task", 4)
        async with old:
            await old.run(job.id)
        engine.told.clear()
        async with puller:
            await anyio.sleep(14)
            async with web:
                await until(lambda: engine.told == [job.id])

    simulated(work)


async def other(_none: None, _job: JobContext) -> None: ...


class Named(Prompt):
    """An engine with named queues."""

    def queue_for(self, _job_type: str, queue: str, /) -> str | None:
        return queue

    def how_to_serve(self, _job_type: str, queue: str, /) -> str:
        return f"Start a worker with -Q {queue}."

    def served_queues(self) -> None:
        return None


def test_a_warning_after_a_minute_names_the_queue_that_no_worker_may_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        engine = Named()
        web = with_task(engine)
        web.handler("other", policy=Policy(queue="images"))(other)
        web.handler("mail", policy=Policy(queue="mails"))(other)
        async with web:
            served = await web.enqueue("task", 1)
            await web.run(served.id)
            lost = await web.enqueue("other", None)
            await web.enqueue("other", None)
            await web.enqueue("mail", None)
            await anyio.sleep(55)
            assert "Start a worker" not in caplog.text
            await anyio.sleep(300)
            assert lost.id in caplog.text

    simulated(work)
    warned = [one.message for one in caplog.records if "Start a worker" in one.message]
    assert [one.rpartition(". ")[2] for one in warned] == [
        "Start a worker with -Q images.",
        "Start a worker with -Q mails.",
    ]


def test_sweeps_measure_how_long_jobs_wait_in_an_engine() -> None:
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


class Mute(Prompt):
    """An engine that takes messages and may not answer; it records the size of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.answers = anyio.Event()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        self.calls.append(len(jobs))
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
            assert engine.calls == [1]  # the engine is not asked for a second after its refusal
            engine.answers.set()
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert set(engine.told) == {job.id for job in jobs}

    simulated(work)
    told = [one for one in caplog.records if "dispatched" in one.message]
    assert [(one.levelname, "TimeoutError" in one.message) for one in told] == [("WARNING", True)]


def test_callers_behind_a_hanging_call_wait_no_longer_than_it() -> None:
    async def work() -> None:
        engine, waits = Mute(), list[float]()
        async with with_task(engine, settings=Settings(dispatch_timeout=20)) as web:

            async def submit(number: int) -> None:
                began = anyio.current_time()
                await web.enqueue("task", number)
                waits.append(anyio.current_time() - began)

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(submit, number)
                    await anyio.sleep(0.5)
            assert max(waits) == 20
            engine.answers.set()
            await anyio.sleep((PAUSE + SWEEP).total_seconds())
            assert len(set(engine.told)) == 20

    simulated(work)


def test_more_jobs_than_are_held_in_a_pause_are_dispatched_when_they_are_due() -> None:
    async def work() -> None:
        engine = Prompt()
        web = with_task(engine)
        async with web:
            engine.away = True
            await web.enqueue("task", 0)
            await web.enqueue_many("task", range(10_000))
            await web.enqueue_many("task", range(10))
            engine.away = False
            await anyio.sleep(1.5)
            assert len(engine.told) == 10_000
            assert max(engine.batches) == 512
            await anyio.sleep((PAUSE + 2 * SWEEP).total_seconds())
            assert len(set(engine.told)) == 10_011

    simulated(work)


def test_an_error_without_job_ids_counts_all_jobs_as_dispatched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(Prompt):
        async def dispatch(self, jobs: Sequence[Job], /) -> None:
            await super().dispatch(jobs)
            raise NotDispatched((), "odd")

    caplog.set_level(logging.DEBUG)

    async def work() -> None:
        engine = Odd()
        async with with_task(engine) as web:
            job = await web.enqueue("task", 1)
            assert engine.told == [job.id]

    simulated(work)
    assert "could not be dispatched; they will be dispatched later: odd" in caplog.text


@pytest.mark.anyio
async def test_jobs_that_arrive_during_a_dispatch_are_sent_in_one_call(
    make: Make, store: Any
) -> None:
    engine, counted = Mute(), FaultyStore(store)
    web = make(store=counted, dispatcher=engine)

    @web.handler("task")
    async def task(_none: None, _job: JobContext) -> None: ...

    async with web, anyio.create_task_group() as tasks:
        tasks.start_soon(web.enqueue, task, None)
        await until(lambda: engine.calls == [1])
        for _ in range(10):
            tasks.start_soon(web.enqueue, task, None)
        await until(lambda: len(inserted(counted)) == 11)
        await anyio.wait_all_tasks_blocked()
        engine.answers.set()
    assert engine.calls == [1, 10]


def inserted(store: FaultyStore) -> list[JobId]:
    return [job_id for call in store.calls if call.method == "insert" for job_id in call.ids]
