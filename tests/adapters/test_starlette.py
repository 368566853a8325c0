"""Request bodies that Starlette's own classes or middleware have already read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import repeat
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.starlette import accept, mount
from asyncjobs.http.submissions import Body

pytestmark = pytest.mark.every_store


@pytest.fixture
def jobs(new_url: Callable[[], str]) -> AsyncJobs:
    return AsyncJobs(new_url())


@pytest.fixture
def app(jobs: AsyncJobs) -> Starlette:
    @jobs.handler("echo")
    async def echo(words: int | str, _: JobContext) -> int | str:
        return words

    async def submit(request: Request) -> Response:
        return await accept(request, echo)

    async def read_first(request: Request) -> Response:
        await request.body()
        return await accept(request, echo, user_id="somebody")

    async def whole(request: Request) -> Response:
        return await accept(request, echo, "given", user_id=request.path_params.get("tenant"))

    async def with_cookie(request: Request) -> Response:
        answer = await accept(request, echo, "given")
        answer.set_cookie("seen", "yes")
        answer.headers["X-Request-Id"] = "r-1"
        return answer

    app = Starlette(
        routes=[
            Route("/with-cookie", with_cookie, methods=["POST"]),
            Route("/submit", submit, methods=["POST"]),
            Route("/read-first", read_first, methods=["POST"]),
            Route("/given", whole, methods=["POST"]),
        ]
    )
    mount(app, jobs)
    return app


@pytest.fixture
def client(app: Starlette) -> Generator[TestClient]:
    with TestClient(app) as client:
        yield client


def test_a_body_that_was_read_before_is_read_again(client: TestClient) -> None:
    answer = client.post("/read-first", json="words")
    assert answer.status_code == 202


def test_a_payload_passed_by_the_app_needs_no_body(client: TestClient) -> None:
    assert client.post("/given").status_code == 202


def test_headers_that_a_route_adds_to_the_answer_are_sent(client: TestClient) -> None:
    answer = client.post("/with-cookie")
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (202, "r-1")
    assert answer.cookies["seen"] == "yes"
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_the_body_marker_has_a_single_value() -> None:
    assert list(Body) == [Body.UNREAD]


def test_path_parameters_of_an_outer_mount_are_quoted_in_urls(app: Starlette) -> None:
    lifespan: Any = app.router.lifespan_context
    outer = Starlette(routes=[Mount("/{tenant}", app)], lifespan=lambda _: lifespan(app))
    with TestClient(outer) as below:
        answer = below.post("/m%C3%BCnchen%0D%0AX-Evil:%201/given")
        assert answer.status_code == 202
        url = answer.json()["statusUrl"]
        assert url.startswith("/m%C3%BCnchen%0D%0AX-Evil%3A%201/api/jobs/job_")
        assert below.get(url).status_code == 200


def post(
    app: Starlette, jobs: AsyncJobs, messages: Iterator[dict[str, Any]], **more: Any
) -> list[dict[str, Any]]:
    """Submit a body message by message; return the messages of the response."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/submit",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        **more,
    }

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        async with jobs:
            await app(scope, receive, send)

    anyio.run(ask)
    return sent


def chunk(data: bytes) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": True}


def test_a_disconnect_during_the_body_creates_no_job(app: Starlette, jobs: AsyncJobs) -> None:
    # The first half of the number 1234 is a valid number, too.
    messages = iter([chunk(b"12"), {"type": "http.disconnect"}])
    start, _ = post(app, jobs, messages)
    assert start["status"] == 400


@pytest.mark.parametrize(("version", "closes"), [("1.1", True), ("2", False), (None, True)])
def test_an_endless_body_is_only_read_up_to_the_limit(
    app: Starlette, jobs: AsyncJobs, version: str | None, *, closes: bool
) -> None:
    data = chunk(b"x" * 8_000_000)
    start, _ = post(app, jobs, repeat(data, 100), **({"http_version": version} if version else {}))
    assert start["status"] == 413
    assert ((b"connection", b"close") in start["headers"]) == closes
