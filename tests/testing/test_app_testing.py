"""`jobs.using` and `run_jobs`: testing the handlers and routes of an application."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from fastapi.testclient import TestClient

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    JobCancelled,
    JobContext,
    JobFailed,
    JobStatus,
    Transition,
)
from asyncjobs.errors import (
    ConfigurationError,
    InvalidResult,
    JobUnsuccessful,
    ResourcesUnavailable,
)
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import (
    ManualClock,
    run_jobs,
    run_jobs_async,
    submitted_jobs,
    submitted_jobs_async,
)
from tests.execution import handlers_in_processes
from tests.testing import application
from tests.testing.application import (
    break_down,
    double,
    double_each,
    double_each_in_a_thread,
    get_session,
    hang,
    jobs,
    notes,
    refuse,
    save,
    succeed_at_the_third_time,
    wait_for_another,
)

MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def no_notes() -> None:
    notes.clear()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def queue(clock: ManualClock) -> Generator[AsyncJobs]:
    with jobs.using(clock=clock) as replaced:
        yield replaced


def test_run_jobs_runs_the_jobs_of_a_fastapi_route(queue: AsyncJobs) -> None:
    with TestClient(application.app) as client:
        accepted = client.post("/doubles?number=21").json()
        assert client.get(accepted["statusUrl"]).json()["status"] == "pending"
        [job] = run_jobs(queue)
        assert job.id == accepted["jobId"]
        assert client.get(accepted["resultUrl"]).json() == 42


def test_run_jobs_runs_the_jobs_of_a_def_route(queue: AsyncJobs) -> None:
    with TestClient(application.app) as client:
        job_id = client.post("/doubles-of-def?number=21").json()
        assert [(job.id, job.result) for job in run_jobs(queue)] == [(job_id, 42)]


def test_run_jobs_runs_the_jobs_of_a_flask_route(queue: AsyncJobs) -> None:
    client = application.flask_app.test_client()
    accepted = client.post("/doubles/21").get_json()
    assert client.get(accepted["statusUrl"]).get_json()["status"] == "pending"
    [job] = run_jobs(queue)
    assert job.id == accepted["jobId"]
    assert client.get(accepted["resultUrl"]).get_json() == 42


def test_run_jobs_runs_the_jobs_of_plain_code(queue: AsyncJobs) -> None:
    handle = queue.sync.enqueue(double, 21)
    assert queue.sync.find(handle.id).status is JobStatus.PENDING
    [job] = run_jobs(queue)
    assert (job.id, job.status) == (handle.id, JobStatus.COMPLETED)
    assert handle.result() == double.result_of(job) == 42
    assert run_jobs(queue) == []


@pytest.mark.anyio
async def test_run_jobs_async_runs_the_jobs_of_async_code(queue: AsyncJobs) -> None:
    async with queue:
        handle = await queue.enqueue(double, 21)
        [job] = await run_jobs_async(queue)
        assert job.id == handle.id
        assert await handle.result() == 42
        assert await submitted_jobs_async(queue, double) == [job]


@pytest.mark.anyio
async def test_run_jobs_async_works_with_a_queue_open_in_another_loop(queue: AsyncJobs) -> None:
    queue.sync.enqueue(double, 21)
    [job] = await run_jobs_async(queue)
    assert job.result == 42
    assert await submitted_jobs_async(queue) == [job]
    queue.sync.enqueue(break_down)
    with pytest.raises(LookupError):
        await run_jobs_async(queue)


@pytest.mark.anyio
async def test_run_jobs_in_the_event_loop_names_the_async_variant(queue: AsyncJobs) -> None:
    async with queue:
        with pytest.raises(ConfigurationError, match=r"await run_jobs_async\("):
            run_jobs(queue)
        with pytest.raises(ConfigurationError, match=r"await submitted_jobs_async\("):
            submitted_jobs(queue)
        await queue.enqueue(double, 1)
        assert len(await to_thread.run_sync(run_jobs, queue)) == 1


def test_jobs_run_in_the_order_in_which_they_are_due(queue: AsyncJobs, clock: ManualClock) -> None:
    later = queue.sync.enqueue(double, 1, options=EnqueueOptions(run_at=2 * MINUTE))
    sooner = queue.sync.enqueue(double, 2, options=EnqueueOptions(run_at=MINUTE))
    now = [queue.sync.enqueue(double, number) for number in (3, 4)]
    clock.advance(2 * MINUTE)
    assert [job.id for job in run_jobs(queue)] == [one.id for one in (*now, sooner, later)]


def test_a_delayed_job_waits_for_its_time(queue: AsyncJobs, clock: ManualClock) -> None:
    handle = queue.sync.enqueue(double, 21, options=EnqueueOptions(run_at=MINUTE))
    clock.advance(MINUTE - timedelta(seconds=1))
    assert run_jobs(queue) == []
    clock.advance(timedelta(seconds=1))
    assert [job.id for job in run_jobs(queue)] == [handle.id]


def test_a_retry_waits_for_its_time(queue: AsyncJobs, clock: ManualClock) -> None:
    queue.sync.enqueue(succeed_at_the_third_time)
    with pytest.raises(ConnectionError, match="in attempt 1"):
        run_jobs(queue)
    assert run_jobs(queue) == []
    clock.advance(MINUTE)
    [job] = run_jobs(queue, raise_errors=False)
    assert (job.status, job.attempt) == (JobStatus.PENDING, 2)
    clock.advance(2 * MINUTE)
    [job] = run_jobs(queue)
    assert (job.status, job.result) == (JobStatus.COMPLETED, 3)


@pytest.mark.parametrize("handler", [double_each, double_each_in_a_thread])
def test_jobs_that_a_handler_submits_run_as_well(queue: AsyncJobs, handler: Any) -> None:
    queue.sync.enqueue(handler, [1, 2])
    assert [(job.type, job.result) for job in run_jobs(queue)] == [
        (handler.name, None),
        ("double", 2),
        ("double", 4),
    ]


def test_jobs_that_a_hook_submits_run_as_well() -> None:
    own = AsyncJobs("memory://")

    @own.handler("first")
    async def first() -> None: ...

    @own.handler("second")
    async def second() -> None: ...

    @own.on("completed")
    def follow(transition: Transition) -> None:
        if transition.job.type == "first":
            own.sync.enqueue(second)

    with own.using():
        own.sync.enqueue(first)
        assert [job.type for job in run_jobs(own)] == ["first", "second"]


def test_jobs_are_forgotten_at_the_end_of_their_retention(clock: ManualClock) -> None:
    own = AsyncJobs("memory://")
    forgotten: list[str] = []

    @own.handler("work")
    async def work() -> None: ...

    @own.on("forgotten")
    def note(transition: Transition) -> None:
        forgotten.append(transition.job.id)

    with own.using(clock=clock):
        handle = own.sync.enqueue(work)
        run_jobs(own)
        clock.advance(own.policy.retention or MINUTE)
        assert run_jobs(own) == []
        assert forgotten == [handle.id]
        assert submitted_jobs(own) == []


class SlowStore(MemoryStore):
    """Writes slowly."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        await anyio.sleep(0.2)
        return await super().replace(changes)


