"""Requests and responses as values, independent of any framework."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self

Headers = tuple[tuple[str, str], ...]

#: How many connections a server with an event loop holds at once: they need no threads.
EVENT_LOOP_ROOM = 10_000

# Fewer than the threads of common servers; waitress has the fewest, four.
_THREADS_ROOM = 3


def room_in(*, threads: bool) -> int:
    """Return how many connections a server without an event loop holds at once.

    Each occupies a thread while it is open, so a server with one thread holds none.
    """
    return _THREADS_ROOM if threads else 0


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Grant(NamedTuple):
    """What a verified token allows; `subject` is the id of a job, or `tag:` and a tag.

    `owner` is that of the jobs with the tag. `lasts` is for how many more seconds this is so.
    """

    subject: str
    owner: str | None
    scopes: tuple[str, ...]
    lasts: float = inf


# A tuple, since each request makes one: a frozen dataclass takes twice the time.
class Request(NamedTuple):
    """The data of a request.

    `path` is the part after the mount's prefix, without a leading slash. `root` is the path of the
    application itself (ASGI's root_path, WSGI's SCRIPT_NAME). `prefix` is the one under which a
    router was included, if the mount has none of its own. Header names are in lower case; repeated
    headers are joined by commas, as RFC 9110 section 5.3 allows. `scheme` is the one by which the
    server itself was reached. `owner` is the caller that `identify` returned, if the mount has such
    a function. `closes` is whether the connection must end with the answer, since a part of the
    body stays unread (RFC 9112, section 9.6). `room` is how many connections the server may hold at
    once unless the mount has its own limit. `grant` is what the request's token allows, if it has
    one: then `identify` was not called.
    """

    method: str
    path: str = ""
    root: str = ""
    prefix: str = ""
    headers: Mapping[str, str] = _NO_HEADERS
    body: bytes = b""
    query: str = ""
    scheme: str = "http"
    owner: str | None = None
    closes: bool = False
    room: int = EVENT_LOOP_ROOM
    grant: Grant | None = None

    @property
    def lasts(self) -> float:
        """For how many seconds an answer may last: as long as the token of the request."""
        return inf if self.grant is None else self.grant.lasts


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer. The server adds Content-Length."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the first header of that name; the case is ignored."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


class Chunks(Protocol):
    """The body of a stream, always to be closed; iterate it, or call `take` and `wait` in turn."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> bytes: ...

    def take(self) -> bytes | None:
        """Return the next chunk, None if it is not ready; raise `StopAsyncIteration` at the end."""
        ...

    def wait(self) -> Awaitable[None]:
        """Return when the next chunk may be ready. Call it after `take`, and await it at once."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamingResponse(Response):
    """An answer whose body is sent in chunks; the adapter that sends it always closes `chunks`."""

    chunks: Chunks = field(kw_only=True)

    async def without_body(self) -> StreamingResponse:
        """Close the chunks and return the answer for HEAD on the same resource.

        It is still a stream: it has a Content-Length only if the answer to a GET has one (RFC 9110,
        section 8.6).
        """
        await self.chunks.aclose()
        return replace(self, chunks=NoChunks())


class NoChunks:
    """A body that has ended."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    def take(self) -> bytes | None:
        raise StopAsyncIteration

    async def wait(self) -> None: ...

    async def aclose(self) -> None: ...
