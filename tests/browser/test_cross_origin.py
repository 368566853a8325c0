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
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from asyncjobs import AsyncJobs, JobContext, MountOptions, Tokens
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.adapters.asgi import StatusMonitor
from tests.waiting import until_sync
from tests.wsgi import serving_wsgi

METHODS = ["GET", "POST", "DELETE"]
ALLOWED = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Prefer"]
TOKENS = Tokens("the secret of the tests, in 32 bytes or more")
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

    @jobs.handler("words")
    async def words(job: JobContext) -> None:
        for number in range(5):
            await job.emit(f"{number} ")

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


FOLLOW_OUTPUT = """async ([api, url, headers]) => {
    const {followOutput} = await import(`${api}/api/jobs/client.js`);
    let text = "";
    const end = await followOutput(url, {headers, onItems: (items) => (text += items.join(""))});
    return [text, end.epoch];
}"""


def test_output_is_followed_although_its_headers_are_hidden(
    api: str, jobs: AsyncJobs, page: Page
) -> None:
    page.request.get(f"{api}/api/jobs/job_x")  # opens the queue
    job = jobs.sync.enqueue("words", None, user_id="Bearer ann")
    owner = {"Authorization": "Bearer ann"}
    url = f"{api}/api/jobs/{job.id}"
    assert page.evaluate(FOLLOW_OUTPUT, [api, url, owner]) == ["0 1 2 3 4 ", 1]


def test_refusals_of_the_server_can_be_read(api: str, page: Page) -> None:
    for path in ("job_x", "job_x/nothing"):
        answer = page.evaluate(FETCH, [f"{api}/api/jobs/{path}", "DELETE", {}])
        assert (answer[0], answer[1]["code"]) == (404, "job_not_found")


FOLLOW_ACCEPTED = """async ([api, transport]) => {
    const {submitJob, followJob} = await import(`${api}/api/jobs/client.js`);
    const job = await submitJob(`${api}/exports`, 1, {headers: {"X-User": "ann"}});
    window.seen = [];
    // Nothing but the document of the 202: no header and no cookie names the caller.
    const onUpdate = (document) => seen.push(document.status);
    const followed = followJob({...job, retryAfter: 0}, {transport, onUpdate});
    while (!seen.length) await new Promise((resolve) => setTimeout(resolve, 10));
    const {status} = await followed.cancel();
    await followed;
    return [job.statusUrl, status, seen];
}"""

BY_HAND = """async (api) => {
    const headers = {"Content-Type": "application/json", "X-User": "ann"};
    const answer = await fetch(`${api}/exports`, {method: "POST", body: "1", headers});
    const {jobId, eventsUrl, token} = await answer.json();
    const first = (source) => new Promise((resolve) => {
        const leave = (found) => { source.close(); resolve(found); };
        source.onmessage = ({data}) => leave(JSON.parse(data).jobId === jobId);
        source.onerror = () => leave("refused");
    });
    const sockets = `${api.replace("http", "ws")}/ws/jobs/${jobId}`;
    return Promise.all([
        first(new EventSource(`${api}${eventsUrl}?token=${token}`)),
        first(new WebSocket(`${sockets}?token=${token}`)),
        first(new EventSource(`${api}${eventsUrl}`)),
    ]);
}"""


def refusing(request: Request) -> str:
    """Identify callers by a header that pages cannot send with EventSource or a WebSocket."""
    name = request.headers.get("X-User")
    if name is None:
        raise HTTPException(401)
    return name


def accepting_starlette(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    app = Starlette(middleware=[by_token(origin)])

    async def submit(request: Request) -> Response:
        return await on_starlette.accept(request, "outside")

    app.add_route("/exports", submit, methods=["POST"])
    options = MountOptions(origins=(origin,))
    on_starlette.mount(app, jobs, identify=refusing, options=options, tokens=TOKENS)
    return by_uvicorn(app)


def accepting_fastapi(jobs: AsyncJobs, origin: str) -> AbstractContextManager[str]:
    app = FastAPI(middleware=[by_token(origin)])
    options = MountOptions(origins=(origin,))
    on_fastapi.mount(app, jobs, identify=refusing, options=options, tokens=TOKENS)

    @app.post("/exports")
    async def submit(accept: on_fastapi.Accept) -> Response:
        return await accept("outside")

    return by_uvicorn(app)


@contextmanager
def accepting_flask(jobs: AsyncJobs, origin: str) -> Generator[str]:
    app = flask.Flask(__name__)

    def identify(request: Any) -> str:
        if "X-User" not in request.headers:
            flask.abort(401)
        return str(request.headers["X-User"])

    options = MountOptions(origins=(origin,))
    on_flask.mount(app, jobs, identify=identify, options=options, tokens=TOKENS)
    app.add_url_rule("/exports", "exports", lambda: on_flask.accept("outside"), methods=["POST"])
    CORS(app, origins=[origin], methods=METHODS, allow_headers=[*ALLOWED, "X-User"])
    try:
        with serving_wsgi(app) as url:
            yield url
    finally:
        on_flask.portal_of(jobs, app).close()


def by_token(origin: str) -> Any:
    """Allow another origin, without credentials."""
    return Middleware(
        CORSMiddleware,
        allow_origins=[origin],
        allow_methods=METHODS,
        allow_headers=[*ALLOWED, "X-User"],
    )


ACCEPTING: dict[str, Serve] = {
    "starlette": accepting_starlette,
    "fastapi": accepting_fastapi,
    "flask": accepting_flask,
}


@pytest.fixture(params=ACCEPTING)
def accepting(request: pytest.FixtureRequest, jobs: AsyncJobs, origin: str) -> Generator[str]:
    with ACCEPTING[request.param](jobs, origin) as url:
        yield url


@pytest.mark.parametrize("transport", ["socket", "events", "wait", "poll"])
def test_a_job_is_followed_and_cancelled_with_nothing_but_its_202(
    accepting: str, page: Page, transport: str, request: pytest.FixtureRequest
) -> None:
    if transport == "socket" and request.node.callspec.params["accepting"] == "flask":
        pytest.skip("Werkzeug's own server writes after the close frame, which the console reports")
    url, status, seen = page.evaluate(FOLLOW_ACCEPTED, [accepting, transport])
    assert url.startswith(f"{accepting}/api/jobs/job_")
    assert (status, seen) == ("cancelled", ["pending", "cancelled"])


def test_events_and_sockets_of_another_site_open_by_a_token_alone(
    accepting: str, page: Page
) -> None:
    assert page.evaluate(BY_HAND, accepting) == [True, True, "refused"]
