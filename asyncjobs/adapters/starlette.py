"""Starlette: `mount(app, jobs)`, and `await accept(request, handler, payload)` in a route."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Awaitable, Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, overload

try:
    from starlette.applications import Starlette
except ImportError as error:
    raise ImportError(
        "asyncjobs.adapters.starlette needs Starlette: pip install 'asyncjobs-http[starlette]'"
    ) from error
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncjobs.adapters import asgi
from asyncjobs.adapters.asgi import (
    StatusMonitor,
    joined_lifespan,
    send_as,
    submission_of,
    wire_headers,
)
from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import Batch, EnqueueOptions
from asyncjobs.errors import AsyncJobsError, ConfigurationError, MalformedBody
from asyncjobs.execution.tasks import current_loop
from asyncjobs.http import messages
from asyncjobs.http.mounts import MountOptions, check_mounts, check_target
from asyncjobs.http.problems import STATUSES, problem_of
from asyncjobs.http.requests import IncomingBody
from asyncjobs.http.submissions import Body, Handle, Submit, find_mount
from asyncjobs.queue import AsyncJobs

if TYPE_CHECKING:
    from asyncjobs.http.tokens import Tokens

__all__ = ["accept", "mount", "problem_response"]

P = TypeVar("P")

#: Returns the owner of a request; None for an anonymous caller.
Identify = Callable[[Request], str | Awaitable[str | None] | None]


class _AnyPath(Convertor[str]):
    """Any path: unlike Starlette's, it may contain line breaks."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


#: The type of a path parameter for everything below a prefix.
ANY_PATH = "asyncjobs_path"
register_url_convertor(ANY_PATH, _AnyPath())


class _ReadRoute(Route):
    """A route that leaves other methods to other routes, or to the redirect to another path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found, child = super().matches(scope)
        return (found, child) if found is Match.FULL else (Match.NONE, {})


def mount(
    app: Starlette,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
    tokens: Tokens | None = None,
) -> None:
    """Serve the status monitor below `prefix`, and keep `jobs` open while the app runs.

    `identify` returns the owner of a request, None for an anonymous caller; it may raise an
    `HTTPException`. A job belongs to the owner that submitted it, and no other caller finds it.
    With `tokens`, each 202 has a token that opens its job, too. If a route of the app raises an
    error of this library, the answer is a problem document. Raises `ConfigurationError` for an app
    that is not one, and for a second mount at the same prefix.
    """
    check_target(Starlette, app, jobs, prefix, identify)
    monitor = StatusMonitor(
        jobs,
        prefix=prefix,
        base_url=base_url,
        identify=by_scope(identify),
        options=options,
        tokens=tokens,
    )
    join(app, monitor, Socket(monitor))
    serve(app, monitor, prefix)


def serve(app: Starlette, monitor: StatusMonitor, prefix: str) -> None:
    """Add the routes of the monitor, for every method.

    A Mount is not used, since it would redirect requests for the prefix itself.
    """
    routes = app.router.routes
    if monitor.endpoints.mount.identified:
        # The prefix itself is only read: an application may submit jobs to it.
        routes.append(Route(prefix, monitor, methods=["GET"]))
        routes.append(_ReadRoute(f"{prefix}/", monitor, methods=["GET"]))
    routes.append(Route(f"{prefix}/{{path:{ANY_PATH}}}", monitor))


def join(app: Starlette, monitor: StatusMonitor, socket: ASGIApp) -> None:
    """Register a mount for `accept`, and add its queue to the app's lifespan and error handlers.

    `socket` answers the WebSockets.
    """
    mounts = _mounts_of(app.router)
    check_mounts([one.endpoints.mount for one in mounts], monitor.endpoints.mount)
    mounts.append(monitor)
    lifespan: Any = app.router.lifespan_context
    app.router.lifespan_context = joined_lifespan(lifespan, monitor)
    # Not for their base class: a server error in a sub-application, which has answered it already,
    # would be caught again here.
    for kind in STATUSES:
        app.add_exception_handler(kind, problem_response)
    path = f"{monitor.endpoints.mount.websocket_prefix}/{{job_id}}"
    app.router.routes += [WebSocketRoute(path, socket), WebSocketRoute(f"{path}/", socket)]


@overload
def accept(request: Request, job: Handle, /) -> Awaitable[Response]: ...


@overload
def accept(
    request: Request,
    handler: JobType[P, Any],
    payload: P | Body | Batch[P] = ...,
    /,
    *,
    user_id: str | None = ...,
    options: EnqueueOptions | None = ...,
    idempotency_key: str | None = ...,
) -> Awaitable[Response]: ...


@overload
def accept(
    request: Request,
    handler: str,
    payload: object = ...,
    /,
    *,
    user_id: str | None = ...,
    options: EnqueueOptions | None = ...,
    idempotency_key: str | None = ...,
) -> Awaitable[Response]: ...


def accept(
    request: Request,
    handler: JobType[P, Any] | str | Handle,
    payload: P | Body | Batch[P] = Body.UNREAD,
    /,
    *,
    user_id: str | None = None,
    options: EnqueueOptions | None = None,
    idempotency_key: str | None = None,
) -> Awaitable[Response]:
    """Submit the payload, or the JSON body of the request, as a job, and answer 202: await it.

    With `Batch(payloads)` as the payload, it submits a batch, with a job for each of them. With the
    handle of a job or a batch that exists, and nothing else, it only answers.

    The handler is given itself or by its name. The job belongs to `user_id`, or to the owner that
    the mount's `identify` returns. An `idempotency_key` takes precedence over the request's header.
    A request that cannot be accepted is answered by a problem document. Raises `ConfigurationError`
    if no queue with this handler is mounted on the app of the route, or on the outermost app; and
    outside an event loop, as in a `def` route.
    """
    monitor, root = _find_monitor(request.scope, handler)

    async def submit() -> Response:
        body = await body_for(request, monitor, handler, payload)
        owner = await monitor.owner(request.scope)
        asked = submission_of(request.scope, root, "", body, owner)
        return await submitted(
            monitor, asked, handler, payload, Submit(user_id, options, idempotency_key)
        )

    return PendingResponse(submit)


async def problem_response(_: Request, error: Exception) -> Response:
    """Answer an error of this library by a problem document; re-raise it if it has none.

    This is an exception handler, which `mount` adds to the app.
    """
    answer = problem_of(error) if isinstance(error, AsyncJobsError) else None
    if answer is None:
        raise error
    return WholeResponse(answer)


class PendingResponse(Response):
    """The return value of `accept`: await it to get the response.

    It is a response itself: if it is returned without `await`, the framework sends it, which raises
    an error that explains the mistake.
    """

    def __init__(self, submit: Callable[[], Awaitable[Response]]) -> None:
        # Not `super().__init__()`, which builds headers: this object is rarely sent.
        self.status_code, self.body, self.raw_headers, self.background = 200, b"", [], None
        self._submit = submit
        self._used = True
        if current_loop() is None:
            raise ConfigurationError(
                "accept() was called outside the event loop, as in a `def` route: "
                "declare the route with `async def`, and `return await accept(...)`."
            )
        self._used = False

    def __await__(self) -> Generator[Any, Any, Response]:
        self._used = True
        return self._answer().__await__()

    async def _answer(self) -> Response:
        try:
            return await self._submit()
        except MalformedBody as error:  # the body ended early
            answer = problem_of(error)
            if answer is None:
                raise
            return WholeResponse(answer)

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        self._used = True
        raise ConfigurationError(
            "A route returned accept(...) without awaiting it, and no job was created: "
            "write `return await accept(...)`."
        )

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                "accept(...) was not awaited, and no job was created: "
                "write `return await accept(...)`.",
                RuntimeWarning,
                stacklevel=1,
            )


async def body_for(
    request: Request,
    monitor: StatusMonitor,
    handler: JobType[Any, Any] | str | Handle,
    payload: object,
) -> IncomingBody:
    """Read the body if it is the payload, up to the handler's limit; raise `MalformedBody`."""
    limit = monitor.endpoints.body_limit(handler, payload)
    if limit is None:
        return IncomingBody()
    body = IncomingBody(limit)
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                if not body.add(chunk):
                    break
    except ClientDisconnect as error:
        raise MalformedBody("it is incomplete") from error
    return body


