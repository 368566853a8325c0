"""Servers of other makers, and answers that are not a job's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import SocketAttribute, SocketStream

from asyncjobs.client import (
    AccessRefused,
    AnswerTooLarge,
    AsyncJobsClient,
    Following,
    ForeignUrl,
    JobNotFound,
    JobsClient,
    JobTimeout,
    NotAJob,
    NotJson,
    RedirectLoop,
    RemoteJob,
    RemoteJobFailed,
    ResultMismatch,
    ServerUnreachable,
)

HOST = "http://h.example"
SOON = {"retry-after": "0"}
Reply = httpx2.Response


def client_of(replies: dict[str, list[Reply]], options: Following | None = None) -> JobsClient:
    """Answer each path's requests in turn; the last reply is repeated."""

    def answer(request: httpx2.Request) -> Reply:
        left = replies[request.url.path]
        return left.pop(0) if len(left) > 1 else left[0]

    http = httpx2.Client(base_url=HOST, transport=httpx2.MockTransport(answer))
    return JobsClient(http=http, options=options)


def submitted(first: Reply, replies: dict[str, list[Reply]]) -> RemoteJob[Any]:
    return client_of({"/do": [first], **replies}).submit("PUT", "/do")


def operation(**document: Any) -> Reply:
    return Reply(200, headers=SOON, json=document)


SUCCEEDED = operation(status="Succeeded")
FAILED = operation(status="Failed", error={"code": "Quota", "message": "Too many."})
PAGE = Reply(200, html="<p>Hello</p>")


def test_an_operation_is_followed_to_its_resource() -> None:
    states = [
        operation(status="Provisioning"),
        operation(status="Running", percentComplete=40.5),
        operation(status="Succeeded", resourceLocation="/things/1"),
    ]
    replies = {"/o": states, "/things/1": [Reply(503, headers=SOON), Reply(200, json={"id": 1})]}
    job = submitted(Reply(202, headers={"operation-location": f"{HOST}/o"}), replies)
    assert [update.progress for update in job.updates()] == [None, 40, None]
    assert job.result() == {"id": 1}


@pytest.mark.parametrize(
    ("method", "first", "replies", "result"),
    [
        ("POST", {"location": "/r"}, {"/o": operation(status="Succeeded", result=None)}, None),
        ("POST", {"location": "/r"}, {"/o": SUCCEEDED, "/r": Reply(200, json=7)}, 7),
        ("POST", {}, {"/o": SUCCEEDED}, None),
        ("patch", {}, {"/o": SUCCEEDED, "/do": Reply(200, json={"id": 1})}, {"id": 1}),
    ],
    ids=["document", "location", "none", "resource"],
)
def test_an_operations_result_is_found(
    method: str, first: dict[str, str], replies: dict[str, Reply], result: Any
) -> None:
    accepted = Reply(202, headers={"operation-location": "/o", **first})
    answers = {path: [reply] for path, reply in replies.items()}
    client = client_of({**answers, "/do": [accepted, *answers.get("/do", [])]})
    assert client.submit(method, "/do").result() == result


def test_an_operation_is_not_polled_before_the_202s_retry_after() -> None:
    asked: list[float] = []

    def answer(request: httpx2.Request) -> Reply:
        asked.append(time.monotonic())
        if request.url.path == "/do":
            return Reply(202, headers={"operation-location": "/o", "retry-after": "1"})
        return operation(status="Succeeded", result=7)

    with httpx2.Client(base_url=HOST, transport=httpx2.MockTransport(answer)) as http:
        assert JobsClient(http=http).submit("POST", "/do").result() == 7
    assert asked[1] - asked[0] >= 1


@pytest.mark.parametrize(
    ("header", "reply", "message", "code"),
    [
        ("operation-location", FAILED, "Too many.", "Quota"),
        ("location", Reply(409, json={"title": "Conflict"}), "Conflict", "http_409"),
    ],
    ids=["operation", "location"],
)
def test_a_failure_has_the_servers_message_and_code(
    header: str, reply: Reply, message: str, code: str
) -> None:
    job = submitted(Reply(202, headers={header: "/j"}), {"/j": [reply]})
    with pytest.raises(RemoteJobFailed) as caught:
        job.result()
    assert (caught.value.message, caught.value.code) == (message, code)


@pytest.mark.parametrize(
    ("last", "result"),
    [
        (Reply(200, json=[1]), [1]),
        (Reply(200, text="a,b"), "a,b"),
        (Reply(200, content=b"\0", headers={"content-type": "image/png"}), b"\0"),
        (Reply(204), None),
        (Reply(303, headers={"location": "/x"}), 1),
    ],
    ids=["json", "text", "bytes", "nothing", "redirect"],
)
def test_a_location_is_polled_until_it_answers_with_the_result(last: Reply, result: Any) -> None:
    replies = {"/r": [Reply(202, headers=SOON), last], "/x": [Reply(200, json=1)]}
    assert submitted(Reply(202, headers={"location": "/r"}), replies).result() == result


