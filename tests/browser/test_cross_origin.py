"""Pages of another origin: the frameworks' own CORS layers work for the jobs' routes."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import flask
import pytest
import uvicorn
from fastapi import FastAPI
from flask_cors import CORS
from litestar import Litestar, asgi
from litestar.config.cors import CORSConfig
from litestar.types import Receive, Scope, Send
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from asyncjobs import AsyncJobs, MountOptions
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.adapters.asgi import StatusMonitor
from tests.waiting import until_sync
from tests.wsgi import serving_wsgi

METHODS = ["GET", "POST", "DELETE"]
ALLOWED = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Prefer"]
EXPOSED = ["Link", "Preference-Applied", "Retry-After"]

OpenPage = Callable[..., Page]
Serve = Callable[[AsyncJobs, str], AbstractContextManager[str]]


def by_header(request: Any) -> str | None:
    """Return the caller; a preflight has no credentials and thus no caller."""
    assert request.method != "OPTIONS"
    name: str | None = request.headers.get("Authorization")
    return name


def by_scope(scope: Any) -> str | None:
    assert scope["method"] != "OPTIONS"
    return dict(scope["headers"]).get(b"authorization", b"").decode() or None


@contextmanager
def by_uvicorn(app: Any) -> Generator[str]:
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until_sync(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def middleware(origin: str) -> Any:
    return Middleware(
        CORSMiddleware,
        allow_origins=[origin],
        allow_methods=METHODS,
        allow_headers=ALLOWED,
        expose_headers=EXPOSED,
    )


def starlette(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    app = Starlette(middleware=[middleware(origin)])
    on_starlette.mount(app, jobs, identify=by_header, options=MountOptions(origins=(origin,)))
    return by_uvicorn(app)


def fastapi(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    app = FastAPI(middleware=[middleware(origin)])
    on_fastapi.mount(app, jobs, identify=by_header, options=MountOptions(origins=(origin,)))
    return by_uvicorn(app)


def litestar(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    monitor = StatusMonitor(jobs, identify=by_scope, options=MountOptions(origins=(origin,)))

    @asgi("/api/jobs", is_mount=True, copy_scope=True)
    async def status(scope: Scope, receive: Receive, send: Send) -> None:
        await monitor(scope, receive, send)  # type: ignore[arg-type]

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        async with monitor.running():
            yield

    config = CORSConfig(
        allow_origins=[origin],
        allow_methods=METHODS,  # type: ignore[arg-type]
        allow_headers=ALLOWED,
        expose_headers=EXPOSED,
    )
    return by_uvicorn(Litestar([status], lifespan=[lifespan], cors_config=config))


def bare(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    """Serve the monitor in a layer that adds headers and sends no answers of its own."""
    monitor = StatusMonitor(jobs, identify=by_scope, options=MountOptions(origins=(origin,)))
    added = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": ", ".join(METHODS),
        "access-control-allow-headers": ", ".join(ALLOWED),
        "access-control-expose-headers": ", ".join(EXPOSED),
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if scope["type"] == "http":
            await monitor(scope, receive, sending)

    return by_uvicorn(app)


@contextmanager
def on_werkzeug(jobs: AsyncJobs, origin: str) -> Generator[str]:
    app = flask.Flask(__name__)
    on_flask.mount(app, jobs, identify=by_header, options=MountOptions(origins=(origin,)))
    CORS(
        app,
        origins=[origin],
        methods=METHODS,
        allow_headers=ALLOWED,
        expose_headers=EXPOSED,
    )
    try:
        with serving_wsgi(app) as url:
            yield url
    finally:
        on_flask.portal_of(jobs, app).close()


SERVED: dict[str, Serve] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "flask": on_werkzeug,
    "litestar": litestar,
    "bare": bare,
}


@pytest.fixture(scope="module")
def origin() -> Generator[str]:
    """The origin of an empty page without jobs."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            text = "<!doctype html><link rel=icon href=data:,><title>A page</title>"
            await Response(text, media_type="text/html")(scope, receive, send)

    with by_uvicorn(page) as url:
        # A name that the browser resolves to this machine: another site than the API's.
        yield url.replace("127.0.0.1", "jobs.test")


@pytest.fixture(params=SERVED)
def api(request: pytest.FixtureRequest, jobs: AsyncJobs, origin: str) -> Generator[str]:
    with SERVED[request.param](jobs, origin) as url:
        yield url


@pytest.fixture
def jobs() -> AsyncJobs:
    jobs = AsyncJobs("memory://")
    jobs.external("outside", payload=int, result=str)
    return jobs


@pytest.fixture
def page(open_page: OpenPage, origin: str) -> Page:
    page = open_page()
    page.goto(f"{origin}/")
    return page


def submit(api: str, jobs: AsyncJobs, page: Page, owner: str | None) -> str:
    """Submit a job when the queue is open in the server; return its URL."""
    page.request.get(f"{api}/api/jobs/job_x")
    return f"{api}/api/jobs/{jobs.sync.enqueue('outside', 1, user_id=owner).id}"


FETCH = """async ([url, method, headers]) => {
    const answer = await fetch(url, {method, headers});
    return [answer.status, answer.status === 304 ? null : await answer.json()];
}"""

FOLLOW = """async ([api, url, headers]) => {
    const {followJob, cancelJob} = await import(`${api}/api/jobs/client.js`);
    window.seen = [];
    const followed = followJob(url, {headers, onUpdate: (job) => seen.push(job.status)});
    while (!seen.length) await new Promise((resolve) => setTimeout(resolve, 10));
    await cancelJob(url, {headers});
    await followed.catch(() => null);
    return seen;
}"""


@pytest.mark.parametrize("how", [["DELETE", ""], ["POST", "/cancel"]], ids=["delete", "cancel"])
def test_a_job_is_read_and_cancelled(api: str, jobs: AsyncJobs, page: Page, how: list[str]) -> None:
    url = submit(api, jobs, page, "Bearer ann")
    owner = {"Authorization": "Bearer ann"}
    read = page.evaluate(FETCH, [url, "GET", owner])
    assert (read[0], read[1]["status"]) == (200, "pending")
    known = {**owner, "If-None-Match": f'"{read[1]["version"]}"', "Prefer": "wait=0"}
    assert page.evaluate(FETCH, [url, "GET", known])[0] in {200, 304}
    status, document = page.evaluate(FETCH, [url + how[1], how[0], owner])
    assert (status, document["status"]) == (200, "cancelled")


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer ann"}, {}], ids=["owned", "public"])
def test_a_job_is_followed_and_cancelled_by_the_client(
    api: str, jobs: AsyncJobs, page: Page, headers: dict[str, str]
) -> None:
    url = submit(api, jobs, page, headers.get("Authorization"))
    assert page.evaluate(FOLLOW, [api, url, headers]) == ["pending", "cancelled"]


def test_refusals_of_the_server_can_be_read(api: str, page: Page) -> None:
    for path in ("job_x", "job_x/nothing"):
        answer = page.evaluate(FETCH, [f"{api}/api/jobs/{path}", "DELETE", {}])
        assert (answer[0], answer[1]["code"]) == (404, "job_not_found")
