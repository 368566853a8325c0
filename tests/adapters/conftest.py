"""One application, built the same way on every framework and served over real HTTP."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, NoReturn
from urllib.parse import parse_qsl

import anyio
import fastapi
import flask
import httpx2
import pytest
import uvicorn
from anyio import from_thread
from anyio.lowlevel import current_token
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from asyncjobs import (
    AsyncJobs,
    Batch,
    EnqueueOptions,
    JobContext,
    JobFailed,
    JobId,
    JobType,
    Settings,
    Store,
)
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.dispatchers.local import LocalDispatcher
from tests.waiting import until_sync
from tests.wsgi import serving_wsgi

QUICK = Settings(
    progress_interval=timedelta(seconds=0.02),
    sweep_interval=timedelta(seconds=0.1),
    grace=timedelta(seconds=0.2),
)
LATER = EnqueueOptions(run_at=timedelta(hours=1))
DESCRIBED = EnqueueOptions(title="Orders", tags=("orders",))

Mount = tuple[AsyncJobs, dict[str, Any]]
XUser = Annotated[str | None, fastapi.Header()]


class Order(BaseModel):
    count: int = Field(ge=1)
    note: str = ""


class Invoice(BaseModel):
    doubled: int


AGAIN = {"doubled": 0}


def make_jobs(
    store: str | Store = "memory://", *, slots: int = 10, settings: Settings = QUICK
) -> AsyncJobs:
    """Register a handler for each outcome of a job."""
    jobs = AsyncJobs(store, dispatcher=LocalDispatcher(slots), settings=settings)
    gates: dict[str, anyio.Event] = {}
    jobs.external("outside", payload=Order, result=str)

    @jobs.handler("guessed", estimate=1000)
    async def guessed(order: Order, _: JobContext) -> int:
        return order.count

    @jobs.handler("double", estimate=30)
    async def double(order: Order, _: JobContext) -> Invoice:
        return Invoice(doubled=order.count * 2)

    @jobs.handler("shout")
    def shout(order: Order, job: JobContext) -> str:
        job.progress(50)
        return order.note.upper()

    @jobs.handler("inline", inline_wait=5)
    async def inline(order: Order, _: JobContext) -> int:
        return order.count * 2

    @jobs.handler("full")
    async def full(_: Order, __: JobContext) -> None:
        raise JobFailed("The disk is full.", "disk_full")

    @jobs.handler("broken")
    async def broken(order: Order, _: JobContext) -> None:
        raise RuntimeError(f"it holds {order.note}")

    @jobs.handler("nightly")
    async def nightly(job: JobContext) -> str:
        return job.type

    @jobs.handler("gate")
    async def gate(order: Order, job: JobContext) -> None:
        await job.progress(40, "waiting", current=2, total=5, unit="gates")
        await gates.setdefault(order.note, anyio.Event()).wait()

    @jobs.handler("release")
    async def release(order: Order, _: JobContext) -> None:
        gates[order.note].set()

    return jobs


def handler_of(kind: JobType[Any, Any]) -> JobType[Any, Any] | str:
    """Return the first argument for `accept`: the handler or, for one of them, its name."""
    return kind.name if kind.name == "shout" else kind


class Stack(ABC):
    """A framework: `POST /submit/{type}` for each type, `POST /repeat/{id}` of the application.

    `POST /retry/{id}` retries a job or a batch, `POST /batch` submits a batch of orders to double.

    In the query, `later` delays a submission, `owner` names its owner and `key` sets its
    idempotency key.
    """

    reads_undeclared_json = False

    def build(
        self,
        mounts: Sequence[Mount],
        others: Sequence[JobType[Any, Any]] = (),
        *,
        first: Callable[[Any], object] = lambda _: None,
    ) -> Any:
        app = self.new()
        first(app)
        for jobs, options in mounts:
            self.mount(app, jobs, options)
            for kind in jobs.registry:
                self.add_submission(app, kind)
                if kind.name == "double":
                    self.add_batch(app, kind)
        for kind in others:
            self.add_submission(app, kind)
        if mounts:
            self.add_repetition(app, mounts[0][0])
            self.add_retry(app, mounts[0][0])
        return app

    @abstractmethod
    def new(self) -> Any: ...
    @abstractmethod
    def mount(self, app: Any, jobs: AsyncJobs, options: dict[str, Any]) -> None: ...
    @abstractmethod
    def add_submission(self, app: Any, kind: JobType[Any, Any]) -> None: ...
    @abstractmethod
    def add_batch(self, app: Any, kind: JobType[Order, Any]) -> None: ...
    @abstractmethod
    def add_repetition(self, app: Any, jobs: AsyncJobs) -> None: ...
    @abstractmethod
    def add_retry(self, app: Any, jobs: AsyncJobs) -> None:
        """Add `POST /retry/{id}`, which runs the job of the caller in `X-User` again."""

    @abstractmethod
    def add_plain(self, app: Any, path: str, method: str, text: str) -> None:
        """Add a route that is unrelated to jobs."""

    @abstractmethod
    def refuse(self, status: int) -> NoReturn:
        """Raise the framework's own error for a request."""
        raise NotImplementedError

    @abstractmethod
    def call(self, app: Any, jobs: AsyncJobs, function: Any, *arguments: Any) -> Any:
        """Call a coroutine function in the event loop of a queue that is being served."""

    @abstractmethod
    def serving(self, app: Any, root: str = "") -> AbstractContextManager[str]: ...