def test_maintenance_does_not_delay_an_overdue_job(clock: ManualClock) -> None:
    with jobs.using(SlowStore(), clock=clock):
        with jobs.sync:
            jobs.sync.enqueue(double, 1)
        clock.advance(5 * MINUTE)
        with TestClient(application.app) as client:
            client.get("/")
            assert len(run_jobs(jobs)) == 1


def test_a_handler_that_waits_for_an_unrunnable_job_is_named(queue: AsyncJobs) -> None:
    queue.sync.enqueue(wait_for_another)
    with pytest.raises(ConfigurationError, match="does not run automatically"):
        run_jobs(queue)


def test_the_error_of_a_handler_is_raised_with_its_traceback(queue: AsyncJobs) -> None:
    handle = queue.sync.enqueue(break_down)
    after = queue.sync.enqueue(double, 21)
    with pytest.raises(LookupError, match="no such thing") as caught:
        run_jobs(queue)
    assert "break_down" in [
        frame.name for frame in traceback.extract_tb(caught.value.__traceback__)
    ]
    assert queue.sync.find(handle.id).status is JobStatus.FAILED
    assert [job.id for job in run_jobs(queue)] == [after.id]


def test_the_original_error_object_is_raised() -> None:
    own = AsyncJobs("memory://")
    error = LookupError("this one")

    @own.handler("break")
    async def break_down() -> None:
        raise error

    with own.using():
        own.sync.enqueue(break_down)
        with pytest.raises(LookupError) as caught:
            run_jobs(own)
    assert caught.value is error


def test_a_job_failed_error_is_raised(queue: AsyncJobs) -> None:
    queue.sync.enqueue(refuse)
    with pytest.raises(JobFailed, match="I will not"):
        run_jobs(queue)


def test_a_failure_without_an_error_of_the_handler_is_raised(queue: AsyncJobs) -> None:
    queue.sync.enqueue(hang)
    with pytest.raises(JobUnsuccessful, match="exceeded its time limit"):
        run_jobs(queue)


def test_a_job_that_missed_its_deadline_is_raised(queue: AsyncJobs, clock: ManualClock) -> None:
    queue.sync.enqueue(double, 1, options=EnqueueOptions(deadline=60))
    clock.advance(MINUTE)
    with pytest.raises(JobUnsuccessful, match="before its deadline"):
        run_jobs(queue)


