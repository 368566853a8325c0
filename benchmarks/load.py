"""Clients that keep connections to a local server busy, with as little HTTP as needed."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

CONNECTIONS = 64
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    body: bytes = b""
    headers: tuple[str, ...] = ()

    def encoded(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost", *self.headers]
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class _Caller(asyncio.Protocol):
    """Repeats a request whenever its answer has arrived, until the time is over."""

    def __init__(self, request: Request, until: float) -> None:
        self._request = request.encoded()
        self._expected = b"HTTP/1.1 %d " % request.status
        self._until = until
        self._received = b""
        self.answered = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _LENGTH.search(head)
        if length and len(body) < int(length[1]):
            return
        if not head.startswith(self._expected):
            self._end(RuntimeError(f"not {self._expected!r}: {head!r} {body!r}"))
            return
        self._received = b""
        self.answered += 1
        if time.perf_counter() < self._until:
            self._transport.write(self._request)
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._end(exc or RuntimeError("the server closed the connection"))

    def _end(self, error: Exception | None = None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
        self._transport.close()


@dataclass(frozen=True)
class Load:
    answered: int
    seconds: float


async def answers(port: int, request: Request, seconds: float) -> Load:
    """Repeat a request on several connections."""
    loop, begun = asyncio.get_running_loop(), time.perf_counter()

    def caller() -> _Caller:
        return _Caller(request, begun + seconds)

    made = [await loop.create_connection(caller, "127.0.0.1", port) for _ in range(CONNECTIONS)]
    callers = [caller for _, caller in made]
    await asyncio.gather(*(one.done for one in callers))
    answered = sum(one.answered for one in callers)
    return Load(answered, time.perf_counter() - begun)


async def ask(port: int, request: Request) -> tuple[bytes, Any]:
    """Send one request on a new connection; return the head and the JSON body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encoded())
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1]) if length else 0)
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 %d " % request.status), head
    return head, json.loads(body or b"null")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int, check: Callable[[], None]) -> None:
    """Wait until a server listens; `check` raises if it has ended."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            check()
            time.sleep(0.02)
        else:
            return
