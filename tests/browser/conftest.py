"""A real browser, and an application whose jobs are driven by the test."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Request, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import RedirectResponse, Response

from asyncjobs import AsyncJobs, Batch, EnqueueOptions, JobContext, JobFailed, Retry, Settings
from asyncjobs.adapters.starlette import accept, mount
from asyncjobs.testing import TcpProxy
from tests.waiting import until_sync

SETTINGS = Settings(progress_interval=timedelta(seconds=0.02), grace=timedelta(seconds=0.2))

# The browser's own background requests would be counted as the page's.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Not localhost: there, browsers do not send Sec-Fetch-Site over plain HTTP.
    "--host-resolver-rules=MAP jobs.test 127.0.0.1",
]

Step = dict[str, Any]


def make_app(store: str, base_url: str | None = None) -> Starlette:
    """Serve jobs of type `export`; each `POST /tell/{id}` makes the job take one step.

    The cookie `user` names the caller.
    """
    app, jobs = Starlette(), AsyncJobs(store, settings=SETTINGS)
    steps: defaultdict[str, asyncio.Queue[Step]] = defaultdict(asyncio.Queue)

    @jobs.handler("export", estimate=30, retry=Retry(max_attempts=2, initial_delay=timedelta(0)))
    async def export(_: dict[str, Any], job: JobContext) -> Any:
        while True:
            step = await steps[job.id].get()
            if "result" in step:
                return step["result"]
            await _take(step, job)

    async def submit(request: Asked) -> Response:
        tags = request.query_params.getlist("tag")
        title = request.query_params.get("title")
        return await accept(request, export, options=EnqueueOptions(tags=tags, title=title))

    async def tell(request: Asked) -> Response:
        steps[request.path_params["job_id"]].put_nowait(await request.json())
        return Response()

    async def empty(_: Asked) -> Response:
        return Response("<!doctype html><title>A page</title><body></body>", media_type="text/html")

    async def circle(_: Asked) -> Response:
        return RedirectResponse("/circle")

    app.add_route("/empty", empty)
    app.add_route("/circle", circle)
    app.add_route("/exports", submit, methods=["POST"])
    app.add_route("/batches", _submit_batch, methods=["POST"])
    app.add_route("/tell/{job_id}", tell, methods=["POST"])
    mount(app, jobs, base_url=base_url, identify=lambda asked: asked.cookies.get("user"))
    return app


async def _take(step: Step, job: JobContext) -> None:
    """Do what the test told the job; raise how it is to fail."""
    if "error" in step:
        raise JobFailed(step["error"], step["code"])
    if "fault" in step:
        raise LookupError(step["fault"])
    if "emit" in step:
        await job.stream(step.get("stream", "output")).emit(step["emit"])
    elif "title" in step:
        job.set_title(step["title"])
        job.set_metadata(step["metadata"])
    else:
        await job.progress(**step)


async def _submit_batch(request: Asked) -> Response:
    """Submit a batch of exports; the query has their number."""
    payloads: list[dict[str, Any]] = [{}] * int(request.query_params["jobs"])
    options = EnqueueOptions(title="All exports")
    return await accept(request, "export", Batch(payloads), options=options)


@dataclass(frozen=True)
class Export:
    """A job that the test drives."""

    client: httpx2.Client
    id: str
    path: str

    @property
    def url(self) -> str:
        return str(self.client.base_url.join(self.path))

    def tell(self, **step: Any) -> None:
        self.client.post(f"/tell/{self.id}", json=step).raise_for_status()

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get(self.url).raise_for_status().json()
        return document

    def until_ended(self) -> dict[str, Any]:
        """Wait until the job ends; return its last document."""
        until_sync(lambda: self.document()["completedAt"])
        return self.document()


@contextmanager
def serving(store: str, *, absolute: bool = False) -> Generator[httpx2.Client]:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        make_app(store, url if absolute else None), log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with httpx2.Client(base_url=url, timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(new_url: Callable[[], str]) -> Generator[httpx2.Client]:
    with serving(new_url()) as served:
        yield served


def submitted(client: httpx2.Client, user: str | None = None, **query: str) -> Export:
    headers = {} if user is None else {"Cookie": f"user={user}"}
    answer = client.post("/exports", json={}, params=query, headers=headers)
    accepted = answer.raise_for_status().json()
    return Export(client, accepted["jobId"], accepted["statusUrl"])


@pytest.fixture
def job(client: httpx2.Client) -> Generator[Export]:
    begun = submitted(client)
    yield begun
    client.delete(begun.path)  # only so many run at a time


@pytest.fixture
def begin(client: httpx2.Client) -> Generator[Callable[..., Export]]:
    """Return a function that submits a job as a user, with a tag and a title."""
    begun: list[tuple[Export, str]] = []

    def submit(user: str, **query: str) -> Export:
        begun.append((submitted(client, user, **query), user))
        return begun[-1][0]

    yield submit
    for job, user in begun:
        client.delete(job.path, headers={"Cookie": f"user={user}"})


@pytest.fixture
def absolute_job(new_url: Callable[[], str]) -> Generator[Export]:
    """A job of an application with a `base_url`."""
    with serving(new_url(), absolute=True) as client:
        yield submitted(client)


# Not for the session: while Playwright is open, it keeps this thread's event loop for itself.
@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"There is no browser: none of {', '.join(names)} is on the PATH.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def proxy(client: httpx2.Client) -> Generator[TcpProxy]:
    """A proxy in front of the server that can cut connections."""
    with TcpProxy(client.base_url.host, client.base_url.port or 0) as proxy:
        yield proxy


@dataclass
class Seen:
    """The requests of a page, and the messages of its console."""

    requests: list[Request] = field(default_factory=list[Request])
    faults: list[str] = field(default_factory=list[str])

    def count(self, suffix: str) -> int:
        return sum(request.url.endswith(suffix) for request in self.requests)

    def asked(self, request: Request) -> None:
        self.requests.append(request)

    def attach(self, page: Page) -> None:
        page.on("request", self.asked)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text))


OpenPage = Callable[..., Page]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def open_page(browser: Browser, seen: Seen) -> Generator[OpenPage]:
    """Open a page in a new browser context; a console message fails the test.

    Messages about failed requests do not count, since tests cause those themselves.
    """
    pages: list[Page] = []

    def opened(**context: Any) -> Page:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(10_000)
        seen.attach(page)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert [text for text in seen.faults if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()
