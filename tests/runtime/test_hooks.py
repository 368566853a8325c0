"""Hooks: each transition is sent once, by its own process; a hook's errors stay its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    Event,
    Job,
    JobContext,
    JobLogFilter,
    JobStatus,
    Policy,
    Retry,
    Settings,
    Transition,
)
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Change, Transactions
from asyncjobs.runtime.hooks import HookRunner, Hooks
from asyncjobs.testing import FaultyStore, ManualClock, sample_job
from asyncjobs.testing.samples import begun
from tests.queues import IDLE, Make
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

BRIEFLY = Retry(max_attempts=2, initial_delay=timedelta(0))


def told_of(jobs: AsyncJobs) -> list[Transition]:
    told: list[Transition] = []

    async def note(transition: Transition) -> None:
        told.append(transition)

    for event in Event:
        jobs.on(event, note)
    return told


async def test_a_hook_gets_the_events_of_a_job_in_order(jobs: AsyncJobs) -> None:
    told = told_of(jobs)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs:
        job = await jobs.wait((await jobs.enqueue(double, 4)).id)
    assert [one.event for one in told] == [Event.ENQUEUED, Event.STARTED, Event.COMPLETED]
    assert [one.job.status for one in told] == ["pending", "processing", "completed"]
    assert told[-1].job == job
    assert [one.before for one in told] == [None, told[0].job, told[1].job]
    assert [one.at for one in told] == sorted(one.at for one in told)


async def test_a_hook_may_be_async_or_plain_and_is_a_decorator(jobs: AsyncJobs) -> None:
    told: list[tuple[str, bool]] = []

    @jobs.on("completed")
    @jobs.on(Event.ENQUEUED)
    async def soon(transition: Transition) -> None:
        on_the_loop = threading.current_thread() is threading.main_thread()
        told.append((f"async {transition.event}", on_the_loop))

    @jobs.on("completed")
    def plain(transition: Transition) -> None:
        on_the_loop = threading.current_thread() is threading.main_thread()
        told.append((f"def {transition.event}", on_the_loop))

    class Object:
        async def __call__(self, transition: Transition) -> None:
            told.append((f"object {transition.event}", True))

    jobs.on("completed", Object())
    jobs.on("completed", lambda transition: soon(transition))  # noqa: PLW0108  # returns an awaitable

    @jobs.handler("nothing")
    async def nothing(_payload: None, _job: JobContext) -> None: ...

    async with jobs:
        await jobs.wait((await jobs.enqueue(nothing, None)).id)
    assert sorted(told) == [
        ("async completed", True),
        ("async completed", True),
        ("async enqueued", True),
        ("def completed", False),
        ("object completed", True),
    ]


def test_an_unknown_event_is_refused(jobs: AsyncJobs) -> None:
    with pytest.raises(ConfigurationError, match=r"no event 'ended'.*known: enqueued, started"):
        jobs.on("ended")(print)  # type: ignore[call-overload]


class Strict(FaultyStore):
    """Records all writes, to compare them with the hooks' calls."""

    def __init__(self, store: Any, written: list[tuple[str, JobStatus]]) -> None:
        super().__init__(store)
        self.written = written

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        stored = await super().insert(jobs)
        for job in stored:
            self.written.append((job.id, JobStatus.PENDING))
            if job.status is JobStatus.PROCESSING:  # accepted and started by one write
                self.written.append((job.id, job.status))
        return stored

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        before = await self.get([change.job.id for change in changes])
        done = await super().replace(changes)
        self.written += [
            (change.job.id, change.job.status)
            for change, was, written in zip(changes, before, done, strict=True)
            if written and was is not None and was.status is not change.job.status
        ]
        return done