async def submitted(
    monitor: StatusMonitor,
    asked: messages.Request,
    handler: JobType[P, Any] | str | Handle,
    payload: P | Body | Batch[P],
    submit: Submit,
) -> Response:
    """Submit a job to the queue, opening it if needed."""
    await monitor.ready()
    return WholeResponse(await monitor.endpoints.accept(asked, handler, payload, submit))


class Socket:
    """Closes a WebSocket that `identify` refuses; such a refusal is not a server error."""

    def __init__(self, monitor: StatusMonitor) -> None:
        self._monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._monitor(scope, receive, send)
        except HTTPException:
            await send({"type": "websocket.close", "code": 1008})


def by_scope(identify: Identify | None) -> asgi.Identify | None:
    """Adapt a function of Starlette's requests to scopes."""
    if identify is None:
        return None
    if inspect.iscoroutinefunction(identify):
        in_loop = identify

        async def identified(scope: Scope) -> str | None:
            found: str | None = await in_loop(Request(as_http(scope)))
            return found

        return identified
    return lambda scope: identify(Request(as_http(scope)))


def as_http(scope: Scope) -> dict[str, Any]:
    """Return a scope as that of an HTTP request: a WebSocket begins as a GET (RFC 6455, 4.1)."""
    return {**scope, "type": "http", "method": scope.get("method", "GET")}


class WholeResponse(Response):
    """A response value as a Starlette response, with its headers unchanged."""

    def __init__(self, response: messages.Response) -> None:
        # Not `super().__init__()`, which would add headers.
        self.status_code, self.body = int(response.status), response.body
        self.raw_headers, self.background = wire_headers(response), None


class _Stream(WholeResponse):
    """A stream as a Starlette response."""

    def __init__(self, response: messages.Response) -> None:
        super().__init__(response)
        self._response = response

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send_as(self._response, self.raw_headers, receive, send)


def response_of(response: messages.Response) -> Response:
    """Return a response value as a Starlette response."""
    kind = _Stream if isinstance(response, messages.StreamingResponse) else WholeResponse
    return kind(response)


def routers_of(scope: Scope) -> list[tuple[Router, str]]:
    """Return the routers that may serve the jobs of a request, each with its root path.

    The first is that of the app with the route, the second that of the outermost app, which may
    have mounted it.
    """
    root: str = scope.get("root_path", "")
    return [(scope["app"].router, root), (scope["router"], scope.get("app_root_path", root))]


def _find_monitor(
    scope: Scope, handler: JobType[Any, Any] | str | Handle
) -> tuple[StatusMonitor, str]:
    mounted = [
        (monitor, root) for router, root in routers_of(scope) for monitor in _mounts_of(router)
    ]
    found = find_mount([monitor.endpoints for monitor, _ in mounted], handler)
    return next(one for one in mounted if one[0].endpoints is found)


def _mounts_of(router: Router) -> list[StatusMonitor]:
    # Stored with the router, not the app: a sub-application's request has its parent's router. It
    # is an attribute, since routers cannot be the keys of a dictionary.
    mounts: list[StatusMonitor] = vars(router).setdefault("asyncjobs_mounts", [])
    return mounts
