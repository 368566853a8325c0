"""Starlette: `mount(app, jobs)`, and `await accept(request, handler, payload)` in a route."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncjobs.adapters import asgi
from asyncjobs.adapters.asgi import StatusMonitor, joined_lifespan, respond
from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.errors import AsyncJobsError
from asyncjobs.http import messages
from asyncjobs.http.endpoints import Body, Submit, find_mount
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import problem_of
from asyncjobs.queue import AsyncJobs

__all__ = ["accept", "mount"]

P = TypeVar("P")

#: Tells from a request who asks, as the owner of jobs; None for nobody.
Identify = Callable[[Request], str | Awaitable[str | None] | None]


def mount(
    app: Starlette,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
) -> None:
    """Serve the status monitor below `prefix`, and keep `jobs` open while the app runs.

    `identify` tells from a request who asks (None: nobody); it may raise the framework's own
    401 or 403. Then jobs belong to who submits them, and nobody else finds them. Errors of this
    library that a route of the app lets through become problem documents.
    """
    monitor = StatusMonitor(
        jobs, prefix=prefix, base_url=base_url, identify=by_scope(identify), options=options
    )
    join(app, monitor, Socket(monitor))
    serve(app, monitor)


def serve(app: Starlette, monitor: StatusMonitor) -> None:
    """Let the monitor answer for jobs, with every method there is.

    Not a Mount, which would redirect requests for the prefix itself.
    """
    prefix = monitor.endpoints.mount.prefix
    for path in ("{job_id}", "{job_id}/{rest:path}"):
        app.router.routes.append(Route(f"{prefix}/{path}", monitor))


def join(app: Starlette, monitor: StatusMonitor, socket: ASGIApp) -> None:
    """Make a mount known to `accept`, and its queue part of the app's lifespan and errors.

    `socket` answers for the WebSockets.
    """
    mounts_of(app).append(monitor)
    lifespan: Any = app.router.lifespan_context
    app.router.lifespan_context = joined_lifespan(lifespan, monitor)
    app.add_exception_handler(AsyncJobsError, _answer_error)
    where = monitor.endpoints.mount
    app.router.routes.append(WebSocketRoute(f"{where.sockets}/{{job_id}}", socket))
    if where.identified:
        # The prefix itself: only to read, since an application may well submit to it.
        app.router.routes.append(Route(where.prefix, monitor, methods=["GET"]))


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

    It belongs to `user_id`, or to whom the mount's `identify` finds. What is wrong with the request
    becomes a problem document.
    """
    mounts = {monitor.endpoints: monitor for monitor in mounts_of(request.app)}
    endpoints = find_mount([*mounts], handler)
    body = b""
    if isinstance(payload, Body):
        body = await _read_at_most(request, handler.policy.max_payload_bytes)
    asked = await mounts[endpoints].asked(request.scope, body)
    answer = await endpoints.accept(asked, handler, payload, Submit(user_id, options))
    return WholeResponse(answer)


class Socket:
    """Keeps a handshake that `identify` refuses from being taken for a fault of the server."""

    def __init__(self, monitor: StatusMonitor) -> None:
        self._monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._monitor(scope, receive, send)
        except HTTPException:
            await send({"type": "websocket.close", "code": 1008})


def by_scope(identify: Identify | None) -> asgi.Identify | None:
    """Let a function of this framework's requests tell who asks."""
    if identify is None:
        return None

    # A WebSocket begins as a GET (RFC 6455, 4.1): who tells owners by requests can read it as one.
    def as_request(scope: Scope) -> Request:
        return Request({**scope, "type": "http", "method": scope.get("method", "GET")})

    if inspect.iscoroutinefunction(identify):
        in_loop = identify

        async def identified(scope: Scope) -> str | None:
            found: str | None = await in_loop(as_request(scope))
            return found

        return identified
    return lambda scope: identify(as_request(scope))


class WholeResponse(Response):
    """A response value, sent as it is."""

    def __init__(self, response: messages.Response) -> None:
        super().__init__(response.body, int(response.status), dict(response.headers))
        self._response = response

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await respond(self._response, receive, send)


def mounts_of(app: Starlette) -> list[StatusMonitor]:
    """Return the list of an app's mounts, to read or to add to."""
    mounts: list[StatusMonitor] = getattr(app.state, "asyncjobs", [])
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