def test_with_raise_errors_false_errors_stay_in_the_jobs(queue: AsyncJobs) -> None:
    for handler in (break_down, refuse):
        queue.sync.enqueue(handler)
    failed = run_jobs(queue, raise_errors=False)
    assert [job.error and job.error.code for job in failed] == ["internal_error", "refused"]
    assert failed[0].attempt_errors[0].message == "no such thing"


def test_a_job_that_is_cancelled_while_it_runs_raises_no_error() -> None:
    own = AsyncJobs("memory://")

    @own.handler("cancels itself")
    async def cancel_itself(job: JobContext) -> None:
        await own.cancel(job.id)
        await anyio.sleep_forever()

    @own.handler("stops")
    def stop(job: JobContext) -> None:
        own.sync.cancel(job.id)
        raise JobCancelled(job.id)

    with own.using():
        own.sync.enqueue(cancel_itself)
        own.sync.enqueue(stop)
        assert [job.status for job in run_jobs(own)] == [JobStatus.CANCELLED] * 2


def test_handlers_have_their_resources_and_dependencies(queue: AsyncJobs) -> None:
    with TestClient(application.app):
        handles = [queue.sync.enqueue(save, text) for text in ("a", "b")]
        assert notes == []
        run_jobs(queue)
        assert handles[0].result() == ["a", "pool", "session"]
    sessions = ["session opened", "session closed"]
    assert notes == ["pool opened", *sessions, *sessions, "pool closed"]