async def test_one_process_sends_each_status_change_once(
    make: Make, new_store: Callable[[], Any]
) -> None:
    written: list[tuple[str, JobStatus]] = []
    stores = [Strict(new_store(), written) for _ in range(2)]
    queues = [make(store=store, policy=Policy(retry=BRIEFLY)) for store in stores]
    logs = [told_of(jobs) for jobs in queues]
    for jobs in queues:

        @jobs.handler("work")
        async def work(number: int, job: JobContext) -> int:
            if number % 3 == 0:
                raise ValueError("again")
            if number % 3 == 1:
                await anyio.sleep(0.01 * number)
            return job.attempt

    async with queues[0], queues[1]:
        made = [(await queues[number % 2].enqueue("work", number)).job for number in range(30)]
        for job in made[::4]:
            await queues[0].cancel(job.id)
        for job in made:
            await queues[1].wait(job.id)
    told = [one for log in logs for one in log]
    moved = [
        (one.job.id, one.job.status) for one in told if one.event is not Event.CANCEL_REQUESTED
    ]
    assert sorted(moved) == sorted(written)
    assert {one.event for one in told} >= {Event.RETRIED, Event.FAILED, Event.CANCELLED}


async def test_the_process_that_records_a_missed_deadline_sends_its_event(make: Make) -> None:
    clock, quiet = ManualClock(), Settings(sweep_interval=timedelta(hours=1))
    one, other = (make(clock=clock, settings=quiet) for _ in range(2))
    mine, theirs = told_of(one), told_of(other)
    kind = one.external("late", payload=int, result=int)
    async with one, other:
        job = (await one.enqueue(kind, 1)).job
        clock.advance(timedelta(days=2))
        await other.find(job.id)
        await one.find(job.id)
    assert [transition.event for transition in mine] == [Event.ENQUEUED]
    assert [transition.event for transition in theirs] == [Event.FAILED]
    assert theirs[0].at == clock.now()


async def test_the_event_of_a_deadline_in_a_neglected_lane_has_the_payload(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, dispatcher="worker", settings=IDLE)
    told = told_of(jobs)

    @jobs.handler("late")
    async def late(_text: str, _job: JobContext) -> None: ...

    async with jobs:
        await jobs.enqueue(late, "words")
    clock.advance(timedelta(days=2))
    async with jobs:  # starts with a sweep
        await until(lambda: len(told) > 1)
    assert [(one.event, one.job.payload) for one in told] == [
        (Event.ENQUEUED, "words"),
        (Event.FAILED, "words"),
    ]


async def test_the_sweep_that_finds_a_lost_worker_sends_its_event(make: Make, beside: Any) -> None:
    lost = begun(sample_job())
    jobs = make(clock=ManualClock(lost.run_at + timedelta(minutes=1)))
    told = told_of(jobs)
    async with jobs:
        await beside.insert([lost])
        await until(lambda: told)
    assert [(one.event, one.job.id, one.worker_lost) for one in told] == [
        (Event.LOST, lost.id, True)
    ]


async def test_a_replayed_submission_sends_no_event(jobs: AsyncJobs) -> None:
    told = told_of(jobs)
    kind = jobs.external("once", payload=int, result=int)
    async with jobs:
        for _ in range(2):
            await jobs.enqueue(kind, 1, idempotency_key="key")
    assert [one.event for one in told] == [Event.ENQUEUED]


