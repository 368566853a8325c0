"""One POST to an address that was chosen beforehand; decides nothing about jobs.

Not an HTTP client of the usual kind: those resolve the name by themselves, again for each
connection, follow redirects and heed proxies from the environment.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from asyncjobs.webhooks.addresses import is_loopback, is_public
from asyncjobs.webhooks.targets import Target

# Of an answer only its head is read, and of that not more than this.
_MOST_BYTES = 16 * 1024
_MOST_ADDRESSES = 4
_CONNECT_SECONDS = 5.0

#: Finds the addresses of a name, as text.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Undelivered(Exception):
    """Say why there was no answer to a call."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What of an answer counts; `retry_after` is in seconds."""

    status: int
    retry_after: int | None = None


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for the addresses of a name."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def addresses_of(target: Target, resolver: Resolve, *, loopback: bool) -> Sequence[str]:
    """Resolve a target once; raise `Undelivered` unless each of its addresses may be called."""
    try:
        found = await resolver(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise Undelivered("its host cannot be resolved") from error
    allowed = loopback and bool(found) and all(map(is_loopback, found))
    # Without encryption only where nobody can listen.
    if not allowed and target.scheme != "https":
        raise Undelivered("it is not https")
    if not allowed and not (found and all(map(is_public, found))):
        raise Undelivered("its host has an address that is not public")
    return found[:_MOST_ADDRESSES]


async def post(
    target: Target,
    addresses: Sequence[str],
    headers: Sequence[tuple[str, str]],
    body: bytes,
    tls: ssl.SSLContext,
) -> Reply:
    """Send a body and read the head of the answer; raise `Undelivered`.

    The caller bounds the time. The connection goes to one of the addresses and nowhere else; the
    certificate must be for the target's name.
    """
    sent = [("host", target.authority), *headers, ("content-length", str(len(body)))]
    exchange = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_BYTES)
    head = h11.Request(method="POST", target=target.path, headers=[*sent, ("connection", "close")])
    try:
        async with _connected(target, addresses, tls) as stream:
            await stream.send(exchange.send(head) or b"")
            await stream.send(exchange.send(h11.Data(data=body)) or b"")
            exchange.send(h11.EndOfMessage())
            return await _reply(stream, exchange)
    except ssl.SSLError as error:
        raise Undelivered(f"TLS failed: {error.reason or type(error).__name__}") from error
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise Undelivered("the connection failed") from error
    except h11.ProtocolError as error:
        raise Undelivered("its answer is not HTTP") from error


async def _reply(stream: ByteStream, exchange: h11.Connection) -> Reply:
    received = 0
    while True:
        event = exchange.next_event()
        if event is h11.NEED_DATA:
            if received >= _MOST_BYTES:
                raise Undelivered("its answer has too long a head")
            data = await stream.receive(_MOST_BYTES)
            received += len(data)
            exchange.receive_data(data)
        elif isinstance(event, h11.Response):
            headers = dict(event.headers)
            return Reply(event.status_code, _seconds(headers.get(b"retry-after", b"")))
        elif not isinstance(event, h11.InformationalResponse):
            raise Undelivered("its answer is not HTTP")


@asynccontextmanager
async def _connected(
    target: Target, addresses: Sequence[str], tls: ssl.SSLContext
) -> AsyncGenerator[ByteStream]:
    stream: ByteStream = await _connect(addresses, target.port)
    try:
        if target.scheme == "https":
            stream = await TLSStream.wrap(
                stream, hostname=target.host, ssl_context=tls, standard_compatible=False
            )
        yield stream
    finally:
        # Without a farewell: the rest of the answer, however long, is not wanted.
        await anyio.aclose_forcefully(stream)


async def _connect(addresses: Sequence[str], port: int) -> ByteStream:
    failed: Exception = OSError("no address")
    with anyio.move_on_after(_CONNECT_SECONDS):
        for address in addresses:
            try:
                return await anyio.connect_tcp(address, port)
            except OSError as error:
                failed = error
        raise failed
    raise TimeoutError


def _seconds(header: bytes) -> int | None:
    """Read `Retry-After` (RFC 9110, section 10.2.3) where it is a number, as is usual."""
    return int(header) if header.isdigit() and len(header) < 10 else None