def test_a_dependency_is_replaced(queue: AsyncJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(queue.dependency_overrides, get_session, lambda: "fake")
    handle = queue.sync.enqueue(save, "a")
    run_jobs(queue)
    assert handle.result() == ["a", "pool", "fake"]


def test_a_job_keeps_waiting_if_the_resources_do_not_open() -> None:
    tried: list[int] = []

    class Lifespan:
        async def __aenter__(self) -> None:
            tried.append(len(tried))
            if len(tried) == 1:
                raise OSError("no pool")

        async def __aexit__(self, *_error: object) -> None: ...

    own = AsyncJobs("memory://", lifespan=Lifespan)

    @own.handler("work")
    async def work() -> None: ...

    with own.using(clock=ManualClock()):
        own.sync.enqueue(work)
        with pytest.raises(ResourcesUnavailable, match="no pool"):
            run_jobs(own)
        assert len(run_jobs(own)) == 1


def test_handlers_run_in_processes() -> None:
    own = handlers_in_processes.kinds
    with own.using():
        handle = own.sync.enqueue(handlers_in_processes.nothing)
        run_jobs(own)
        assert handle.result() != os.getpid()
        own.sync.enqueue(handlers_in_processes.fails, "text")
        with pytest.raises(InvalidResult):
            run_jobs(own)


def test_submitted_jobs_come_in_order_with_their_payloads(queue: AsyncJobs) -> None:
    for number in range(250):
        queue.sync.enqueue(double, number)
    queue.sync.enqueue(save, "a", user_id="ann")
    assert [job.payload for job in submitted_jobs(queue, double)] == list(range(250))
    assert [job.payload for job in submitted_jobs(queue)] == [*range(250), "a"]
    [saved] = submitted_jobs(queue, "save")
    assert (saved.user_id, saved.status) == ("ann", JobStatus.PENDING)


def test_submitted_jobs_is_empty_at_first(queue: AsyncJobs) -> None:
    assert submitted_jobs(queue) == []
    assert run_jobs(queue) == []


def test_a_job_without_a_handler_is_left_alone() -> None:
    store, clock = MemoryStore(), ManualClock()
    one, other = AsyncJobs(store, clock=clock), AsyncJobs(store, clock=clock)

    @one.handler("one's")
    async def of_one() -> None: ...

    @other.handler("other's")
    async def of_other() -> None: ...

    with one.sync:
        one.sync.enqueue(of_one)
    with other.sync:
        assert run_jobs(other) == []
    with one.sync:
        assert len(run_jobs(one)) == 1


@pytest.mark.anyio
async def test_waiting_without_a_timeout_raises_as_no_handler_runs(queue: AsyncJobs) -> None:
    async with queue.open(run_handlers=False):
        handle = await queue.enqueue(double, 21)
        with pytest.raises(ConfigurationError, match="run_jobs"):
            await handle.wait()
        assert (await handle.wait(timeout=0)).status is JobStatus.PENDING


def test_waiting_in_plain_code_raises_as_no_handler_runs(queue: AsyncJobs) -> None:
    handle = queue.sync.enqueue(double, 21)
    with pytest.raises(ConfigurationError, match="run_jobs"):
        handle.wait()


def open_by_lifespan(check: Callable[[], None]) -> None:
    with TestClient(application.app):
        check()


def open_by_flask(check: Callable[[], None]) -> None:
    application.flask_app.test_client().get("/")
    check()


def open_by_async_with(check: Callable[[], None]) -> None:
    async def use() -> None:
        async with jobs:
            await jobs.start_handlers()
            await to_thread.run_sync(check)

    anyio.run(use)


def open_as_worker(check: Callable[[], None]) -> None:
    async def use() -> None:
        async with jobs.as_worker():
            await to_thread.run_sync(check)

    anyio.run(use)


@pytest.mark.parametrize(
    "opened", [open_by_lifespan, open_by_flask, open_by_async_with, open_as_worker]
)
def test_no_handler_runs_by_itself_in_any_open_queue(
    queue: AsyncJobs, opened: Callable[[Callable[[], None]], None]
) -> None:
    def check() -> None:
        queue.sync.enqueue(double, 21)
        assert not queue.sync.call("check", runs_handlers)
        assert len(run_jobs(queue)) == 1

    async def runs_handlers() -> bool:
        return queue.runs_handlers

    opened(check)


def test_handlers_run_by_themselves_if_asked_for() -> None:
    with jobs.using(run_handlers=True), TestClient(application.app) as client:
        accepted = client.post("/doubles?number=21").json()
        jobs.sync.wait(accepted["jobId"], timeout=60)
        assert client.get(accepted["resultUrl"]).json() == 42
        with pytest.raises(ConfigurationError, match="automatically"):
            run_jobs(jobs)


def test_store_and_clock_are_restored_after_the_block() -> None:
    store, clock = jobs.store, jobs.clock
    inner = MemoryStore()
    with jobs.using():
        assert jobs.store is not store
        with jobs.using(inner):
            assert jobs.store is inner
        assert jobs.store is not inner
    with pytest.raises(LookupError), jobs.using():
        raise LookupError
    assert (jobs.store, jobs.clock) == (store, clock)


def test_the_clock_passed_to_the_queue_stays(clock: ManualClock) -> None:
    own = AsyncJobs("memory://", clock=clock)
    with own.using():
        assert own.clock is clock


def test_a_later_block_sees_no_job_of_an_earlier_one() -> None:
    for _ in range(2):
        with jobs.using():
            assert submitted_jobs(jobs) == []
            jobs.sync.enqueue(double, 1)


def test_a_queue_opened_by_a_call_is_closed_at_the_end() -> None:
    def submit_on_flask() -> None:
        application.flask_app.test_client().post("/doubles/21")

    for submit in (lambda: jobs.sync.enqueue(double, 1), submit_on_flask):
        with jobs.using():
            submit()
            assert is_open()
        assert not is_open()


def is_open() -> bool:
    return jobs.event_loop is not None


@pytest.mark.anyio
async def test_an_open_queue_keeps_its_store() -> None:
    own = AsyncJobs("memory://")
    store = own.store
    async with own:
        with pytest.raises(ConfigurationError, match="already open"), own.using():
            pass
        assert own.store is store


@pytest.mark.anyio
async def test_a_queue_that_stays_open_after_the_block_is_reported() -> None:
    own = AsyncJobs("memory://")
    store = own.store
    with pytest.raises(ConfigurationError, match="still open"), own.using():
        await own.open()
    assert own.store is store
    await own.close()


def test_only_the_suites_need_pytest() -> None:
    names = "run_jobs, run_jobs_async, submitted_jobs, ManualClock, sample_job, FaultyStore"
    script = f"import sys; sys.modules['pytest'] = None; from asyncjobs.testing import {names}"
    subprocess.run([sys.executable, "-c", script], check=True)


PLAIN = """
from asyncjobs import AsyncJobs
from asyncjobs.testing import run_jobs_async

jobs = AsyncJobs("redis://localhost:1")

@jobs.handler("double")
async def double(number: int) -> int:
    return 2 * number

async def test_double():
    with jobs.using():
        async with jobs:
            await jobs.enqueue(double, 21)
            [job] = await run_jobs_async(jobs)
    assert job.result == 42

async def test_a_break_down_is_seen():
    with jobs.using():
        async with jobs:
            await jobs.enqueue("double", 21)
            await run_jobs_async(jobs)
            assert await run_jobs_async(jobs) == []
"""

BY_HAND = "import asyncio, test_app; asyncio.run(test_app.test_double())"


@pytest.mark.parametrize(
    "plugin", [pytest.param("pytest-asyncio", marks=pytest.mark.thorough), "asyncio.run"]
)
def test_using_works_in_tests_that_run_on_asyncio_only(tmp_path: Path, plugin: str) -> None:
    (tmp_path / "test_app.py").write_text(PLAIN)
    command = ["-c", BY_HAND]
    if plugin == "pytest-asyncio":
        command = ["-m", "pytest", "-q", "-o", "asyncio_mode=auto", "test_app.py"]
        command[3:3] = ["-o", "asyncio_default_fixture_loop_scope=function"]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, timeout=120)