class Joining(FaultyStore):
    """Takes part in any transaction, and commits at once."""

    @property
    def powers(self) -> frozenset[type]:
        return super().powers | {Transactions}

    async def insert_within(self, _connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self.insert(jobs)


async def test_a_job_of_a_transaction_sends_one_event_and_its_replay_none(
    make: Make, store: Any
) -> None:
    jobs = make(store=Joining(store))
    told = told_of(jobs)
    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        for _ in range(2):
            await jobs.enqueue(kind, 1, connection=object(), idempotency_key="key")
    assert [one.event for one in told] == [Event.ENQUEUED]


# containment


async def test_a_hook_that_raises_is_logged_and_called_again(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(JobLogFilter())

    @jobs.on("enqueued")
    async def broken(_transition: Transition) -> None:
        raise ValueError("broken hook")

    @jobs.on("enqueued")
    def leaving(_transition: Transition) -> None:
        raise SystemExit

    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        made = [(await jobs.enqueue(kind, number)).job for number in range(2)]
    raised = [record for record in caplog.records if record.levelno == logging.ERROR]
    named = {(vars(one)["job_id"], one.getMessage().split(" raised")[0]) for one in raised}
    for hook in ("broken", "leaving"):
        assert {job for job, name in named if name.endswith(hook)} == {job.id for job in made}


@pytest.mark.parametrize(
    "error", [SystemExit(), GeneratorExit(), BaseExceptionGroup("", [SystemExit()])], ids=repr
)
async def test_no_error_of_an_async_hook_ends_the_application(
    jobs: AsyncJobs, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.on("enqueued")
    async def leaving(_transition: Transition) -> None:
        raise error

    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        for number in range(2):
            await jobs.enqueue(kind, number)
        await until(lambda: caplog.text.count("leaving raised") == 2)


@pytest.mark.parametrize("own_task", [False, True], ids=["awaited", "itself"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_that_cancels_itself_is_called_again(
    jobs: AsyncJobs, *, own_task: bool
) -> None:
    told: list[int] = []

    @jobs.on("enqueued")
    async def gives_up(_transition: Transition) -> None:
        task, future = asyncio.current_task(), asyncio.get_running_loop().create_future()
        told.append(task.cancelling() if task else -1)
        (task if own_task and task else future).cancel()
        await future

    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        for number in range(2):
            await jobs.enqueue(kind, number)
        await until(lambda: len(told) == 2)
    assert told == [0, 0]


async def test_an_observer_that_raises_does_not_affect_others(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_transition: Transition) -> None:
        raise ValueError("broken observer")

    jobs.hooks.observers.append(broken)
    told = told_of(jobs)
    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        await jobs.enqueue(kind, 1)
    assert len(told) == 1
    assert "broken observer" in caplog.text


async def test_a_slow_hook_delays_neither_handlers_nor_other_hooks(jobs: AsyncJobs) -> None:
    go_on = anyio.Event()
    told: list[Transition] = []

    @jobs.on("started")
    async def slow(_transition: Transition) -> None:
        await go_on.wait()

    @jobs.on("completed")
    async def quick(transition: Transition) -> None:
        told.append(transition)

    @jobs.handler("nothing")
    async def nothing(_payload: None, _job: JobContext) -> None: ...

    async with jobs:
        for _ in range(2):
            await jobs.wait((await jobs.enqueue(nothing, None)).id)
        await until(lambda: len(told) == 2)
        go_on.set()


async def test_closing_waits_for_the_hooks(jobs: AsyncJobs) -> None:
    found: list[Job | None] = []

    @jobs.on("enqueued")
    async def look(transition: Transition) -> None:
        await anyio.sleep(0.01)
        found.append(await jobs.get(transition.job.id))

    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        made = [(await jobs.enqueue(kind, number)).job for number in range(3)]
    assert found == made


async def test_the_log_counts_the_events_that_a_hook_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = Hooks()

    async def hangs(_transition: Transition) -> None:
        await anyio.sleep_forever()

    hooks.add("enqueued", hangs)
    hook_runner = HookRunner(hooks)
    job = sample_job()
    for _ in range(1002):
        hook_runner.notify(Transition(Event.ENQUEUED, job, None, job.created_at))
    assert caplog.text.count("1000 events behind") == 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hook_runner.run)
        await hook_runner.finish(0.05)
        tasks.cancel_scope.cancel()
    assert "hangs was not called for 1000 events" in caplog.text


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_hook_that_caught_up_is_called_again_and_its_misses_logged(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hooks, told = Hooks(), list[Transition]()

    async def soon(transition: Transition) -> None:
        told.append(transition)

    hooks.add("enqueued", soon if asynchronous else told.append)
    hook_runner = HookRunner(hooks)
    job = sample_job()
    transition = Transition(Event.ENQUEUED, job, None, job.created_at)
    for _ in range(1003):
        hook_runner.notify(transition)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hook_runner.run)
        await until(lambda: "has missed 3 events" in caplog.text)
        hook_runner.notify(transition)
        await until(lambda: len(told) == 1001)
        tasks.cancel_scope.cancel()


async def test_a_hook_that_cannot_be_called_is_logged(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    async def takes_nothing() -> None: ...

    jobs.on("enqueued", takes_nothing)  # type: ignore[call-overload]
    kind = jobs.external("kind", payload=int, result=int)
    async with jobs:
        for number in range(2):
            await jobs.enqueue(kind, number)
    assert caplog.text.count("takes_nothing raised") == 2
