"""One small application on each framework; clients only know its URL."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import anyio
import flask
import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asyncjobs import AsyncJobs, JobContext, JobFailed, JobType, Settings
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.http.headers import Pacing
from asyncjobs.http.mounts import MountOptions
from asyncjobs.testing import TcpProxy
from tests.npm import NODE, install_packages
from tests.waiting import until_sync
from tests.wsgi import serving_wsgi

SCRIPTS = Path(__file__).parent / "js"
SETTINGS = Settings(progress_interval=timedelta(seconds=0.02), grace=timedelta(seconds=0.2))
OPTIONS = MountOptions(pacing=Pacing(1, 1))

Payload = dict[str, Any]


def make_jobs(store: str, files: str) -> AsyncJobs:
    """Register a job type for each outcome; `gate` waits until `release` opens it."""
    jobs = AsyncJobs(store, settings=SETTINGS, files=files)
    gates: dict[str, anyio.Event] = {}

    @jobs.handler("double")
    async def double(cmd: Payload, _: JobContext) -> Payload:
        return {"doubled": cmd["count"] * 2}

    @jobs.handler("full")
    async def full(cmd: Payload, job: JobContext) -> None:
        await save_files(cmd, job)
        raise JobFailed("The disk is full.", "disk_full")

    @jobs.handler("gate")
    async def gate(cmd: Payload, job: JobContext) -> Payload:
        await job.progress(40, "waiting")
        await gates.setdefault(cmd["name"], anyio.Event()).wait()
        return {"opened": cmd["name"]}

    @jobs.handler("emits")
    async def emits(cmd: Payload, job: JobContext) -> None:
        """Emit the first half of the items, wait at the gate, and emit the rest."""
        stream, items = job.stream(cmd["stream"]), cmd["items"]
        for place, item in enumerate(items):
            if place == len(items) // 2:
                await job.progress(50)
                await gates.setdefault(cmd["name"], anyio.Event()).wait()
            await stream.emit(bytes(item) if cmd["stream"] == "raw" else item)

    @jobs.handler("saves")
    async def saves(cmd: Payload, job: JobContext) -> None:
        await save_files(cmd, job)

    @jobs.handler("release")
    async def release(cmd: Payload, _: JobContext) -> None:
        gates.setdefault(cmd["name"], anyio.Event()).set()

    return jobs


async def save_files(cmd: Payload, job: JobContext) -> None:
    for name, size in cmd.get("sizes", {}).items():
        await job.save_file(name, bytes(size))


@dataclass(frozen=True)
class Asked:
    """A request that the server received."""

    method: str
    path: str
    last_event_id: str | None
    key: str | None
    at: float = field(default_factory=time.monotonic)


@dataclass
class ServedJob:
    """One job at the served application."""

    served: Served
    document: dict[str, Any]
    name: str = ""

    @property
    def status_url(self) -> str:
        return self.served.url + str(self.document["statusUrl"])

    @property
    def events_url(self) -> str:
        return self.served.url + self.events_path

    @property
    def events_path(self) -> str:
        return str(self.document["eventsUrl"])

    @property
    def socket_url(self) -> str:
        host = self.served.url.removeprefix("http")
        return f"ws{host}/ws/jobs/{self.document['jobId']}"

    def until(self, **members: Any) -> None:
        """Wait until the job's document has these members."""
        until_sync(lambda: members.items() <= httpx2.get(self.status_url).json().items())

    def release(self) -> None:
        self.served.submit("release", name=self.name)


@dataclass
class Served:
    """An application behind a URL, and the requests it has received."""

    url: str = ""
    seen: list[Asked] = field(default_factory=list[Asked])

    def submit(self, kind: str, **payload: Any) -> ServedJob:
        answer = httpx2.post(f"{self.url}/{kind}", json=payload)
        assert answer.status_code == 202, answer.text
        return ServedJob(self, answer.json(), payload.get("name", ""))

    def requests(self, path: str) -> list[Asked]:
        return [asked for asked in self.seen if asked.path == path]


