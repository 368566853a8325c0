"""Other vendors' servers, and answers that are no job's."""

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
    RemoteJobCancelled,
    RemoteJobFailed,
    ResultMismatch,
    ServerUnreachable,
    Transport,
    UnknownStatus,
)
from asyncjobs.errors import ConfigurationError

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


UNUSED = {"location": "/not-for-this-method"}
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
        ("PUT", UNUSED, {"/o": SUCCEEDED, "/do": Reply(200, json={"id": 1})}, {"id": 1}),
        ("DELETE", UNUSED, {"/o": SUCCEEDED}, None),
    ],
    ids=["document", "location", "none", "resource", "put", "delete"],
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


@pytest.mark.parametrize(
    ("header", "running", "done"),
    [
        ("location", Reply(202, headers={"location": "/b", **SOON}), Reply(200, json=1)),
        (
            "operation-location",
            Reply(200, headers={"operation-location": "/b", **SOON}, json={"status": "Running"}),
            operation(status="Succeeded", result=1),
        ),
    ],
    ids=["location", "operation"],
)
def test_a_status_url_that_moves_is_followed(header: str, running: Reply, done: Reply) -> None:
    job = submitted(Reply(202, headers={header: "/a"}), {"/a": [running], "/b": [done]})
    assert job.result(timeout=60) == 1
    assert job.status_url.endswith("/b")


def test_a_status_url_does_not_move_to_another_origin() -> None:
    moved = Reply(202, headers={"location": "http://other.example/b", **SOON})
    with pytest.raises(ForeignUrl, match=r"http://other\.example:80"):
        submitted(Reply(202, headers={"location": "/a"}), {"/a": [moved]}).result()


def resource(state: str | None, status: int = 200, **members: Any) -> Reply:
    properties = {} if state is None else {"properties": {"provisioningState": state}}
    return Reply(status, headers=SOON, json={"name": "foo", **properties, **members})


@pytest.mark.parametrize("last", ["Succeeded", None])
def test_a_resource_is_polled_until_its_state_is_terminal(last: str | None) -> None:
    states = [resource("Creating", 201), resource("Updating"), resource(last)]
    job = client_of({"/do": states}).submit("PUT", "/do")
    assert [str(update.status) for update in job.updates()] == ["processing", "completed"]
    assert job.result() == states[-1].json()


@pytest.mark.parametrize(
    ("state", "error"), [("Failed", RemoteJobFailed), ("Canceled", RemoteJobCancelled)]
)
@pytest.mark.parametrize("begun", [resource("Creating"), Reply(202, headers={"location": "/do"})])
def test_a_resource_that_was_not_provisioned_raises(
    begun: Reply, state: str, error: type[Exception]
) -> None:
    ended = resource(state, error={"code": 500, "message": "Too many."})
    job = client_of({"/do": [begun, ended]}).submit("PATCH", "/do")
    with pytest.raises(error):
        job.result()
    assert job.last is not None
    assert (job.last.error, job.last.error_code) == ("Too many.", "500")


@pytest.mark.parametrize(
    ("method", "answer", "result"),
    [
        ("PUT", Reply(200, json={"name": "foo"}), {"name": "foo"}),
        ("PUT", resource("Succeeded", 201), resource("Succeeded").json()),
        ("PATCH", Reply(204), None),
        ("DELETE", Reply(204), None),
        ("DELETE", Reply(200, json={"deleted": 1}), {"deleted": 1}),
    ],
)
def test_a_request_that_is_done_at_once_is_a_job_that_has_ended(
    method: str, answer: Reply, result: Any
) -> None:
    assert client_of({"/do": [answer]}).submit(method, "/do").result() == result


OTHER = "http://other.example"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_is_not_followed(status: int) -> None:
    elsewhere = Reply(status, headers={"location": f"{OTHER}/x"})
    client = client_of({"/do": [elsewhere], "/j": [elsewhere], "/j/cancel": [elsewhere]})
    job = client.attach("/j")
    for request in (lambda: client.submit("POST", "/do"), job.result, job.cancel):
        with pytest.raises(ForeignUrl, match=r"http://other\.example:80"):
            request()


@pytest.mark.anyio
async def test_a_redirect_to_another_origin_is_not_followed_in_async_code() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> Reply:
        asked.append(request.url.host)
        return Reply(302, headers={"location": f"{OTHER}/x"})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        client = AsyncJobsClient(HOST, http=http)
        with pytest.raises(ForeignUrl):
            await client.submit("POST", "/do")
        with pytest.raises(ForeignUrl):
            await client.attach("/j").result()
    assert asked == ["h.example", "h.example"]


@pytest.mark.parametrize("target", [f"{OTHER}/x", "https://h.example/x"])
def test_redirects_to_allowed_origins_and_to_https_are_followed(
    target: str,
) -> None:
    replies = {"/j": [Reply(307, headers={"location": target})], "/x": [DONE]}
    client = client_of(replies, Following(origins=[OTHER]))
    assert client.attach("/j").result() == 7


DONE = Reply(200, json={"jobId": "1", "status": "completed", "result": 7})


def test_a_base_url_is_used_together_with_an_http_client() -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx2.Request) -> Reply:
        asked.append((str(request.url), request.headers["x-api-key"]))
        return DONE

    transport = httpx2.MockTransport(answer)
    with httpx2.Client(transport=transport, headers={"x-api-key": "secret"}) as http:
        client = JobsClient(f"{HOST}/v1", http=http)
        client.submit("POST", "/do")
        client.attach("jobs/1").result()
        client.attach("http://else.example/jobs/1").result()
    assert asked == [
        ("http://h.example/v1/do", "secret"),
        ("http://h.example/v1/jobs/1", "secret"),
        ("http://else.example/jobs/1", "secret"),
    ]