class StarletteStack(Stack):
    def new(self) -> Any:
        return Starlette()

    def mount(self, app: Any, jobs: AsyncJobs, options: dict[str, Any]) -> None:
        on_starlette.mount(app, jobs, **options)

    def add_submission(self, app: Any, kind: JobType[Any, Any]) -> None:
        async def submit(request: Request) -> Response:
            options = LATER if "later" in request.query_params else None
            owner, key = request.query_params.get("owner"), request.query_params.get("key")
            return await on_starlette.accept(
                request, handler_of(kind), user_id=owner, options=options, idempotency_key=key
            )

        app.add_route(f"/submit/{kind.name}", submit, methods=["POST"])

    def add_batch(self, app: Any, kind: JobType[Order, Any]) -> None:
        async def submit(request: Request) -> Response:
            orders = [Order(**order) for order in await request.json()]
            owner = request.query_params.get("owner")
            return await on_starlette.accept(
                request, kind, Batch(orders), user_id=owner, options=DESCRIBED
            )

        app.add_route("/batch", submit, methods=["POST"])

    def add_repetition(self, app: Any, jobs: AsyncJobs) -> None:
        async def repeat(request: Request) -> Response:
            await jobs.complete(JobId(request.path_params["job_id"]), AGAIN)
            return Response()

        app.add_route("/repeat/{job_id}", repeat, methods=["POST"])

    def add_retry(self, app: Any, jobs: AsyncJobs) -> None:
        async def retry(request: Request) -> Response:
            user = request.headers.get("x-user")
            job = await jobs.find(JobId(request.path_params["job_id"]), user_id=user)
            return await on_starlette.accept(request, await jobs.retry(job.id))

        app.add_route("/retry/{job_id}", retry, methods=["POST"])

    def add_plain(self, app: Any, path: str, method: str, text: str) -> None:
        async def plain(_: Request) -> Response:
            return Response(text)

        app.add_route(path, plain, methods=[method])

    def refuse(self, status: int) -> NoReturn:
        raise HTTPException(status, headers={"WWW-Authenticate": "Bearer"})

    def call(self, app: Any, jobs: AsyncJobs, function: Any, *arguments: Any) -> Any:
        assert jobs.is_open
        return from_thread.run(function, *arguments, token=app.state.token)

    @contextmanager
    def serving(self, app: Any, root: str = "") -> Generator[str]:
        config = uvicorn.Config(
            rooted(app, root),
            port=0,
            log_config=None,
            lifespan="on",
            timeout_graceful_shutdown=5,  # a stream that a failed test left open must not hang
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until_sync(lambda: server.started or not thread.is_alive())
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


class FastAPIStack(StarletteStack):
    reads_undeclared_json = tuple(map(int, fastapi.__version__.split(".")[:2])) < (0, 132)

    def new(self) -> Any:
        return FastAPI()

    def mount(self, app: Any, jobs: AsyncJobs, options: dict[str, Any]) -> None:
        on_fastapi.mount(app, jobs, **options)

    def add_submission(self, app: Any, kind: JobType[Any, Any]) -> None:
        async def submit(
            cmd: Order,
            accept: on_fastapi.Accept,
            later: str | None = None,
            owner: str | None = None,
            key: str | None = None,
        ) -> Response:
            options = None if later is None else LATER
            return await accept(
                handler_of(kind), cmd, user_id=owner, options=options, idempotency_key=key
            )

        async def submit_nothing(accept: on_fastapi.Accept) -> Response:
            return await accept(kind)

        route = app.post(f"/submit/{kind.name}", response_model=on_fastapi.AcceptedDocument)
        route(submit if kind.takes_payload else submit_nothing)

    def add_batch(self, app: Any, kind: JobType[Order, Any]) -> None:
        async def submit(
            orders: list[Order], accept: on_fastapi.Accept, owner: str | None = None
        ) -> Response:
            return await accept(kind, Batch(orders), user_id=owner, options=DESCRIBED)

        app.post("/batch", response_model=on_fastapi.AcceptedDocument)(submit)

    def add_retry(self, app: Any, jobs: AsyncJobs) -> None:
        async def retry(job_id: JobId, accept: on_fastapi.Accept, x_user: XUser = None) -> Response:
            job = await jobs.find(job_id, user_id=x_user)
            return await accept(await jobs.retry(job.id))

        app.post("/retry/{job_id}", response_model=on_fastapi.AcceptedDocument)(retry)


class FlaskStack(Stack):
    def new(self) -> Any:
        return flask.Flask(__name__)

    def mount(self, app: Any, jobs: AsyncJobs, options: dict[str, Any]) -> None:
        on_flask.mount(app, jobs, **options)

    def add_submission(self, app: Any, kind: JobType[Any, Any]) -> None:
        def submit() -> flask.Response:
            # `request.args` fails if the query is not UTF-8.
            text = flask.request.query_string.decode("latin-1")
            given = dict(parse_qsl(text, keep_blank_values=True))
            options = LATER if "later" in given else None
            owner, key = given.get("owner"), given.get("key")
            return on_flask.accept(
                handler_of(kind), user_id=owner, options=options, idempotency_key=key
            )

        app.add_url_rule(f"/submit/{kind.name}", kind.name, submit, methods=["POST"])

    def add_batch(self, app: Any, kind: JobType[Order, Any]) -> None:
        def submit() -> flask.Response:
            orders = [Order(**order) for order in flask.request.get_json()]
            owner = flask.request.args.get("owner")
            return on_flask.accept(kind, Batch(orders), user_id=owner, options=DESCRIBED)

        app.add_url_rule("/batch", "batch", submit, methods=["POST"])

    def add_repetition(self, app: Any, jobs: AsyncJobs) -> None:
        def repeat(job_id: str) -> str:
            on_flask.portal_of(jobs).call(jobs.complete, JobId(job_id), AGAIN)
            return ""

        app.add_url_rule("/repeat/<job_id>", "repeat", repeat, methods=["POST"])

    def add_retry(self, app: Any, jobs: AsyncJobs) -> None:
        def retry(job_id: str) -> flask.Response:
            user = flask.request.headers.get("x-user")
            job = jobs.sync.find(JobId(job_id), user_id=user)
            return on_flask.accept(jobs.sync.retry(job.id))

        app.add_url_rule("/retry/<job_id>", "retry", retry, methods=["POST"])

    def add_plain(self, app: Any, path: str, method: str, text: str) -> None:
        app.add_url_rule(path, f"{method} {path}".replace(".", ""), lambda: text, methods=[method])

    def refuse(self, status: int) -> NoReturn:
        flask.abort(status)

    def call(self, app: Any, jobs: AsyncJobs, function: Any, *arguments: Any) -> Any:
        return on_flask.portal_of(jobs, app).call(function, *arguments)

    @contextmanager
    def serving(self, app: Any, root: str = "") -> Generator[str]:
        below: Any = DispatcherMiddleware(_nothing, {root: app}) if root else app
        try:
            with serving_wsgi(below) as url:
                yield url
        finally:
            for mounted in app.extensions.get("asyncjobs", ()):
                mounted.portal.close()


STACKS = {"starlette": StarletteStack(), "fastapi": FastAPIStack(), "flask": FlaskStack()}


def rooted(app: Any, root: str) -> Any:
    """Reach an ASGI application below a path, as ASGI specifies: `path` includes `root_path`."""

    async def below(scope: Any, receive: Any, send: Any) -> None:
        app.state.token = current_token()
        await app({**scope, "root_path": root} if root else scope, receive, send)

    return below


def _nothing(_: Any, start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [])
    return []


@dataclass(frozen=True)
class Site:
    """A served application: its address, a client, its queue, and the event loop of the queue."""

    url: str
    client: httpx2.Client
    jobs: AsyncJobs
    call: Callable[..., Any]


Serve = Callable[..., AbstractContextManager[httpx2.Client]]
OpenSite = Callable[..., AbstractContextManager[Site]]


@pytest.fixture(scope="session", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Stack:
    return STACKS[request.param]


@pytest.fixture(scope="session")
def serve(stack: Stack) -> Serve:
    @contextmanager
    def serving(
        *mounts: Mount, others: Sequence[JobType[Any, Any]] = (), root: str = ""
    ) -> Generator[httpx2.Client]:
        app = stack.build(mounts, others)
        with stack.serving(app, root) as url, httpx2.Client(base_url=url) as client:
            yield client

    return serving


@pytest.fixture(scope="session")
def open_site(stack: Stack, new_url: Callable[[], str]) -> OpenSite:
    """Serve one queue, by default a new one, with the options of the test."""

    @contextmanager
    def opened(
        jobs: AsyncJobs | None = None,
        *,
        root: str = "",
        first: Callable[[Any], object] = lambda _: None,
        then: Callable[[Any], object] = lambda _: None,
        **terms: Any,
    ) -> Generator[Site]:
        queue = jobs or make_jobs(new_url())
        app = stack.build([(queue, terms)], first=first)
        then(app)
        with stack.serving(app, root) as url, httpx2.Client(base_url=url) as client:
            yield Site(url, client, queue, lambda *what: stack.call(app, queue, *what))

    return opened


@pytest.fixture(scope="session")
def site(open_site: OpenSite) -> Generator[Site]:
    """An application that is served for the whole session."""
    with open_site() as opened:
        yield opened


@pytest.fixture(scope="session")
def client(site: Site) -> httpx2.Client:
    """A client of the application that is served for the whole session."""
    return site.client


@pytest.fixture(scope="session")
def new_jobs(new_url: Callable[[], str]) -> Callable[..., AsyncJobs]:
    """Make queues, each on its own store unless the test passes one."""

    def make(store: str | Store | None = None, **options: Any) -> AsyncJobs:
        return make_jobs(new_url() if store is None else store, **options)

    return make
