"""`StatusMonitor` in ASGI applications without an adapter: plain ASGI, and Litestar."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import litestar
import pytest
from litestar.types import Receive, Scope, Send
from starlette.testclient import TestClient

from asyncjobs import AsyncJobs
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.core.job import new_job_id

PREFLIGHT = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}


def bare(monitor: StatusMonitor) -> Any:
    """Return the monitor itself, inside a lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await monitor(scope, receive, send)
            return
        await receive()
        async with monitor.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return app


def on_litestar(monitor: StatusMonitor) -> Any:
    """Mount the monitor as Litestar does: strip the prefix and add a slash."""

    @litestar.asgi(["/api/jobs", "/ws/jobs"], is_mount=True, copy_scope=True)
    async def status(scope: Scope, receive: Receive, send: Send) -> None:
        await monitor(scope, receive, send)  # type: ignore[arg-type]

    @asynccontextmanager
    async def lifespan(_: litestar.Litestar) -> AsyncGenerator[None]:
        async with monitor.running():
            yield

    return litestar.Litestar([status], lifespan=[lifespan], openapi_config=None)


def by_header(scope: Any) -> str | None:
    name: str | None = dict(scope["headers"]).get(b"x-user", b"").decode() or None
    return name


@pytest.fixture(params=[bare, on_litestar])
def client(request: pytest.FixtureRequest) -> Generator[TestClient]:
    jobs = AsyncJobs("memory://")
    jobs.external("outside", payload=int, result=str)
    build: Callable[[StatusMonitor], Any] = request.param
    app = build(StatusMonitor(jobs, identify=by_header))
    with TestClient(app, headers={"X-User": "ann"}) as client:
        client.app_state["jobs"] = jobs
        yield client


@pytest.fixture
def url(client: TestClient) -> str:
    jobs: AsyncJobs = client.app_state["jobs"]
    assert client.portal is not None

    async def submit() -> str:
        return (await jobs.enqueue("outside", 1, user_id="ann")).id

    return f"/api/jobs/{client.portal.call(submit)}"


def test_a_job_is_found_by_each_of_its_urls(client: TestClient, url: str) -> None:
    for path in (url, f"{url}/"):
        document = client.get(path).raise_for_status().json()
        assert url == f"/api/jobs/{document['jobId']}"
    assert client.get(f"{url}/result").status_code == 202
    assert client.get(f"{url}/operation").status_code == 200
    assert client.get("/api/jobs").json()["jobs"][0]["statusUrl"] == url
    assert client.get("/api/jobs/client.js").status_code == 200
    assert client.delete(url).json()["status"] == "cancelled"
    assert client.get(f"{url}/events").text.count("data:") == 1


def test_a_job_is_followed_by_its_websocket(client: TestClient, url: str) -> None:
    path = url.replace("/api", "/ws")
    for one in (path, f"{path}/"):
        with client.websocket_connect(one) as socket:
            assert socket.receive_json()["jobId"] == url.rpartition("/")[2]


@pytest.mark.parametrize("path", ["/x", "/{id}/nothing", "/{id}%0A", "/{id}/%0A"])
def test_an_odd_path_is_not_found(client: TestClient, path: str) -> None:
    answer = client.get("/api/jobs" + path.format(id=new_job_id()))
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_preflight_passes(client: TestClient, url: str) -> None:
    for path in (url, f"{url}/cancel", "/api/jobs/x"):
        assert client.options(path, headers=PREFLIGHT).status_code == 204