def test_bytes_can_be_requested_as_a_type() -> None:
    image = Reply(200, content=b"\xff\0", headers={"content-type": "image/png"})
    job = submitted(Reply(202, headers={"location": "/r"}), {"/r": [image]})
    assert job.result(type=bytes) == b"\xff\0"
    for expected, name in ((int, "no int"), (list[int], r"no list\[int\]")):
        with pytest.raises(ResultMismatch, match=name):
            job.result(type=expected)


def test_a_url_of_another_origin_is_requested_only_if_it_is_allowed() -> None:
    first = Reply(202, headers={"location": "http://other.example/r"})
    with pytest.raises(ForeignUrl, match=r"http://other\.example:80"):
        submitted(first, {"/r": [Reply(200, json=1)]})
    options = Following(origins=["http://other.example"])
    client = client_of({"/do": [first], "/r": [Reply(200, json=1)]}, options)
    assert client.submit("POST", "/do").result() == 1
    elsewhere = operation(status="Succeeded", resourceLocation="http://other.example/r")
    job = submitted(Reply(202, headers={"operation-location": "/o"}), {"/o": [elsewhere]})
    with pytest.raises(ForeignUrl):
        job.result()


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 1_000_000


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (lambda: PAGE, NotJson, "text/html; charset=utf-8 instead of JSON: '<p>Hello</p>'"),
        (lambda: Reply(200, json={"status": "ok"}), NotAJob, "no job's status"),
        (lambda: Reply(200, json=[1]), NotAJob, "no job's status"),
        (lambda: Reply(200, json={"jobId": "1", "status": "odd"}), NotAJob, "no job's status"),
        (lambda: Reply(200), NotJson, "no Content-Type instead of JSON: ''"),
        (lambda: Reply(304), NotJson, "instead of JSON"),
        (lambda: Reply(404), JobNotFound, "404: no reason was given"),
        (lambda: Reply(401), AccessRefused, "401: check"),
        (lambda: Reply(302, headers={"location": "/j"}), RedirectLoop, "one redirect after"),
        (lambda: Reply(200, content=endless()), AnswerTooLarge, "more than 67108864 bytes"),
        (lambda: Reply(502), ServerUnreachable, "it answers 502"),
    ],
)
def test_an_answer_that_is_no_status_is_an_error(
    reply: Callable[[], Reply], error: type[Exception], sentence: str
) -> None:
    client = client_of({"/j": [reply()]}, Following(patience=0.2))
    with pytest.raises(error, match=sentence):
        client.attach("/j").result(timeout=60)


@pytest.mark.parametrize(
    ("reply", "error"),
    [(Reply(202), NotAJob), (Reply(200, json={"a": 1}), NotAJob), (PAGE, NotJson)],
    ids=["202", "200", "page"],
)
def test_an_answer_that_names_no_job_is_an_error(reply: Reply, error: type[Exception]) -> None:
    client = client_of({"/do": [reply], "/j/cancel": [reply]})
    with pytest.raises(error):
        client.submit("POST", "/do", json={})
    with pytest.raises(NotAJob):
        client.attach("/j").cancel()


def test_a_job_that_does_not_end_is_followed_until_the_timeout() -> None:
    replies = {"/r": [Reply(202, headers=SOON)]}
    job = submitted(Reply(202, headers={"location": "/r"}), replies)
    with pytest.raises(JobTimeout):
        job.result(timeout=0.3)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio warns of the generator's end
async def test_an_endless_answer_is_left_on_a_loop() -> None:
    async def answer(_: httpx2.Request) -> Reply:
        return Reply(200, content=slow())

    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1_000_000

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        with pytest.raises(AnswerTooLarge):
            await AsyncJobsClient(http=http).attach(f"{HOST}/j").result()


async def drip(stream: SocketStream) -> None:
    async with stream:
        await stream.send(b"HTTP/1.1 200 OK\r\nx-header: ")
        with suppress(anyio.BrokenResourceError):
            while True:
                await stream.send(b"x")
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_endless_headers_are_left_at_the_timeout() -> None:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
        AsyncJobsClient() as client,
    ):
        tasks.start_soon(listener.serve, drip)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # anyio's, not Django's
        with anyio.fail_after(30), pytest.raises(JobTimeout, match="does not begin"):
            await client.attach(f"http://127.0.0.1:{port}/j").result(timeout=0.5)
        tasks.cancel_scope.cancel()