@pytest.mark.parametrize("kind", [JobsClient, AsyncJobsClient])
def test_two_different_base_urls_are_refused(kind: Any) -> None:
    with httpx2.Client(base_url=HOST) as http:
        assert kind(f"{HOST}/", http=http).base_url
        with pytest.raises(ConfigurationError, match="set only one of them"):
            kind(OTHER, http=http)


@pytest.mark.parametrize("kind", [JobsClient, AsyncJobsClient])
def test_clients_and_jobs_show_no_credentials(kind: Any) -> None:
    client = kind("https://user:secret@h.example/v1?key=secret")
    assert repr(client) == f"{kind.__name__}('https://h.example/v1?...')"
    job = kind().attach("https://user:secret@h.example/j/1?sig=secret&n=1")
    name = "AsyncRemoteJob" if kind is AsyncJobsClient else "RemoteJob"
    assert repr(job) == f"<{name} https://h.example/j/1?... unknown>"
    assert repr(job.monitor) == "Monitor('https://h.example/j/1?...', 'unknown')"
    error = NotAJob("https://user:secret@h.example/j/1?sig=secret", "nothing")
    assert "secret" not in str(error)
    assert error.url == "https://user:secret@h.example/j/1?sig=secret"


def test_a_cancellation_returns_the_version() -> None:
    body = {"jobId": "1", "status": "cancelled"}
    for reply in (Reply(202, json={**body, "version": 4}), Reply(200, json=body, headers=ETAG)):
        assert client_of({"/j/cancel": [reply]}).attach("/j").cancel().version == 4


ETAG = {"etag": '"4"'}


def test_an_unknown_status_of_a_complete_job_ends_the_job() -> None:
    ended = {"jobId": "1", "status": "skipped", "completedAt": "2026-01-01T00:00:00Z"}
    job = client_of({"/j": [Reply(200, json=ended)]}).attach("/j")
    with pytest.raises(RemoteJobFailed, match="'skipped', which this client does not know") as no:
        job.result()
    assert no.value.code == "unknown_status"
    assert no.value.update.document["status"] == "skipped"


def test_states_are_ordered_by_the_documents_version_without_an_etag() -> None:
    def state(version: int, status: str = "processing") -> Reply:
        body = {"jobId": "1", "status": status, "version": version, "progress": version}
        return Reply(200, headers=SOON, json=body)

    options = Following(transports=[Transport.POLL])
    states = [state(5), state(3), state(6), state(9, "completed")]
    job = client_of({"/j": states}, options).attach("/j")
    assert [update.version for update in job.updates(timeout=60)] == [5, 6, 9]


def test_the_result_type_can_be_bytes() -> None:
    image = Reply(200, content=b"\xff\0", headers={"content-type": "image/png"})
    job = submitted(Reply(202, headers={"location": "/r"}), {"/r": [image]})
    assert job.result(type=bytes) == b"\xff\0"
    for expected, name in ((int, "not a valid int"), (list[int], r"not a valid list\[int\]")):
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


def job_with(progress: str) -> bytes:
    return b'{"jobId": "1", "status": "pending", "progress": %s}' % progress.encode()


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 1_000_000


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (lambda: PAGE, NotJson, "text/html; charset=utf-8 instead of JSON: '<p>Hello</p>'"),
        (lambda: Reply(200, json={"status": "ok"}), NotAJob, "not a job status"),
        (lambda: Reply(200, json=[1]), NotAJob, "not a job status"),
        (lambda: Reply(200, json={"jobId": "1", "status": 7}), NotAJob, "not a job status"),
        (lambda: Reply(200, json={"jobId": "1", "status": "odd"}), UnknownStatus, "status 'odd'"),
        (lambda: Reply(200, content=b"[" * 100_000), NotJson, "instead of JSON"),
        (lambda: Reply(200, content=job_with("NaN")), NotJson, "instead of JSON"),
        (lambda: Reply(200, content=job_with("9" * 5_000)), NotJson, "instead of JSON"),
        (lambda: Reply(200), NotJson, "no Content-Type instead of JSON: ''"),
        (lambda: Reply(304), NotJson, "instead of JSON"),
        (lambda: Reply(404), JobNotFound, "404: no reason was given"),
        (lambda: Reply(401), AccessRefused, "401: check"),
        (lambda: Reply(302, headers={"location": "/j"}), RedirectLoop, "too many redirects"),
        (lambda: Reply(200, content=endless()), AnswerTooLarge, "more than 67108864 bytes"),
        (lambda: Reply(502), ServerUnreachable, "the response was 502"),
    ],
)
def test_an_answer_without_a_status_is_an_error(
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
def test_an_answer_without_a_job_url_is_an_error(reply: Reply, error: type[Exception]) -> None:
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
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio warns about the generator's end
async def test_an_endless_answer_is_abandoned_at_the_timeout_in_async_code() -> None:
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
async def test_endless_headers_are_abandoned_at_the_timeout() -> None:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
        AsyncJobsClient() as client,
    ):
        tasks.start_soon(listener.serve, drip)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # anyio's, not Django's
        with anyio.fail_after(30), pytest.raises(JobTimeout, match="did not start"):
            await client.attach(f"http://127.0.0.1:{port}/j").result(timeout=0.5)
        tasks.cancel_scope.cancel()
