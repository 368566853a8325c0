"""Open streams and held requests end cleanly at a shutdown, and do not delay it."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.every_store(without="memory")

Serve = Callable[..., Any]

CONFIG = ("--bind", "127.0.0.1:{port}", "-k", "gthread", "--threads", "8")
GTHREAD = ("gunicorn", "served:flask_app()", *CONFIG, "--graceful-timeout", "20")
#: Going away, or the server's own code.
LEAVING = {1001, 1012}


@contextmanager
def asking(server: Any, head: str, count: int) -> Generator[list[socket.socket]]:
    """Send the same request on this many connections, and read nothing yet."""
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            opened.append(stack.enter_context(one))
            one.sendall(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        yield opened


def until_word(opened: socket.socket, word: bytes) -> bytes:
    got = b""
    while word not in got:
        piece = opened.recv(65536)
        assert piece, got
        got += piece
    return got


def rest(opened: socket.socket) -> bytes:
    got = b""
    while piece := opened.recv(65536):
        got += piece
    return got


def read_and_close(opened: socket.socket) -> bytes:
    with opened:
        return rest(opened)


def stop(server: Any) -> None:
    """Stop the server, which waits for its connections, far shorter than a stream lasts."""
    server.client.close()  # the server would wait for a connection that is kept alive
    assert server.stop(signal.SIGTERM) in {0, -signal.SIGTERM}, server.log


def followed_by(server: Any, count: int) -> None:
    server.eventually(lambda: int(server.client.get("/followers").text) == count)


def test_five_hundred_streams_end_cleanly_when_the_server_stops(uvicorn: Any) -> None:
    url = uvicorn.submit("outside")
    with asking(uvicorn, f"GET {url}/events HTTP/1.1", 500) as streams:
        for one in streams:
            until_word(one, b"id: 1\n")
        followed_by(uvicorn, 500)
        stop(uvicorn)
        assert {rest(one)[-5:] for one in streams} == {b"0\r\n\r\n"}
    assert "Traceback" not in uvicorn.log


@pytest.mark.parametrize("count", [50])
def test_held_requests_are_answered_when_the_server_stops(uvicorn: Any, count: int) -> None:
    url = uvicorn.submit("outside")
    with asking(uvicorn, f"GET {url} HTTP/1.1\r\nPrefer: wait=600", count) as held:
        followed_by(uvicorn, count)
        stop(uvicorn)
        answers = [rest(one) for one in held]
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    bodies = {answer.partition(b"\r\n\r\n")[2] for answer in answers}
    assert {json.loads(body)["status"] for body in bodies} == {"pending"}
    assert "Traceback" not in uvicorn.log


def test_a_held_submission_is_accepted_when_the_server_stops(uvicorn: Any) -> None:
    body = "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", uvicorn.port), timeout=10) as held:
        head = "POST /outside HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=600"
        held.sendall(f"{head}\r\n{body}".encode())
        followed_by(uvicorn, 1)
        stop(uvicorn)
        answer = rest(held)
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == "accepted"


def close_code(opened: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        opened.recv(timeout=5)
    return opened.close_code


def test_sockets_are_closed_when_the_server_stops(uvicorn: Any) -> None:
    job_id = uvicorn.submit("outside").rpartition("/")[2]
    url = f"ws://127.0.0.1:{uvicorn.port}/ws/jobs/{job_id}"
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in range(20)]
        for one in opened:
            assert one.recv(timeout=5)
        stop(uvicorn)
        assert {close_code(one) for one in opened} <= LEAVING
    assert "Traceback" not in uvicorn.log


def test_flask_streams_end_cleanly_if_the_main_thread_opened_the_queue(
    serve: Serve,
) -> None:
    server = serve(*GTHREAD, "-c", "python:served")
    url = server.submit("outside")
    with (
        asking(server, f"GET {url}/events HTTP/1.1", 3) as streams,  # the limit of Flask
        ThreadPoolExecutor(3) as readers,
    ):
        for one in streams:
            until_word(one, b"id: 1\n")
        # Gunicorn waits a while for each client to close its side, too.
        ends = readers.map(read_and_close, streams)
        stop(server)
        assert {end[-5:] for end in ends} == {b"0\r\n\r\n"}
    assert "Traceback" not in server.log


def test_flask_sockets_are_closed_if_the_main_thread_opened_the_queue(
    serve: Serve,
) -> None:
    server = serve(*GTHREAD, "-c", "python:served")
    job_id = server.submit("outside").rpartition("/")[2]
    url = f"ws://127.0.0.1:{server.port}/ws/jobs/{job_id}"
    with connect(url) as one, connect(url) as other:
        assert one.recv(timeout=5) == other.recv(timeout=5)
        stop(server)
        assert {close_code(one), close_code(other)} == {1001}


def test_flask_streams_end_with_the_grace_if_a_request_opened_the_queue(
    serve: Serve,
) -> None:
    server = serve("gunicorn", "served:flask_app()", *CONFIG, "--graceful-timeout", "1")
    url = server.submit("outside")
    with asking(server, f"GET {url}/events HTTP/1.1", 2) as streams:
        for one in streams:
            until_word(one, b"id: 1\n")
        stop(server)
        for one in streams:
            rest(one)
