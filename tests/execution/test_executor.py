"""Attempts: limits, outcomes, and which process may write them."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobCancelled,
    JobContext,
    JobFailed,
    JobStatus,
    Policy,
    Retry,
    Settings,
    Store,
)
from asyncjobs.core.job import Delivery
from asyncjobs.core.lifecycle import DEADLINE_EXCEEDED, TIMED_OUT
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Fate, Faults, FaultyStore, LoopClock, ManualClock, sample_job
from tests.queues import Make, finished, running, settled, simulated
from tests.waiting import until, until_sync

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

AT_ONCE = Retry(max_attempts=3, initial_delay=timedelta(0))


# how handlers end


async def test_a_plain_function_runs_in_a_thread_of_its_own(jobs: AsyncJobs) -> None:
    @jobs.handler("where")
    def where(_none: None, _job: JobContext) -> bool:
        return threading.current_thread() is threading.main_thread()

    async with jobs:
        assert (await finished(jobs, where)).result is False


async def test_an_exception_of_a_handler_is_hidden_from_clients(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("secretive")
    async def secretive(_none: None, _job: JobContext) -> None:
        raise RuntimeError("the password is swordfish")

    async with jobs:
        done = await finished(jobs, secretive)
    assert done.error is not None
    assert done.error.code == "internal_error"
    assert "swordfish" not in done.error.message
    assert done.trace_id in done.error.message
    assert "swordfish" in caplog.text


async def test_a_job_failed_error_is_shown_to_clients(jobs: AsyncJobs) -> None:
    @jobs.handler("picky", retry=AT_ONCE)
    async def picky(_none: None, _job: JobContext) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse)

    async def refuse() -> None:
        raise JobFailed("There is no such account.", "no_account")

    async with jobs:
        done = await finished(jobs, picky)
    assert done.error is not None
    assert (done.error.code, done.error.message) == ("no_account", "There is no such account.")
    assert done.attempt == 1


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        JobCancelled("job"),
        KeyError("x"),
        ExceptionGroup("two", [JobFailed("one"), JobFailed("two")]),
    ],
    ids=repr,
)
async def test_any_exception_of_a_handler_only_fails_its_job(
    jobs: AsyncJobs, error: BaseException
) -> None:
    @jobs.handler("raising")
    async def raising(_none: None, _job: JobContext) -> None:
        raise error

    @jobs.handler("raising thread")
    def raising_thread(_none: None, _job: JobContext) -> None:
        raise error

    async with jobs:
        for handler in (raising, raising_thread):
            done = await finished(jobs, handler)
            assert done.error is not None
            assert done.error.code == "internal_error"


async def test_a_result_that_cannot_be_stored_fails_the_job(jobs: AsyncJobs) -> None:
    @jobs.handler("lying", retry=AT_ONCE)
    async def lying(_none: None, _job: JobContext) -> int:
        return "many"  # type: ignore[return-value]

    @jobs.handler("large", policy=Policy(max_result_bytes=10))
    async def large(_none: None, _job: JobContext) -> str:
        return "x" * 9

    @jobs.handler("odd")
    async def odd(_none: None, _job: JobContext) -> Any:
        return {"a": object()}

    async with jobs:
        for handler in (lying, large, odd):
            done = await finished(jobs, handler)
            assert done.error is not None
            assert (done.error.code, done.attempt) == ("invalid_result", 1)


async def test_a_payload_that_is_no_longer_valid_fails_the_job(
    jobs: AsyncJobs, beside: Any
) -> None:
    @jobs.handler("changed")
    async def changed(_number: int, _job: JobContext) -> None: ...

    of_an_older_release = sample_job(
        type="changed", payload_json=b'"words"', created_at=jobs.clock.now()
    )
    await beside.insert([of_an_older_release])
    async with jobs:
        done = await settled(jobs, of_an_older_release.id)
    assert done.error is not None
    assert done.error.code == "invalid_payload"


async def test_a_def_handler_may_return_an_awaitable(jobs: AsyncJobs) -> None:
    async def add(extra: int, number: int, _job: JobContext) -> int:
        return number + extra

    @jobs.handler("partial")
    def partial(number: int, job: JobContext) -> Any:
        return functools.partial(add, 2)(number, job)

    async with jobs:
        assert (await finished(jobs, partial, 40)).result == 42


async def test_a_job_without_handler_here_is_left_to_other_processes(make: Make) -> None:
    web, workers = make(), make()
    other = web.handler("elsewhere")

    @other
    async def elsewhere(_none: None, _job: JobContext) -> str:
        return "web"

    @workers.handler("unrelated")
    async def unrelated(_none: None, _job: JobContext) -> None: ...

    async with workers:
        async with web:
            job = (
                await web.enqueue(elsewhere, None, options=EnqueueOptions(run_at=timedelta(1)))
            ).job
        await workers.run(job.id)
        assert await workers.get(job.id) == job


# progress


async def test_progress_is_visible_while_the_job_runs(jobs: AsyncJobs) -> None:
    go_on = anyio.Event()

    @jobs.handler("slow")
    async def slow(_none: None, job: JobContext) -> None:
        await job.progress(40, "packing", current=2, total=5, unit="boxes")
        await go_on.wait()

    async with jobs:
        job = (await jobs.enqueue(slow, None)).job
        with anyio.fail_after(60):
            async for update in jobs.subscribe(job.id):
                if update.progress == 40:
                    go_on.set()
                    assert update.detail is not None
                    assert update.detail.message == "packing"
                    assert update.detail.current == 2
        assert (await jobs.find(job.id)).progress == 100


@pytest.mark.parametrize("error", [JobFailed("no"), KeyError("no")])
async def test_the_last_progress_is_always_stored(jobs: AsyncJobs, error: Exception) -> None:
    @jobs.handler("breaking")
    async def breaking(_none: None, job: JobContext) -> None:
        for percent in range(78):
            await job.progress(percent, f"at {percent}")
        raise error

    async with jobs:
        done = await finished(jobs, breaking)
    assert done.progress == 77
    assert done.detail is not None
    assert done.detail.message == "at 77"


async def test_a_million_reports_cause_few_writes(make: Make) -> None:
    jobs = make(settings=Settings(progress_interval=timedelta(seconds=0.2)))

    @jobs.handler("busy")
    def busy(_none: None, job: JobContext) -> None:
        for _ in job.track(range(100_000)):
            pass

    async with jobs:
        done = await finished(jobs, busy)
    assert done.version < 100
    assert done.detail is not None
    assert done.detail.current == 100_000


# retries


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_attempt_that_raised_is_retried(jobs: AsyncJobs, *, in_thread: bool) -> None:
    fences: list[int] = []

    def attempted(_none: None, job: JobContext) -> int:
        fences.append(job.fence)
        if job.attempt < 3:
            raise OSError
        return job.attempt

    async def on_the_loop(none: None, job: JobContext) -> int:
        return attempted(none, job)

    function: Any = attempted if in_thread else on_the_loop
    handler: Any = jobs.handler("moody", retry=AT_ONCE)(function)
    async with jobs:
        done = await finished(jobs, handler)
    assert (done.result, done.failures, done.attempt) == (3, 2, 3)
    assert fences == [1, 2, 3]


async def test_the_last_attempt_fails_the_job(jobs: AsyncJobs) -> None:
    @jobs.handler("hopeless", retry=AT_ONCE)
    def hopeless(_none: None, _job: JobContext) -> None:
        raise OSError

    async with jobs:
        done = await finished(jobs, hopeless)
    assert (done.status, done.attempt) == (JobStatus.FAILED, 3)


# timeout and deadline


async def test_a_timeout_counts_as_an_attempt(jobs: AsyncJobs) -> None:
    @jobs.handler("slow at first", timeout=0.1, retry=AT_ONCE)
    async def slow_at_first(_none: None, job: JobContext) -> int:
        if job.attempt == 1:
            await anyio.sleep_forever()
        return job.attempt

    async with jobs:
        assert (await finished(jobs, slow_at_first)).result == 2


async def test_the_deadline_ends_an_attempt_that_has_time_left(jobs: AsyncJobs) -> None:
    @jobs.handler("endless", retry=AT_ONCE)
    async def endless(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    async with jobs:
        done = await finished(jobs, endless, deadline=0.1)
    assert (done.status, done.error) == (JobStatus.FAILED, DEADLINE_EXCEEDED)


async def test_a_thread_past_its_timeout_fails_the_job_and_keeps_its_slot(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make(dispatcher=LocalDispatcher(concurrency=1))
    let_go, seen = threading.Event(), threading.Event()

    @jobs.handler("stuck", timeout=0.1)
    def stuck(_none: None, job: JobContext) -> None:
        let_go.wait(60)
        if job.cancelled:
            seen.set()

    @jobs.handler("next")
    async def following(_none: None, _job: JobContext) -> bool:
        return seen.is_set()

    async with jobs:
        done = await finished(jobs, stuck)
        assert (done.status, done.error) == (JobStatus.FAILED, TIMED_OUT)
        after = await jobs.enqueue(following, None)
        let_go.set()
        assert await after.result(timeout=60) is True  # it began after the thread's end
    ends = [record for record in caplog.records if "has failed" in record.message]
    assert len(ends) == 1  # the end of the thread is no second outcome


async def test_a_handler_that_completes_after_its_timeout_completes_the_job(
    jobs: AsyncJobs,
) -> None:
    @jobs.handler("deaf", timeout=0.05)
    async def deaf(_none: None, _job: JobContext) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
        return "done"

    async with jobs:
        assert (await finished(jobs, deaf)).result == "done"


@pytest.mark.parametrize("clumsy", [False, True])
async def test_an_error_raised_after_a_timeout_is_still_a_timeout(
    jobs: AsyncJobs, *, clumsy: bool
) -> None:
    @jobs.handler("endless", timeout=0.05)
    async def endless(_none: None, _job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if clumsy:
                raise KeyError("while cleaning up")

    async with jobs:
        done = await finished(jobs, endless)
    assert (done.status, done.error) == (JobStatus.FAILED, TIMED_OUT)


# cancel


async def test_a_waiting_job_is_cancelled_before_it_begins(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock)
    begun: list[str] = []

    @jobs.handler("later")
    async def later(_none: None, job: JobContext) -> None:
        begun.append(job.id)

    async with jobs:
        pause = EnqueueOptions(run_at=timedelta(hours=1))
        cancelled = await jobs.enqueue(later, None, options=pause)
        assert (await cancelled.cancel()).status is JobStatus.CANCELLED
        other = await jobs.enqueue(later, None, options=pause)
        clock.advance(timedelta(hours=1))
        await settled(jobs, other.id)
    assert begun == [other.id]


async def test_a_running_job_is_cancelled_when_its_handler_has_stopped(jobs: AsyncJobs) -> None:
    stopped: list[JobStatus] = []

    @jobs.handler("endless")
    async def endless(_none: None, job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                stopped.append((await jobs.find(job.id)).status)

    async with jobs:
        job = await running(jobs, endless)
        asked = await jobs.cancel(job.id)
        assert asked.cancel_requested_at is not None
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED
        assert await jobs.cancel(job.id) == await jobs.get(job.id)
    assert stopped == [JobStatus.PROCESSING]


async def test_a_job_in_a_thread_is_cancelled_when_the_thread_has_stopped(jobs: AsyncJobs) -> None:
    let_go = threading.Event()

    told: list[bool] = []

    @jobs.handler("checking")
    def checking(_none: None, job: JobContext) -> None:
        until_sync(lambda: job.cancelled)
        told.append(True)
        let_go.wait(60)
        for _ in job.track(range(10)):
            pass

    async with jobs:
        job = await running(jobs, checking)
        await jobs.cancel(job.id)
        await until(lambda: told)
        assert (await jobs.find(job.id)).status is JobStatus.PROCESSING
        let_go.set()
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


async def test_a_thread_that_ignores_a_cancel_may_complete_its_job(jobs: AsyncJobs) -> None:
    let_go = threading.Event()

    @jobs.handler("deaf")
    def deaf(_none: None, _job: JobContext) -> str:
        let_go.wait(60)
        return "done"

    async with jobs:
        job = await running(jobs, deaf)
        await jobs.cancel(job.id)
        let_go.set()
        assert (await settled(jobs, job.id)).result == "done"


async def test_a_thread_that_outlives_cancel_and_timeout_is_not_cancelled(
    jobs: AsyncJobs,
) -> None:
    let_go = threading.Event()

    @jobs.handler("deaf", timeout=0.2)
    def deaf(_none: None, _job: JobContext) -> None:
        let_go.wait(60)

    async with jobs:
        job = await running(jobs, deaf)
        await jobs.cancel(job.id)
        done = await settled(jobs, job.id)
        let_go.set()
    assert (done.status, done.error) == (JobStatus.FAILED, TIMED_OUT)


async def test_an_error_after_a_cancel_cancels_the_job(jobs: AsyncJobs) -> None:
    @jobs.handler("clumsy", retry=AT_ONCE)
    async def clumsy(_none: None, _job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("while cleaning up")  # the subject of the test

    async with jobs:
        job = await running(jobs, clumsy)
        await jobs.cancel(job.id)
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


async def test_another_process_can_cancel(make: Make) -> None:
    here, there = make(), make()

    @here.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    async with here, there:
        job = await running(here, endless)
        await there.cancel(job.id)
        assert (await settled(there, job.id)).status is JobStatus.CANCELLED


async def test_concurrent_cancels_make_one_stop_request(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        await jobs.update_progress(job.id, 1)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(jobs.cancel, job.id)
        assert (await jobs.find(job.id)).version == 4


# leases


@pytest.mark.own_store
def test_a_long_job_keeps_its_lease() -> None:
    async def work() -> None:
        store = MemoryStore()
        jobs, other = (AsyncJobs(store, clock=LoopClock()) for _ in range(2))

        @jobs.handler("long")
        async def long(_none: None, _job: JobContext) -> str:
            await anyio.sleep(10 * jobs.settings.lease.total_seconds())
            return "done"

        async with jobs, other:
            done = await jobs.wait((await jobs.enqueue(long, None)).id)
        assert (done.result, done.losses, done.attempt) == ("done", 0, 1)

    simulated(work)


async def test_an_attempt_that_lost_its_lease_is_stopped_and_writes_nothing(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    broken_off = anyio.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            broken_off.set()

    async with jobs:
        job = await running(jobs, endless)
        assert job.lease is not None
        stolen = job.lease.model_copy(update={"token": "another worker's"})
        taken_over = job.model_copy(update={"lease": stolen, "revision": job.revision + 1})
        assert list(await jobs.store.replace([Change(taken_over, job.revision)])) == [True]
        with anyio.fail_after(60):
            await broken_off.wait()
        assert (await jobs.find(job.id)).lease == stolen
    assert "lease was lost" in caplog.text


async def test_an_attempt_whose_job_was_deleted_is_stopped(jobs: AsyncJobs) -> None:
    broken_off = anyio.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            broken_off.set()

    async with jobs:
        job = await running(jobs, endless)
        await jobs.store.delete([job.id])
        with anyio.fail_after(60):
            await broken_off.wait()


async def test_the_outcome_of_a_job_that_has_ended_elsewhere_is_refused(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("late")
    async def late(_none: None, job: JobContext) -> None:
        found = await jobs.find(job.id)
        ended = found.model_copy(
            update={"status": JobStatus.CANCELLED, "lease": None, "revision": 9, "version": 9}
        )
        assert list(await jobs.store.replace([Change(ended, found.revision)])) == [True]

    async with jobs:
        done = await finished(jobs, late)
    assert done.status is JobStatus.CANCELLED
    assert "refused" in caplog.text


#: The calls that fail while a store is unavailable.
AWAY = Faults(before=1, only=["replace"])


@pytest.fixture
def flaky(store: Any) -> FaultyStore:
    return FaultyStore(store)


async def test_an_outcome_is_written_when_the_store_is_back(make: Make, flaky: FaultyStore) -> None:
    jobs = make(store=flaky)

    @jobs.handler("unlucky")
    async def unlucky(_none: None, _job: JobContext) -> str:
        flaky.faults = AWAY
        return "done"

    async with jobs:
        job = await running(jobs, unlucky)
        await until(lambda: Fate.NOT_DONE in [call.fate for call in flaky.calls])
        assert (await jobs.find(job.id)).status is JobStatus.PROCESSING
        flaky.faults = Faults()
        done = await settled(jobs, job.id)
    assert (done.result, done.attempt) == ("done", 1)


async def test_an_attempt_ends_with_its_lease_if_the_store_stays_away(
    make: Make, flaky: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = LocalDispatcher(concurrency=1)
    jobs = make(store=flaky, dispatcher=dispatcher)
    broken_off = anyio.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        flaky.faults = AWAY
        try:
            await anyio.sleep_forever()
        finally:
            broken_off.set()

    @jobs.handler("quick")
    async def quick(_none: None, job: JobContext) -> None:
        if job.attempt == 1:  # otherwise the store would be unavailable when the other job begins
            flaky.faults = AWAY

    async with jobs:
        await running(jobs, quick)
        await until(lambda: "could not be written" in caplog.text)
        await until(lambda: dispatcher.room == 2)  # its slot is free again, and the place to wait
        flaky.faults = Faults()
        await jobs.enqueue(endless, None)
        with anyio.fail_after(60):
            await broken_off.wait()
        flaky.faults = Faults()


async def test_a_job_whose_start_was_not_stored_is_tried_again(
    make: Make, flaky: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make(store=flaky, policy=Policy(max_deliveries=1))  # not stored as started

    @jobs.handler("patient")
    async def patient(_none: None, _job: JobContext) -> str:
        return "done"

    async with jobs:
        flaky.faults = AWAY
        job = (await jobs.enqueue(patient, None)).job
        await until(lambda: "could not be started" in caplog.text)
        assert (await jobs.find(job.id)).status is JobStatus.PENDING
        flaky.faults = Faults()
        assert (await settled(jobs, job.id)).result == "done"


class Faulty(FaultyStore):
    """Raises an undeclared error at its next changes."""

    faulty = 0

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        if self.faulty:
            self.faulty -= 1
            raise RuntimeError("a fault")
        return await super().replace(changes)


@pytest.mark.parametrize("deliveries", [1, 3])
async def test_an_undeclared_error_of_the_store_loses_no_job_and_no_slot(
    make: Make, new_store: Callable[[], Any], deliveries: int
) -> None:
    store = Faulty(new_store())
    policy = Policy(max_deliveries=deliveries)  # with 1 it is not stored as started
    jobs = make(store=store, policy=policy, dispatcher=LocalDispatcher(1))

    @jobs.handler("task")
    async def task(_none: None, job: JobContext) -> int:
        return job.attempt

    async with jobs:
        for faults in (2, 0):
            store.faulty = faults
            assert (await finished(jobs, task)).result == 1


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_repeated_start_is_recognised_as_its_own(
    make: Make, flaky: FaultyStore, lost: str
) -> None:
    """`before`: the write was not carried out; `after`: it was, and its answer was lost."""
    slow = timedelta(hours=1)
    jobs = make(
        store=flaky, settings=Settings(poll_interval=timedelta(seconds=0.02), redelivery=slow)
    )

    @jobs.handler("task")
    async def task(_none: None, job: JobContext) -> int:
        return job.attempt

    async with jobs:
        flaky.faults = Faults(**{lost: 1}, only=["replace"], most=1)
        assert (await finished(jobs, task)).result == 1


# shutdown


@pytest.mark.own_store
def test_a_job_that_ends_within_the_grace_period_completes() -> None:
    async def work() -> None:
        store = MemoryStore()
        jobs = AsyncJobs(store, clock=LoopClock())

        @jobs.handler("brief")
        async def brief(_none: None, _job: JobContext) -> None:
            await anyio.sleep(jobs.settings.grace.total_seconds() - 1)

        async with jobs:
            job = await running(jobs, brief)
        [left] = await store.get([job.id])
        assert left is not None
        assert left.status is JobStatus.COMPLETED

    simulated(work)


async def test_a_job_that_outlives_the_grace_period_is_released_at_no_cost(
    make: Make, beside: Any
) -> None:
    jobs = make(dispatcher=LocalDispatcher(concurrency=2))
    let_go = threading.Event()

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    @jobs.handler("thread")
    def thread(_none: None, _job: JobContext) -> None:
        let_go.wait(60)

    async with jobs:
        begun = [await running(jobs, handler) for handler in (endless, thread)]
        waiting = (await jobs.enqueue(endless, None)).job
    let_go.set()
    for job in begun:
        [left] = await beside.get([job.id])
        assert (left.status, left.failures, left.losses) == (JobStatus.PENDING, 0, 0)
        assert left.due_at == left.run_at
    [left] = await beside.get([waiting.id])
    assert (left.status, left.attempt, left.due_at) == (JobStatus.PENDING, 0, waiting.run_at)


class Holding(FaultyStore):
    """Delays the answer to the next change: a job has started."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written, self.go_on = anyio.Event(), anyio.Event()
        self.holds = True

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        done = await super().replace(changes)
        if self.holds:
            self.holds = False
            self.written.set()
            await self.go_on.wait()
        return done


