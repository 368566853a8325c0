"""Invalid bodies get the same answers on every framework, and create no job."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from pydantic import JsonValue

from asyncjobs import AsyncJobs
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.stores import store_from_url
from asyncjobs.testing import FaultyStore

Serve = Callable[..., AbstractContextManager[httpx2.Client]]

pytestmark = pytest.mark.every_store

LIMIT = 1024 * 1024
JSON = {"Content-Type": "application/json"}
GOOD = b'{"count": 1}'


Counted = tuple[httpx2.Client, Callable[[], int]]


@pytest.fixture(scope="module")
def counted(
    serve: Serve, new_jobs: Callable[..., AsyncJobs], new_url: Callable[[], str]
) -> Generator[Counted]:
    """A client of an application, and the number of jobs ever inserted into its store."""
    store = FaultyStore(store_from_url(new_url()))  # for its recorded calls

    def inserted() -> int:
        return sum(len(call.ids) for call in store.calls if call.method == "insert")

    with serve((new_jobs(store), {})) as client:
        yield client, inserted


@pytest.fixture
def post(counted: Counted) -> Generator[Callable[..., ProblemDocument]]:
    """Submit an invalid body; check that no job was created."""
    client, inserted = counted
    before = inserted()

    def posted(status: int, code: str, **request: Any) -> ProblemDocument:
        answer = client.post("/submit/double", **request)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "my secret" not in answer.text
        problem = ProblemDocument.model_validate_json(answer.content)
        assert (problem.status, problem.code) == (status, code)
        return problem

    yield posted
    assert inserted() == before


Post = Callable[..., ProblemDocument]


def test_a_good_body_is_counted(counted: Counted) -> None:
    client, inserted = counted
    before = inserted()
    assert client.post("/submit/double", content=GOOD, headers=JSON).status_code == 202
    assert inserted() == before + 1


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["count"]),
        ({"count": 0, "note": "my secret"}, ["count"]),
        ({"count": "my secret", "note": 3}, ["count", "note"]),
        ([], [""]),
        ("my secret", [""]),
    ],
)
def test_a_payload_of_the_wrong_shape_names_the_fields(
    post: Post, body: JsonValue, fields: list[str]
) -> None:
    problem = post(
        422,
        "invalid_payload",
        content=json.dumps(body),
        headers=JSON,
    )
    assert problem.errors is not None
    assert [issue.field for issue in problem.errors] == fields
    assert all(issue.message for issue in problem.errors)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"my secret", b'{"count": 1', b"{'count': 1}", b"\xff", b"[" * 100_000],
    ids=lambda body: repr(body[:14]),
)
def test_a_body_that_is_not_json_is_malformed(post: Post, body: bytes) -> None:
    post(400, "malformed_body", content=body, headers=JSON)


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "text/json", "nonsense"],
)
def test_a_body_that_is_not_declared_as_json_is_refused(
    post: Post, stack: Any, content_type: str | None
) -> None:
    if content_type is None and stack.reads_undeclared_json:
        pytest.skip("FastAPI before 0.132 reads a body without a Content-Type as JSON")
    headers = {} if content_type is None else {"Content-Type": content_type}
    post(415, "unsupported_media_type", content=GOOD, headers=headers)


def test_json_has_many_names(counted: Counted) -> None:
    for name in ("application/json; charset=utf-8", "application/vnd.order+json"):
        answer = counted[0].post("/submit/double", content=GOOD, headers={"Content-Type": name})
        assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("size", [LIMIT + 100, 20 * LIMIT])
def test_a_body_with_a_content_length_over_the_limit_is_refused(post: Post, size: int) -> None:
    body = b'{"count": 1, "note": "' + b"x" * (size - 24) + b'"}'
    assert len(body) == size
    post(413, "payload_too_large", content=body, headers=JSON)


def test_a_chunked_body_over_the_limit_is_refused(post: Post) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"count": 1, "note": "'
        for _ in range(40):
            yield b"x" * (LIMIT // 8)
        yield b'"}'

    post(413, "payload_too_large", content=chunks(), headers=JSON)


def test_a_chunked_body_is_accepted(counted: Counted) -> None:
    chunks = iter([b'{"cou', b"", b'nt": 1}'])
    answer = counted[0].post("/submit/double", content=chunks, headers=JSON)
    assert answer.status_code == 202, answer.text
