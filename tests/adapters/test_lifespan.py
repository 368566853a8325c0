"""The queue is open while the application runs, around the application's own lifespan."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import ConfigurationError, ResourcesUnavailable
from tests.waiting import until_sync

Lifespan = Callable[[Any], Any]
Make = Callable[[AsyncJobs, Lifespan | None], Starlette]

pytestmark = pytest.mark.every_store


@pytest.fixture
def jobs(new_url: Callable[[], str]) -> AsyncJobs:
    jobs = AsyncJobs(new_url())

    @jobs.handler("double")
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    return jobs


def on_plain_starlette(jobs: AsyncJobs, lifespan: Lifespan | None) -> Starlette:
    app = Starlette(lifespan=lifespan)
    on_starlette.mount(app, jobs)
    return app


def on_plain_fastapi(jobs: AsyncJobs, lifespan: Lifespan | None) -> Starlette:
    app = FastAPI(lifespan=lifespan)
    on_fastapi.mount(app, jobs)
    return app


each_framework = pytest.mark.parametrize("make", [on_plain_starlette, on_plain_fastapi])


class NoNetwork(AbstractAsyncContextManager[None]):
    async def __aenter__(self) -> None:
        raise OSError("no network")

    async def __aexit__(self, *_: object) -> None:
        return None


class State(TypedDict):
    motto: str


@each_framework
def test_the_apps_own_lifespan_runs_while_the_queue_is_open(make: Make, jobs: AsyncJobs) -> None:
    seen: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[State]:
        seen.append(("begin", jobs.is_open))
        yield {"motto": "early"}
        await jobs.enqueue("double", 21)
        seen.append(("end", jobs.is_open))

    async def motto(request: Request) -> Response:
        return JSONResponse(request.state.motto)

    app = make(jobs, lifespan)
    app.add_route("/motto", motto)
    with TestClient(app) as client:
        assert client.get("/motto").json() == "early"
    assert seen == [("begin", True), ("end", True)]
    assert not jobs.is_open


@each_framework
def test_handlers_run_only_between_the_apps_startup_and_its_shutdown(
    make: Make, new_url: Callable[[], str]
) -> None:
    jobs, seen = AsyncJobs(new_url()), list[str]()

    @jobs.handler("note")
    async def note(text: str, _: JobContext) -> None:
        seen.append(text)
        if text == "slow":
            await anyio.sleep(0.2)
            seen.append("slow has ended")

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        backlog = await jobs.enqueue(note, "backlog")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        with pytest.raises(ConfigurationError, match="starts or stops"):
            await jobs.wait(backlog.id)
        seen.append("started")
        yield
        seen.append("stopping")
        late = await jobs.enqueue(note, "late")
        with pytest.raises(ConfigurationError, match="starts or stops"):
            await jobs.wait(late.id)
        assert (await jobs.wait(late.id, timeout=0.01)).status is JobStatus.PENDING

    app = make(jobs, lifespan)

    async def begin(request: Request) -> Response:
        return await on_starlette.accept(request, note, "slow")

    app.add_route("/begin", begin, methods=["POST"])
    with TestClient(app) as client:
        until_sync(lambda: "backlog" in seen)
        assert client.post("/begin").status_code == 202
        until_sync(lambda: "slow" in seen)
    assert seen.index("started") < seen.index("backlog")
    assert seen[-2:] == ["slow has ended", "stopping"]


@each_framework
def test_an_app_does_not_start_if_the_handlers_lifespan_fails(make: Make, jobs: AsyncJobs) -> None:
    jobs = AsyncJobs(jobs.store, lifespan=NoNetwork)
    app = make(jobs, None)
    with pytest.raises(ResourcesUnavailable, match="no network"), TestClient(app):
        pass
    assert not jobs.is_open


@each_framework
def test_an_app_without_a_lifespan_opens_and_closes_the_queue(make: Make, jobs: AsyncJobs) -> None:
    with TestClient(make(jobs, None)):
        assert jobs.is_open
    assert not jobs.is_open


@each_framework
def test_an_app_can_be_started_again(make: Make, jobs: AsyncJobs) -> None:
    app = make(jobs, None)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get(f"/api/jobs/{new_job_id()}").status_code == 404


@each_framework
def test_a_queue_that_is_already_open_stays_open(make: Make, jobs: AsyncJobs) -> None:
    app = make(jobs, None)
    # The same queue under a second prefix.
    on_starlette.mount(app, jobs, prefix="/again")
    with TestClient(app) as client:
        assert client.get(f"/again/{new_job_id()}").status_code == 404
    assert not jobs.is_open


@each_framework
def test_an_app_whose_lifespan_fails_closes_the_queue(make: Make, jobs: AsyncJobs) -> None:
    app = make(jobs, lambda _: NoNetwork())
    with pytest.raises(OSError, match="no network"), TestClient(app):
        pass
    assert not jobs.is_open


@each_framework
def test_a_sub_application_opens_the_queue_at_first_use(make: Make, jobs: AsyncJobs) -> None:
    sub = make(jobs, None)

    async def begin(request: Request) -> Response:
        return await on_starlette.accept(request, jobs.registry.find("double"), 21)

    sub.add_route("/begin", begin, methods=["POST"])
    with TestClient(Starlette(routes=[Mount("/v1", sub)])) as client:
        assert not jobs.is_open
        answer = client.post("/v1/begin", headers={"Prefer": "wait=20"})
        assert (answer.status_code, answer.json()["result"]) == (200, 42)
        job_id = answer.json()["jobId"]
        assert client.get(f"/v1/api/jobs/{job_id}").status_code == 200
        with client.websocket_connect(f"/v1/ws/jobs/{job_id}") as socket:
            assert socket.receive_json()["result"] == 42
    # The event loop has ended, and the queue with it.
    assert not jobs.is_open


@each_framework
@pytest.mark.own_store  # the drivers of servers need asyncio
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_any_lifespan_each_event_loop_opens_the_queue(
    make: Make, new_store: Callable[[], Any], backend: Any
) -> None:
    jobs = AsyncJobs(new_store())
    client = TestClient(make(jobs, None), backend=backend)  # not entered: a loop per request
    for _ in range(2):
        assert client.get(f"/api/jobs/{new_job_id()}").status_code == 404
        assert not jobs.is_open


@each_framework
@pytest.mark.own_store
def test_a_queue_that_cannot_be_opened_at_the_first_request_is_tried_again(
    make: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "later"
    sub = make(AsyncJobs(f"sqlite:///{folder / 'jobs.db'}"), None)
    with TestClient(Starlette(routes=[Mount("/v1", sub)])) as client:
        for status in (503, 404):
            assert client.get(f"/v1/api/jobs/{new_job_id()}").status_code == status
            folder.mkdir(exist_ok=True)


def test_the_bare_monitor_serves_with_a_stripped_or_a_full_path(
    jobs: AsyncJobs,
) -> None:
    monitor = StatusMonitor(jobs, prefix="/jobs")

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        async with jobs:
            yield

    async def begin(_: Request) -> Response:
        return JSONResponse((await jobs.enqueue("double", 21)).id)

    routes = [Route("/begin", begin), Mount("/jobs", monitor), Mount("", monitor)]
    with TestClient(Starlette(routes=routes, lifespan=lifespan)) as client:
        job_id = client.get("/begin").json()
        assert client.get(f"/jobs/{job_id}").status_code == 200
        assert client.get(f"/{job_id}").status_code == 200
        assert client.get(f"/elsewhere/{job_id}").status_code == 404


def test_the_bare_monitor_has_no_lifespan_of_its_own(jobs: AsyncJobs) -> None:
    with pytest.raises(RuntimeError, match="scope 'lifespan'"), TestClient(StatusMonitor(jobs)):
        pass


@each_framework
def test_every_repeated_if_none_match_header_is_read(make: Make, jobs: AsyncJobs) -> None:
    app = make(jobs, None)

    async def begin(request: Request) -> Response:
        return await on_starlette.accept(request, jobs.registry.find("double"), 21)

    app.add_route("/begin", begin, methods=["POST"])
    with TestClient(app) as client:
        url = client.post("/begin").json()["statusUrl"]
        while client.get(url).json()["status"] != "completed":
            pass
        tag = client.get(url).headers["etag"]
        headers = [("If-None-Match", tag), ("If-None-Match", '"0"')]
        assert client.get(url, headers=headers).status_code == 304