def starlette_app(jobs: AsyncJobs) -> Starlette:
    async def submit(request: Request) -> Response:
        kind: JobType[Any, Any] = jobs.registry.find(request.path_params["kind"])
        return await on_starlette.accept(request, kind)

    app = Starlette(routes=[Route("/{kind}", submit, methods=["POST"])])
    on_starlette.mount(app, jobs, options=OPTIONS)
    return app


def fastapi_app(jobs: AsyncJobs) -> FastAPI:
    app = FastAPI()

    @app.post("/{kind}")
    async def submit(  # pyright: ignore[reportUnusedFunction]  # called by the application
        kind: str, cmd: Payload, accept: on_fastapi.Accept
    ) -> Response:
        found: JobType[Any, Any] = jobs.registry.find(kind)
        return await accept(found, cmd)

    on_fastapi.mount(app, jobs, options=OPTIONS)
    return app


def flask_app(jobs: AsyncJobs) -> flask.Flask:
    app = flask.Flask(__name__)

    def submit(kind: str) -> flask.Response:
        found: JobType[Any, Any] = jobs.registry.find(kind)
        return on_flask.accept(found)

    app.add_url_rule("/<kind>", "submit", submit, methods=["POST"])
    on_flask.mount(app, jobs, options=OPTIONS)
    return app


@contextmanager
def serving_asgi(app: Any, served: Served) -> Generator[str]:
    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            sent = (headers.get("last-event-id"), headers.get("idempotency-key"))
            served.seen.append(Asked(scope["method"], scope["path"], *sent))
        await app(scope, receive, send)

    config = uvicorn.Config(recorded, port=0, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    with config.bind_socket() as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            listening.listen()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving_flask(app: flask.Flask, served: Served) -> Generator[str]:
    def recorded(environ: Any, start_response: Any) -> Any:
        sent = (environ.get("HTTP_LAST_EVENT_ID"), environ.get("HTTP_IDEMPOTENCY_KEY"))
        served.seen.append(Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], *sent))
        return app(environ, start_response)

    try:
        with serving_wsgi(recorded) as url:
            yield url
    finally:
        for mounted in app.extensions["asyncjobs"]:
            mounted.portal.close()


@contextmanager
def serving(framework: str, store: str) -> Generator[Served]:
    with TemporaryDirectory() as folder, _serving(framework, make_jobs(store, folder)) as served:
        yield served


@contextmanager
def _serving(framework: str, jobs: AsyncJobs) -> Generator[Served]:
    served = Served()
    if framework == "flask":
        running = serving_flask(flask_app(jobs), served)
    elif framework == "fastapi":
        running = serving_asgi(fastapi_app(jobs), served)
    else:
        running = serving_asgi(starlette_app(jobs), served)
    with running as served.url:
        yield served


@pytest.fixture(scope="session", params=["fastapi", "starlette", "flask"])
def served(request: pytest.FixtureRequest, new_url: Callable[[], str]) -> Generator[Served]:
    with serving(request.param, new_url()) as served:
        yield served


@pytest.fixture
def gate(served: Served, request: pytest.FixtureRequest) -> Generator[ServedJob]:
    """A job that has reported progress and ends when it is released."""
    job = served.submit("gate", name=request.node.nodeid)
    job.until(progress=40)
    yield job
    job.release()


@pytest.fixture
def proxy(served: Served) -> Generator[TcpProxy]:
    """A proxy in front of the server that can cut connections."""
    parts = urlsplit(served.url)
    with TcpProxy(str(parts.hostname), parts.port or 0) as proxy:
        yield proxy


Node = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Run a script with the packages of the lock file, using the wheel's Node."""
    folder = tmp_path_factory.mktemp("node") / "js"
    copytree(SCRIPTS, folder, ignore=ignore_patterns("node_modules"))
    install_packages(folder)

    @contextmanager
    def running(script: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [NODE, script, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
                assert process.wait(timeout=120) == 0
            finally:
                process.kill()

    return running