class Delivered(WorkerDispatcher):
    delivery = Delivery.PUSH


def delivered(make: Make, store: Holding) -> tuple[AsyncJobs, list[str]]:
    """Make a queue whose jobs an engine delivers; each job that runs is recorded."""
    jobs = make(store=store, dispatcher=Delivered())
    worked: list[str] = []

    @jobs.handler("thread")
    def thread(_none: None, _job: JobContext) -> None:
        worked.append("thread")

    return jobs, worked


async def test_a_job_that_starts_while_the_queue_closes_is_released(
    make: Make, new_store: Any, beside: Any
) -> None:
    store = Holding(new_store())
    jobs, worked = delivered(make, store)
    begun: list[Job] = []
    witness_runs = anyio.Event()

    @jobs.handler("witness")
    async def witness(_none: None, _job: JobContext) -> None:
        """Deliver another job as soon as this one is stopped, then let the first one start."""
        witness_runs.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await jobs.run(begun[1].id)
                store.go_on.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks, jobs:
            store.holds = False
            tasks.start_soon(jobs.run, (await jobs.enqueue(witness, None)).id)
            await witness_runs.wait()
            begun += [(await jobs.enqueue("thread", None)).job for _ in range(2)]
            store.holds = True
            tasks.start_soon(jobs.run, begun[0].id)
            await store.written.wait()
    for left in await beside.get([job.id for job in begun]):
        assert (left.status, left.losses) == (JobStatus.PENDING, 0)
    assert worked == []


