"""Receivers on loopback with real sockets, real TLS and a certificate authority for tests."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  # only for tests
NAME = "hooks.example.com"

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def answer(status: int, *headers: str) -> bytes:
    """Write an answer without a body."""
    lines = [f"HTTP/1.1 {status} Whatever", "content-length: 0", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Post:
    """A request as it came."""

    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Sends its answers in turn, then repeats the last. None closes; empty never answers."""

    answers: list[bytes | None]
    port: int = 0
    posts: list[Post] = field(default_factory=list[Post])
    connections: int = 0

    async def serve(self, stream: ByteStream) -> None:
        self.connections += 1
        async with stream:
            try:
                self.posts.append(await _read(stream))
                said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if said == b"":
                    await anyio.sleep_forever()
                if said is not None:
                    await stream.send(said)
            except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
                pass  # the sender closed the connection


async def _read(stream: ByteStream) -> Post:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    while len(body) < int(headers["content-length"]):
        body += await stream.receive()
    return Post(first.split(" ")[1], headers, body)


@asynccontextmanager
async def receiving(
    *answers: bytes | None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Receiver]:
    """Serve a receiver on 127.0.0.1."""
    receiver = Receiver(list(answers) or [OK])
    plain: MultiListener[SocketStream] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    receiver.port = plain.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610  # no SQL
    listener = plain if tls is None else TLSListener(plain, tls, standard_compatible=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, receiver.serve)
        try:
            yield receiver
        finally:
            tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await listener.aclose()


class Answering:
    """A resolver that returns its answers in turn, then repeats the last."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        await anyio.lowlevel.checkpoint()
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client context that trusts only the tests' authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    return context


def serving_as(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """Return a server context with a certificate for one name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with authority.issue_cert(name).private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    return context
