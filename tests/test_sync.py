"""`jobs.sync`: the queue's methods for code that cannot await, in any context."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import flask
import pytest
from anyio import to_thread
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from asyncjobs import AsyncJobs, JobContext, JobStatus, Selection
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.errors import BlockingCall, InvalidPayload, UnknownJob, UnknownType
from asyncjobs.portal import Call, portal_for
from asyncjobs.sync import SyncJobHandle, SyncJobs
from tests.queues import QUICK
from tests.waiting import until, until_sync

pytestmark = pytest.mark.every_store


def with_handlers(jobs: AsyncJobs) -> AsyncJobs:
    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    @jobs.handler("follow")
    def follow(number: int, _job: JobContext) -> int:
        """Enqueue another job, and wait for it."""
        return jobs.sync.enqueue(double, number).result(timeout=60)

    @jobs.handler("wait for a file")
    async def wait_for_a_file(path: Path, job: JobContext) -> None:
        await job.progress(50)
        await until(path.exists)

    return jobs


@pytest.fixture
def jobs(new_store: Callable[[], Any]) -> Generator[AsyncJobs]:
    made = with_handlers(AsyncJobs(new_store(), settings=QUICK))
    yield made
    portal_for(made).close()


def test_sync_has_every_method_of_the_queue() -> None:
    def verbs(kind: type) -> set[str]:
        return {name for name, one in vars(kind).items() if callable(one) and name[0] != "_"}

    awaited = {
        name for name in verbs(AsyncJobs) if inspect.iscoroutinefunction(vars(AsyncJobs)[name])
    }
    of_a_process = {"accept", "run", "start_handlers", "drain", "until_drained", "oldest_waiting"}
    of_a_process |= {"sweep", "until_hooks_called"}
    assert awaited - of_a_process - verbs(SyncJobs) == set()


def test_a_sync_call_opens_the_queue_without_running_handlers(jobs: AsyncJobs) -> None:
    with jobs.sync as sync:
        job = sync.enqueue("double", 21, user_id="ann")
        assert not jobs.is_open
        assert job.wait(timeout=0.05).status is JobStatus.PENDING
        assert sync.find(job.id).user_id == "ann"
        assert sync.position(sync.find(job.id)) == 1
        assert [one.id for one in sync.list(Selection(user_id="ann")).jobs] == [job.id]
        assert job.cancel().status is JobStatus.CANCELLED
        assert [one.status for one in job] == [JobStatus.CANCELLED]
        again = sync.retry(job.id)
        assert again.job.retry_of == job.id
        assert sync.next_change(again.id, timeout=0.01).version == again.job.version
        assert sync.get("job_" + "0" * 32) is None  # type: ignore[arg-type]
    assert jobs.event_loop is None


def test_external_jobs_can_be_reported_synchronously(jobs: AsyncJobs) -> None:
    jobs.external("render", payload=int, result=str)
    with jobs.sync as sync:
        one, two, three = (sync.enqueue("render", number) for number in range(3))
        assert sync.update_progress(one.id, 10, "begun").progress == 10
        assert sync.complete(one.id, "done").result == "done"
        assert sync.fail(two.id, "no paper").status is JobStatus.FAILED
        sync.update_progress(three.id, 1)
        sync.cancel(three.id)
        assert sync.stop(three.id).status is JobStatus.CANCELLED


def test_errors_are_those_of_the_async_methods(jobs: AsyncJobs) -> None:
    with jobs.sync as sync:
        with pytest.raises(UnknownType):
            sync.enqueue("missing")
        with pytest.raises(InvalidPayload):
            sync.enqueue("double", "many")
        with pytest.raises(UnknownJob):
            sync.find("job_" + "0" * 32)  # type: ignore[arg-type]


def test_many_threads_open_the_queue_once(jobs: AsyncJobs) -> None:
    def submit(number: int) -> SyncJobHandle[Any]:
        return jobs.sync.enqueue("double", number)

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(submit, range(64)))
    assert len({job.id for job in made}) == 64
    assert [thread.name for thread in threading.enumerate()].count("asyncjobs") == 1


@pytest.mark.anyio
async def test_a_sync_call_in_the_event_loop_names_the_method_to_await(jobs: AsyncJobs) -> None:
    async with jobs:
        with pytest.raises(BlockingCall, match=r"write `await jobs\.enqueue\(\.\.\.\)`"):
            jobs.sync.enqueue("double", 21)
        assert (await (await jobs.enqueue("double", 21)).result()) == 42


@pytest.mark.anyio
async def test_a_thread_uses_the_queue_that_is_open(jobs: AsyncJobs) -> None:
    async with jobs:
        handle = await to_thread.run_sync(lambda: jobs.sync.enqueue("double", 21))
        assert await to_thread.run_sync(lambda: handle.result(timeout=60)) == 42
        states = await to_thread.run_sync(lambda: [job.status for job in handle])
        assert states == [JobStatus.COMPLETED]


@pytest.mark.anyio
async def test_a_def_handler_can_submit_a_job_and_wait_for_it(jobs: AsyncJobs) -> None:
    async with jobs:
        assert await (await jobs.enqueue("follow", 21)).result(timeout=60) == 42


def test_sync_calls_work_beside_another_loop_as_in_a_notebook(jobs: AsyncJobs) -> None:
    async def cell() -> str:
        return jobs.sync.enqueue("double", 21).id

    ids = [asyncio.run(cell()), asyncio.run(cell()), anyio.run(cell, backend="trio")]
    assert len({*ids}) == 3


def result_at(client: TestClient, url: str) -> object:
    """Return the result of a job once it has one."""
    until_sync(lambda: client.get(url).json()["status"] == "completed")
    result: object = client.get(url).json()["result"]
    return result


def test_def_routes_can_submit_synchronously(jobs: AsyncJobs) -> None:
    app = FastAPI()
    on_fastapi.mount(app, jobs)

    @app.post("/double")
    def double(number: int) -> dict[str, str]:
        return {"jobId": jobs.sync.enqueue("double", number).id}

    with TestClient(app) as client:
        job_id = client.post("/double", params={"number": 21}).json()["jobId"]
        assert result_at(client, f"/api/jobs/{job_id}") == 42


def test_an_application_takes_over_a_queue_that_a_def_route_opened(jobs: AsyncJobs) -> None:
    sub = FastAPI()
    on_fastapi.mount(sub, jobs)

    @sub.post("/double")
    def double(number: int) -> dict[str, str]:
        return {"jobId": jobs.sync.enqueue("double", number).id}

    # A sub-application has no lifespan: the first route that needs the queue opens it.
    with TestClient(Starlette(routes=[Mount("/v1", sub)])) as client:
        ids = [
            client.post("/v1/double", params={"number": number}).json()["jobId"]
            for number in range(2)
        ]
        assert not jobs.is_open
        for number, job_id in enumerate(ids):
            assert result_at(client, f"/v1/api/jobs/{job_id}") == 2 * number
        last = client.post("/v1/double", params={"number": 21}).json()["jobId"]
        assert result_at(client, f"/v1/api/jobs/{last}") == 42


@pytest.mark.anyio
async def test_sync_calls_under_way_end_before_the_queue_is_taken_over(jobs: AsyncJobs) -> None:
    submitted: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            submitted.append(jobs.sync.enqueue("double", 1).id)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    await until(lambda: len(submitted) > 5)
    async with jobs:
        taken_over = len(submitted)
        await until(lambda: len(submitted) > taken_over + 5)
        stop.set()
        for thread in threads:
            await to_thread.run_sync(thread.join)
        ended = [await jobs.wait(job_id, timeout=60) for job_id in submitted]  # type: ignore[arg-type]
    assert {job.status for job in ended} == {JobStatus.COMPLETED}


@pytest.mark.parametrize("error", [StopAsyncIteration, GeneratorExit, CancelledError, KeyError])
@pytest.mark.parametrize("awaits", [True, False])
def test_whatever_a_call_raises_reaches_the_thread_that_waits_for_it(
    jobs: AsyncJobs, error: type[BaseException], *, awaits: bool
) -> None:
    async def raises_later() -> None:
        raise error

    def raises_at_once() -> Any:
        raise error

    with pytest.raises(error):
        jobs.sync.call("try", raises_later if awaits else raises_at_once)


def test_a_call_in_an_event_loop_that_is_closed_before_it_begins_is_an_error() -> None:
    loop = asyncio.new_event_loop()
    call = Call(asyncio.sleep, 0)
    calls: set[asyncio.Task[object]] = set()
    loop.call_soon_threadsafe(call.begin, calls)
    loop.close()
    with pytest.raises(RuntimeError, match="closed before"):
        call.wait(loop)


def test_a_queue_that_an_error_has_closed_is_opened_by_the_next_call(jobs: AsyncJobs) -> None:
    async def ends() -> None:
        raise SystemExit(3)

    job = jobs.sync.enqueue("double", 21)
    with pytest.raises(SystemExit):
        jobs.sync.call("end", ends)
    until_sync(lambda: jobs.event_loop is None)
    with suppress(UnknownJob):  # of a store in memory
        assert jobs.sync.find(job.id).id == job.id
    assert jobs.sync.enqueue("double", 21).job.type == "double"


def test_flask_starts_handlers_in_a_queue_that_a_script_opened(jobs: AsyncJobs) -> None:
    app = flask.Flask(__name__)
    on_flask.mount(app, jobs)
    job = jobs.sync.enqueue("double", 21)
    assert job.wait(timeout=0.05).status is JobStatus.PENDING
    assert app.test_client().get(f"/api/jobs/{job.id}").status_code == 200
    assert job.result(timeout=60) == 42
    assert jobs.is_open
    assert jobs.sync.enqueue("follow", 4).result(timeout=60) == 8


def test_an_interrupted_wait_leaves_no_watcher(jobs: AsyncJobs, tmp_path: Path) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until_sync(lambda: _watchers(jobs) == 1)
        signal.pthread_kill(main, signal.SIGINT)

    # A process started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with jobs.sync as sync:
        job = sync.enqueue("wait for a file", tmp_path / "go on")
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                job.wait()
        finally:
            signal.signal(signal.SIGINT, before)
        until_sync(lambda: _watchers(jobs) == 0)


def _watchers(jobs: AsyncJobs) -> int:
    async def count() -> int:
        return jobs.watchers

    return jobs.sync.call("watchers", count)


SCRIPT = """
import sys
from asyncjobs import AsyncJobs, JobContext

jobs = AsyncJobs(sys.argv[1])

@jobs.handler("slow")
async def slow(number: int, job: JobContext) -> int:
    raise SystemExit("a script runs no handler")

print(jobs.sync.enqueue(slow, 3).id)
"""


@pytest.mark.own_store
def test_a_script_submits_and_ends_without_running_the_job(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, url], check=True, capture_output=True, text=True, timeout=60
    )
    jobs = with_handlers(AsyncJobs(url))
    with jobs.sync as sync:
        found = sync.find(run.stdout.strip())  # type: ignore[arg-type]
        assert (found.type, found.status, found.attempt) == ("slow", JobStatus.PENDING, 0)