async def test_a_job_that_starts_while_its_run_is_cancelled_is_released(
    make: Make, new_store: Any, beside: Any
) -> None:
    store = Holding(new_store())
    jobs, worked = delivered(make, store)
    with anyio.fail_after(60):
        async with jobs:
            job = (await jobs.enqueue("thread", None)).job
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(jobs.run, job.id)
                await store.written.wait()
                tasks.cancel_scope.cancel()
                store.go_on.set()
    [left] = await beside.get([job.id])
    assert (left.status, left.losses, worked) == (JobStatus.PENDING, 0, [])


async def test_a_thread_that_outlives_a_shutdown_is_not_cancelled_early(
    make: Make, beside: Any
) -> None:
    jobs = make()
    let_go = threading.Event()

    @jobs.handler("thread")
    def thread(_none: None, _job: JobContext) -> None:
        let_go.wait(60)

    async with jobs:
        job = await running(jobs, thread)
        await jobs.cancel(job.id)
    [left] = await beside.get([job.id])
    assert left.status is JobStatus.PROCESSING
    let_go.set()
    later = make()
    async with later:
        assert (await settled(later, job.id)).status is JobStatus.CANCELLED


async def test_a_process_can_exit_although_a_thread_never_ends(new_url: Callable[[], str]) -> None:
    script = """
import anyio
from asyncjobs import AsyncJobs, JobContext, Settings
import sys, threading

jobs = AsyncJobs(sys.argv[1], settings=Settings(grace=0))

@jobs.handler("stuck")
def stuck(_none: None, _job: JobContext) -> None:
    threading.Event().wait()

async def main() -> None:
    async with jobs:
        async for job in await jobs.enqueue(stuck, None):
            if job.status == "processing":
                break

anyio.run(main)
print("bye")
"""
    with anyio.fail_after(60):
        ended = await anyio.run_process([sys.executable, "-c", script, new_url()])
    assert ended.stdout.strip() == b"bye"
