"""Starlette: `mount(app, jobs)`, and `await accept(request, handler, payload)` in a route."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from asyncjobs.adapters.asgi import (
    StatusMonitor,
    joined_lifespan,
    request_of,
    respond,
)
from asyncjobs.errors import AsyncJobsError
from asyncjobs.http import messages
from asyncjobs.http.endpoints import Body, Endpoints, MountOptions, Submit, find_mount
from asyncjobs.http.pacing import Pacing
from asyncjobs.http.problems import problem_of
from asyncjobs.queue import AsyncJobs
from asyncjobs.registry import JobType
from asyncjobs.submission import EnqueueOptions

__all__ = ["accept", "mount"]

P = TypeVar("P")


def mount(
    app: Starlette,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    pacing: Pacing | None = None,
) -> None:
    """Serve the status monitor below `prefix`, and keep `jobs` open while the app runs.

    Errors of this library that a route of the app lets through become problem documents.
    """
    options = MountOptions(prefix, base_url, pacing or Pacing())
    monitor = StatusMonitor(jobs, options=options)
    join(app, monitor.endpoints)
    app.mount(prefix, monitor)


def join(app: Starlette, endpoints: Endpoints) -> None:
    """Make a mount known to `accept`, and its queue part of the app's lifespan and errors."""
    mounts_of(app).append(endpoints)
    lifespan: Any = app.router.lifespan_context
    app.router.lifespan_context = joined_lifespan(lifespan, endpoints.jobs)
    app.add_exception_handler(AsyncJobsError, _answer_error)


async def accept(
    request: Request,
    handler: JobType[P, Any],
    payload: P | Body = Body.UNREAD,
    /,
    *,
    user_id: str | None = None,
    options: EnqueueOptions | None = None,
) -> Response:
    """Make a job of the payload, or of the request's JSON body, and answer 202.

    What is wrong with the request becomes a problem document.
    """
    endpoints = find_mount(mounts_of(request.app), handler)
    body = b""
    if isinstance(payload, Body):
        body = await _read_at_most(request, handler.policy.max_payload_bytes)
    asked = request_of(request.scope, body)
    answer = await endpoints.accept(asked, handler, payload, Submit(user_id, options))
    return WholeResponse(answer)


class WholeResponse(Response):
    """A response value, sent as it is."""

    def __init__(self, response: messages.Response) -> None:
        super().__init__(response.body, int(response.status), dict(response.headers))
        self._response = response

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await respond(self._response, send)


def mounts_of(app: Starlette) -> list[Endpoints]:
    """Return the list of an app's mounts, to read or to add to."""
    mounts: list[Endpoints] = getattr(app.state, "asyncjobs", [])
    app.state.asyncjobs = mounts
    return mounts


async def _read_at_most(request: Request, limit: int) -> bytes:
    """Read a body, but not far beyond the limit: what comes after it is left unread."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                break
    return bytes(body)


async def _answer_error(_: Request, error: Exception) -> Response:
    answer = problem_of(error) if isinstance(error, AsyncJobsError) else None
    if answer is None:
        raise error
    return WholeResponse(answer)
