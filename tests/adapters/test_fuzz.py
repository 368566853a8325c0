"""No input causes a server error or a request that hangs."""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import anyio
import httpx2
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from werkzeug.test import run_wsgi_app

from asyncjobs import AsyncJobs, JobId
from asyncjobs.adapters.flask import portal_of
from asyncjobs.core.job import JobStatus, new_job_id
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.routes import ROUTES, Route
from asyncjobs.http.security import PollLimit
from tests.everywhere import SERVERS

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

# Short holds: thousands of requests take seconds.
HASTY = MountOptions(
    max_wait=0,
    max_stream_duration=0.001,
    max_held=50,
    origins=("https://app.example.com",),
    poll_limit=PollLimit(burst=8, interval=0.01),
)
# Every request line is sent in every envelope: a few hundred parts make 10,240 requests, and 160
# on servers.
SIDE, SHORT_SIDE = 16, 2
EXAMPLES = 40
PATIENCE = 20.0
# The queue's own thread draws random numbers while this one generates requests.
RANDOM = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@dataclass(frozen=True)
class Target:
    """A request line; the name of a status in a path stands for a job in that status."""

    method: str
    path: str
    query: str


@dataclass(frozen=True)
class Envelope:
    """All parts of a request except its request line."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


class Driver(ABC):
    """Sends requests to an application in this process, without a server."""

    def __init__(self, app: Any, jobs: AsyncJobs) -> None:
        self.app = app
        self.jobs = jobs

    def answers(self, targets: Sequence[Target], envelopes: Sequence[Envelope]) -> list[int]:
        """Return the status of each target in each envelope."""
        return self.soon(targets, envelopes).result(PATIENCE)

    @abstractmethod
    def soon(
        self, targets: Sequence[Target], envelopes: Sequence[Envelope]
    ) -> Future[list[int]]: ...


class AsgiDriver(Driver):
    portal: BlockingPortal

    @contextmanager
    def running(self) -> Generator[None]:
        lifespan = self.app.router.lifespan_context(self.app)
        with (
            start_blocking_portal() as self.portal,
            self.portal.wrap_async_context_manager(lifespan),
        ):
            yield

    def soon(self, targets: Sequence[Target], envelopes: Sequence[Envelope]) -> Future[list[int]]:
        return self.portal.start_task_soon(self._all, targets, envelopes)

    async def _all(self, targets: Sequence[Target], envelopes: Sequence[Envelope]) -> list[int]:
        jobs = await one_of_each(self.jobs)
        return [
            await self._ask(target, placed(target.path, jobs), envelope)
            for target in targets
            for envelope in envelopes
        ]

    async def _ask(self, target: Target, path: str, envelope: Envelope) -> int:
        statuses: list[int] = []
        received = iter([{"type": "http.request", "body": envelope.body}])

        async def receive() -> Any:
            message = next(received, None)
            if message is None:
                await anyio.sleep_forever()
            return message

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": target.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": target.query.encode("latin-1"),
            "headers": [
                (name.lower().encode(), value.encode("latin-1")) for name, value in envelope.headers
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await self.app(scope, receive, send)
        [status] = statuses
        return status


class WsgiDriver(Driver):
    @contextmanager
    def running(self) -> Generator[None]:
        with ThreadPoolExecutor(1) as self.threads:
            yield
        portal_of(self.jobs, self.app).close()

    def soon(self, targets: Sequence[Target], envelopes: Sequence[Envelope]) -> Future[list[int]]:
        return self.threads.submit(self._all, targets, envelopes)

    def _all(self, targets: Sequence[Target], envelopes: Sequence[Envelope]) -> list[int]:
        jobs = portal_of(self.jobs, self.app).call(one_of_each, self.jobs)
        return [
            self._ask(target, placed(target.path, jobs), envelope)
            for target in targets
            for envelope in envelopes
        ]

    def _ask(self, target: Target, path: str, envelope: Envelope) -> int:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": target.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path.encode().decode("latin-1"),
            "QUERY_STRING": target.query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(envelope.body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(envelope.body),
            "wsgi.errors": None,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in envelope.headers:
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        _, status, _ = run_wsgi_app(self.app, environ, buffered=True)
        return int(status.split()[0])


async def one_of_each(jobs: Any) -> dict[JobStatus, JobId]:
    """Make a job of each status, all with one owner."""
    kind = jobs.registry.find("outside")
    payload = kind.load_payload(b'{"count":1}')
    made = {status: (await jobs.enqueue(kind, payload, user_id="me")).id for status in JobStatus}
    await jobs.update_progress(made[JobStatus.PROCESSING], 50)
    await jobs.complete(made[JobStatus.COMPLETED], "done")
    await jobs.fail(made[JobStatus.FAILED], "It broke.")
    await jobs.cancel(made[JobStatus.CANCELLED])
    return made


def placed(path: str, jobs: dict[JobStatus, JobId]) -> str:
    for status, job_id in jobs.items():
        path = path.replace(f"{{{status}}}", job_id)
    return path


# The generated input is mostly almost valid.

TOKENS = st.text(st.characters(codec="ascii", categories=["Lu"]), min_size=1, max_size=8)
METHODS = st.sampled_from(
    ["GET", "GET", "GET", "HEAD", "POST", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"]
)
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.one_of(
    st.sampled_from([f"{{{status}}}" for status in JobStatus]),
    st.sampled_from([new_job_id(), "job_", "", ".", "..", "%2F", "a/b", "\x00", "%"]),
    WORDS,
)
SUFFIXES = st.one_of(
    st.sampled_from([route.suffix for route in ROUTES]),
    st.sampled_from(["/", "//", "/result/", "/events/x", "/../result"]),
    WORDS,
)
SUBMISSIONS = st.sampled_from(["double", "outside", "full", "broken", "shout"])
PATHS = st.one_of(
    st.sampled_from(["/api/jobs", "/api/jobs/", "/api/job", "/api/jobs//", "/ws/jobs", "/"]),
    st.builds("/api/jobs/{}{}".format, IDS, SUFFIXES),
    st.builds("/api/jobs/{}{}".format, IDS, SUFFIXES),
    st.builds("/submit/{}".format, SUBMISSIONS),
    st.builds("/ws/jobs/{}".format, IDS),
)
QUERY_NAMES = [
    "after",
    "limit",
    "status",
    "type",
    "cursor",
    "owner",
    "later",
    "offset",
    "live",
    "x",
]
QUERY_VALUES = [
    *("", "1", "2", "100", "-1", "9" * 30, "pending", "outside", "%00", "%FF", "%", "٣"),
    *("now", "sse", "long-poll", "000001-0000000000000001-00000000"),
]
PAIRS = st.tuples(
    st.sampled_from(QUERY_NAMES),
    st.one_of(st.sampled_from(QUERY_VALUES), WORDS),
).map(lambda pair: str(httpx2.QueryParams([pair])))
QUERIES = st.one_of(st.just(""), st.lists(PAIRS, max_size=3).map("&".join), VALUES)


def of_route(route: Route, status: JobStatus, query: str) -> Target:
    suffix = route.suffix.replace("{name}", "log")
    return Target(route.method, f"/api/jobs/{{{status}}}{suffix}", query)


KNOWN = st.builds(of_route, st.sampled_from(ROUTES), st.sampled_from(JobStatus), QUERIES)
SUBMITTED = st.builds(Target, st.just("POST"), SUBMISSIONS.map("/submit/{}".format), QUERIES)
LISTED = st.builds(Target, st.sampled_from(["GET", "HEAD"]), st.just("/api/jobs"), QUERIES)
# The framework's own redirect fails on queries that are not UTF-8.
LEGAL = QUERIES.filter(str.isascii)
WILD = st.builds(Target, st.one_of(METHODS, METHODS, METHODS, TOKENS), PATHS, LEGAL)
TARGETS = st.one_of(KNOWN, KNOWN, SUBMITTED, LISTED, WILD)

PLAUSIBLE: dict[str, list[str]] = {
    "Prefer": [
        "wait=1",
        'wait="2"',
        "wait=-1",
        "respond-async, wait=10; x=y",
        'wait="',
        "wait=9e9",
        "a" + ";a= " * 40 + '"',
    ],
    "If-None-Match": ["*", '"1"', 'W/"2", "3"', '"', "1", '"1'],
    "Idempotency-Key": ['"key"', "key", '"', "x" * 256, '"\\"', ""],
    "Callback-URL": ["https://example.com/", "https://", "//", ""],
    "Last-Event-ID": ["1", "3", "0", "-1", "9" * 30, "a"],
    "Range": ["bytes=0-0", "bytes=-1", "bytes=9-1", "lines=1-2", "bytes="],
    "Accept": [
        "*/*",
        "text/html",
        "text/html;q=0",
        "application/json;q=2",
        ",",
        "text/event-stream",
    ],
    "Content-Type": [
        "application/json",
        "application/json;charset=utf-16",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "/",
    ],
    "Origin": [
        "null",
        "https://app.example.com",
        "https://evil.example",
        "http://127.0.0.1",
        "://",
    ],
    "Host": ["127.0.0.1", "[::1]:80", "[", "a:b", "evil.example:99999", "", "é"],
    "Sec-Fetch-Site": ["same-origin", "none", "cross-site", "same-site", ""],
    "traceparent": [f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'0' * 16}-00", "00-", "ff-"],
    "X-User": ["me", "me", "me", "you", ""],
}
HEADERS = st.sampled_from([*PLAUSIBLE]).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(st.sampled_from(PLAUSIBLE[name]), VALUES))
)
BODIES = st.one_of(
    st.sampled_from(
        [b'{"count":1}', b'{"count":2,"note":"x"}', b"{}", b"", b"null", b'{"count":0}']
    ),
    st.sampled_from([b"[" * 5000, b'{"count":1e999}', b'{"count":NaN}', b"\xff\xfe", b'"\\ud800"']),
    st.sampled_from([b'{"count":1,"note":"\\ud800"}', b'{"count":' + b"9" * 5000 + b"}"]),
    st.binary(max_size=40),
)


def envelope_of(pairs: list[tuple[str, str]], owner: str, body: bytes) -> Envelope:
    headers = {"Content-Type": "application/json", "X-User": owner} | dict(pairs)
    return Envelope(tuple(headers.items()), body)


ENVELOPES = st.builds(
    envelope_of,
    st.lists(HEADERS, max_size=5),
    st.sampled_from(["me", "me", "me", "you"]),
    BODIES,
)


@pytest.fixture(scope="module")
def driver(stack: Any, new_jobs: Callable[[], AsyncJobs]) -> Generator[Driver]:
    jobs = new_jobs()
    app = stack.build([(jobs, {"identify": by_header, "options": HASTY})])
    made = AsgiDriver(app, jobs) if hasattr(app, "router") else WsgiDriver(app, jobs)
    with made.running():
        yield made


@RANDOM
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    targets=st.lists(TARGETS, min_size=SIDE, max_size=SIDE),
    envelopes=st.lists(ENVELOPES, min_size=SIDE, max_size=SIDE),
)
def test_no_request_causes_a_server_error(
    driver: Driver, store_kind: str, targets: list[Target], envelopes: list[Envelope]
) -> None:
    side = SHORT_SIDE if store_kind in SERVERS else SIDE
    statuses = driver.answers(targets[:side], envelopes[:side])
    assert len(statuses) == side * side
    assert [status for status in statuses if not 200 <= status < 500] == []


# The same over real connections; no client library has normalised the bytes.

STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
HANDSHAKE = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
# Part of it, all of it, or with an unknown version.
HANDSHAKES = st.lists(
    st.sampled_from([*HANDSHAKE, ("Sec-WebSocket-Version", "99"), ("Sec-WebSocket-Key", "")]),
    max_size=4,
).map(lambda some: {**dict(HANDSHAKE[:2]), **dict(some)})
BROKEN = st.one_of(
    st.binary(max_size=100),
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"GET /api/jobs HTTP/9.9\r\n\r\n",
            b"POST /submit/double HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /submit/double HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
            b"GET /api/jobs\r\n\r\n",
            b"\r\n" * 50,
        ]
    ),
)
# Shrinking a request that hangs would hang as often.
ROUGHLY = settings(
    max_examples=100,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def line_of(target: Target) -> bytes:
    """Write a request line with any bytes in its target except those that end the line."""
    query = f"?{target.query}" if target.query else ""
    return re.sub(rb"[\x00- \x7f]", b"+", f"{target.path}{query}".encode())


def request_of(target: Target, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    fields = [
        ("Host", "localhost"),
        *headers,
        *([("Content-Length", str(len(body)))] if body else []),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (target.method.encode(), line_of(target), head, body)


def answer_to(site: Any, request: bytes, *, ends: bool = False) -> int | None:
    """Send bytes; return the status of the answer, or None if the server closes without one."""
    address = httpx2.URL(site.url)
    with socket.create_connection((address.host, address.port or 80), timeout=3) as opened:
        got = b""
        try:
            opened.sendall(request)
            if ends:
                opened.shutdown(socket.SHUT_WR)
            while b"\r\n" not in got and (piece := opened.recv(4096)):
                got += piece
        except ConnectionError:
            return None
    found = STATUS_LINE.match(got)
    return int(found[1]) if found else None


@pytest.fixture(scope="module")
def hasty(open_site: OpenSite) -> Generator[Any]:
    with open_site(identify=by_header, options=HASTY) as opened:
        yield opened


@RANDOM
@ROUGHLY
@given(target=TARGETS, envelope=ENVELOPES)
def test_no_request_on_a_real_connection_causes_a_server_error(
    hasty: Any, target: Target, envelope: Envelope
) -> None:
    request = request_of(target, envelope.headers, envelope.body)
    assert answer_to(hasty, request) not in {None, 500}


@RANDOM
@ROUGHLY
@given(target=TARGETS, envelope=ENVELOPES, handshake=HANDSHAKES)
def test_no_websocket_handshake_causes_a_server_error(
    hasty: Any, target: Target, envelope: Envelope, handshake: dict[str, str]
) -> None:
    asked = replace(target, method="GET")
    assert answer_to(hasty, request_of(asked, [*envelope.headers, *handshake.items()])) != 500


@RANDOM
@ROUGHLY
@given(request=BROKEN)
def test_bytes_that_are_not_http_cause_no_server_error(hasty: Any, request: bytes) -> None:
    assert answer_to(hasty, request, ends=True) != 500
