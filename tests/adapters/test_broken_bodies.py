"""Truncated and unread bodies are the client's error and do not affect its next request."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.adapters.conftest import Site
from tests.waiting import PATIENCE_SECONDS

LIMIT = 1024 * 1024
JSON = {"Content-Type": "application/json"}
GOOD = b'{"count": 1}'


def send(site: Site, head: str, body: bytes) -> socket.socket:
    """Send a submission with these framing headers and return the open connection."""
    url = urlsplit(site.url)
    connection = socket.create_connection((url.hostname, url.port), timeout=PATIENCE_SECONDS)
    start = f"POST /submit/double HTTP/1.1\r\nHost: {url.netloc}\r\n"
    connection.sendall(f"{start}Content-Type: application/json\r\n{head}\r\n\r\n".encode() + body)
    return connection


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [
        one for one in caplog.records if one.exc_info is not None or one.levelno >= logging.ERROR
    ]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 100", b'{"count"'),
        ("Content-Length: 100", b""),
        ("Transfer-Encoding: chunked", b"8\r\n{"),
        (f"Content-Length: {30 * LIMIT}", b"x" * 2 * LIMIT),
    ],
)
def test_a_disconnect_during_the_body_logs_no_traceback(
    site: Site, caplog: pytest.LogCaptureFixture, head: str, body: bytes
) -> None:
    send(site, head, body).close()
    # A later request is answered; by then nothing has been logged.
    for _ in range(20):
        assert site.client.post("/submit/double", content=GOOD, headers=JSON).status_code == 202
    assert tracebacks(caplog) == []


def test_a_chunk_without_a_size_is_answered_400(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with send(site, "Transfer-Encoding: chunked", b"zz\r\n{}\r\n") as connection:
        answer = connection.recv(1000)
    assert answer.split()[1] == b"400", answer
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("size", [LIMIT + 100, 3 * LIMIT, 20 * LIMIT])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_does_not_fail_the_next_request(
    site: Site, size: int, *, chunked: bool
) -> None:
    url = urlsplit(site.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=PATIENCE_SECONDS)

    def chunks() -> Iterator[bytes]:
        yield b'{"count": 1, "note": "'
        for _ in range(size // 100_000 + 1):
            yield b"x" * 100_000
        yield b'"}'

    whole: Any = chunks() if chunked else b'{"count": 1, "note": "' + b"x" * size + b'"}'
    connection.request("POST", "/submit/double", whole, JSON, encode_chunked=chunked)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 413
    # `http.client` reconnects after an answer with `Connection: close`.
    connection.request("POST", "/submit/double", GOOD, JSON)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 202
    connection.close()
