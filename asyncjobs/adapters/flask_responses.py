"""Response values as Flask sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import suppress
from typing import TypeVar

import flask

from asyncjobs.http.messages import Response, StreamingResponse
from asyncjobs.portal import Portal

T = TypeVar("T")


def sent(response: Response, body: Iterable[bytes] | None = None) -> flask.Response:
    """Send a response as it is, or with the body that is made meanwhile."""
    whole = response.body if body is None else body
    answer = flask.Response(whole, int(response.status), list(response.headers))
    if response.header("Content-Type") is None:
        del answer.headers["Content-Type"]  # what Flask takes any answer for
    return answer


def sent_by(portal: Portal, response: Response) -> flask.Response:
    """Send a response that may be a stream, which the portal's event loop makes."""
    chunks = _chunks(response, portal) if isinstance(response, StreamingResponse) else None
    return sent(response, chunks)


def _chunks(stream: StreamingResponse, portal: Portal) -> Generator[bytes]:
    """Pass on what the queue's own event loop makes; the server's thread waits for it."""
    loop = portal.start()
    try:
        while (chunk := loop.call(_next, stream.chunks)) is not None:
            yield chunk
    finally:
        with suppress(RuntimeError):  # the queue was closed, and the stream with it
            loop.call(stream.chunks.aclose)


async def _next(chunks: AsyncGenerator[T]) -> T | None:
    return await anext(chunks, None)
