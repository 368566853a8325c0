"""Sends one POST to an address that was resolved and checked before; independent of jobs.

The usual HTTP clients are unsuitable: they resolve the name again for each connection, follow
redirects and use the proxies of the environment.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from asyncjobs.webhooks.destinations import Destination, is_loopback, is_public

try:
    import h11
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncjobs.webhooks needs h11: pip install 'asyncjobs-http[webhooks]'.", name="h11"
    ) from error

# Only the head of a response is read, up to this limit.
_MAX_HEAD_BYTES = 16 * 1024
_MAX_ADDRESSES = 4
_CONNECT_SECONDS = 5.0

#: Returns the addresses of a host name and port, as text.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class DeliveryFailed(Exception):
    """Raised when a call got no response; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The relevant parts of a response; `retry_after` is in seconds."""

    status: int
    retry_after: int | None = None


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the system's resolver finds for a name."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def resolve_destination(
    destination: Destination, resolve: Resolver, *, loopback: bool
) -> Sequence[str]:
    """Resolve the host once; raise `DeliveryFailed` unless every address may be called."""
    try:
        found = await resolve(destination.host, destination.port)
    except (OSError, UnicodeError) as error:
        raise DeliveryFailed("its host cannot be resolved") from error
    allowed = loopback and bool(found) and all(map(is_loopback, found))
    # Plain http only to this machine: other machines cannot read it.
    if not allowed and destination.scheme != "https":
        raise DeliveryFailed("it is not https")
    if not allowed and not (found and all(map(is_public, found))):
        raise DeliveryFailed("its host has an address that is not public")
    return found[:_MAX_ADDRESSES]


async def post(
    destination: Destination,
    addresses: Sequence[str],
    headers: Sequence[tuple[str, str]],
    body: bytes,
    tls: ssl.SSLContext,
) -> Reply:
    """Send the body and read the head of the response; raise `DeliveryFailed` without one.

    The caller limits the time. The connection goes to one of the given addresses and nowhere else;
    the certificate must be for the destination's host.
    """
    sent = [("host", destination.authority), *headers, ("content-length", str(len(body)))]
    exchange = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
    head = h11.Request(
        method="POST", target=destination.path, headers=[*sent, ("connection", "close")]
    )
    try:
        async with _connected(destination, addresses, tls) as stream:
            await stream.send(exchange.send(head) or b"")
            await stream.send(exchange.send(h11.Data(data=body)) or b"")
            exchange.send(h11.EndOfMessage())
            return await _reply(stream, exchange)
    except ssl.SSLError as error:
        raise DeliveryFailed(f"TLS failed: {error.reason or type(error).__name__}") from error
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise DeliveryFailed("the connection failed") from error
    except h11.ProtocolError as error:
        raise DeliveryFailed("its response is not HTTP") from error


async def _reply(stream: ByteStream, exchange: h11.Connection) -> Reply:
    received = 0
    while True:
        event = exchange.next_event()
        if event is h11.NEED_DATA:
            if received >= _MAX_HEAD_BYTES:
                raise DeliveryFailed("its response header is too long")
            data = await stream.receive(_MAX_HEAD_BYTES)
            received += len(data)
            exchange.receive_data(data)
        elif isinstance(event, h11.Response):
            headers = dict(event.headers)
            return Reply(event.status_code, _seconds(headers.get(b"retry-after", b"")))
        elif not isinstance(event, h11.InformationalResponse):
            raise DeliveryFailed("its response is not HTTP")


@asynccontextmanager
async def _connected(
    destination: Destination, addresses: Sequence[str], tls: ssl.SSLContext
) -> AsyncGenerator[ByteStream]:
    stream: ByteStream = await _connect(addresses, destination.port)
    try:
        if destination.scheme == "https":
            stream = await TLSStream.wrap(
                stream, hostname=destination.host, ssl_context=tls, standard_compatible=False
            )
        yield stream
    finally:
        # No closing handshake: the rest of the response, however long, is not read.
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
    """Return `Retry-After` (RFC 9110, section 10.2.3) if it is a number of seconds."""
    return int(header) if header.isdigit() and len(header) < 10 else None
