"""FastAPI: `mount(app, jobs)`, and `accept: Accept` as a parameter of a route."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncjobs.adapters import starlette
from asyncjobs.adapters.asgi import StatusMonitor, request_of
from asyncjobs.adapters.starlette import Identify
from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.errors import MalformedBody, RequestRejected
from asyncjobs.http.documents import AcceptedDocument
from asyncjobs.http.endpoints import Body
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.openapi import (
    JOB_ID,
    parameters_of,
    responses_of,
    submission_parameters,
    submission_responses,
)
from asyncjobs.http.problems import problem_of
from asyncjobs.http.requests import rejection_of
from asyncjobs.http.routes import LIST, ROUTES, Route
from asyncjobs.queue import AsyncJobs

__all__ = ["Accept", "AcceptedDocument", "Acceptor", "mount"]

P = TypeVar("P")

_Handler = Callable[[Request, Any], Awaitable[Response]]
_AnyHandler = Callable[[Request, Any], Any]
_Rejection = Callable[[Request, Any], RequestRejected | None]

# Where a request that stands for a WebSocket keeps what that is.
_AS_IT_CAME = "asyncjobs.websocket"

# How FastAPI says that it could not read a body at all.
_UNREADABLE = "There was an error parsing the body"


class Acceptor:
    """Makes jobs of what one request submits."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __call__(
        self,
        handler: JobType[P, Any],
        payload: P | Body = Body.UNREAD,
        /,
        *,
        user_id: str | None = None,
        options: EnqueueOptions | None = None,
    ) -> Response:
        """Make a job of the payload, or of the request's JSON body, and answer 202."""
        return await starlette.accept(
            self._request, handler, payload, user_id=user_id, options=options
        )


#: Annotate a route's parameter with it: `accept: Accept`.
Accept = Annotated[Acceptor, Depends(Acceptor)]


def mount(
    app: FastAPI,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
) -> None:
    """Serve the status monitor below `prefix`, and keep `jobs` open while the app runs.

    `identify` tells from a request who asks (None: nobody); it may raise `HTTPException`. Then jobs
    belong to who submits them, and nobody else finds them. What the app's own `dependencies` demand
    of every route is demanded for jobs, too. The routes appear in OpenAPI, and so do the answers of
    routes that have an `Accept`. Errors of this library that a route of the app lets through become
    problem documents, and so do invalid bodies of the routes that have an `Accept`.
    """
    monitor = StatusMonitor(
        jobs,
        prefix=prefix,
        base_url=base_url,
        identify=starlette.by_scope(identify),
        options=options,
    )
    for route in [LIST, *ROUTES] if identify else ROUTES:
        _add(app, monitor, route)
    socket = starlette.Socket(monitor)
    starlette.join(app, monitor, _Demanding(app, socket) if app.router.dependencies else socket)
    # What the documented routes leave over: other methods, and paths that are none.
    starlette.serve(app, monitor)
    _answer_refused_bodies(app)
    _describe_submissions(app, monitor.endpoints.mount)


class _Delegated(Response):
    """Leaves a request that FastAPI has routed and documented to another application."""

    def __init__(self, answering: ASGIApp) -> None:
        super().__init__()
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answering(scope, receive, send)


class _Demanding:
    """Demands of a WebSocket what the app demands of every route, before it is passed on.

    It begins as a GET (RFC 6455, 4.1): dependencies that look at requests can look at it as one.
    """

    def __init__(self, app: FastAPI, socket: ASGIApp) -> None:
        self._socket = socket
        self._route = APIRoute(
            "/",
            self._let_in,
            response_class=Response,
            dependencies=app.router.dependencies,
            dependency_overrides_provider=app,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def refusing(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send({"type": "websocket.close", "code": 1008})
            elif message["type"] != "http.response.body":
                await send(message)

        as_request = {**scope, "type": "http", "method": "GET", _AS_IT_CAME: scope}
        await self._route.app(as_request, receive, refusing)

    async def _let_in(self) -> Response:
        return _Delegated(self._pass_on)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._socket(scope[_AS_IT_CAME], receive, send)


def _add(app: FastAPI, monitor: StatusMonitor, route: Route) -> None:
    async def answer() -> Response:
        return _Delegated(monitor)

    below = "" if route is LIST else f"/{{job_id}}{route.suffix}"
    parameters = [*([JOB_ID] if below else []), *parameters_of(route)]
    path = f"{monitor.endpoints.mount.prefix}{below}"
    app.add_api_route(
        path,
        answer,
        methods=[route.method],
        summary=route.summary,
        name=f"asyncjobs_{route.method.lower()}_{route.operation.value}",
        tags=["jobs"],
        response_class=Response,
        responses=responses_of(route),
        openapi_extra={"parameters": parameters},
    )
    if route.method == "GET":
        # Last, since the first route of a path is the one whose method a 405 names.
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)


def _describe_submissions(app: FastAPI, where: Mount) -> None:
    """Let OpenAPI say of every route that submits what `accept` reads and answers."""
    generate = app.openapi
    read = submission_parameters(callbacks=where.options.callbacks)

    def described() -> dict[str, Any]:
        for route in app.routes:
            if isinstance(route, APIRoute) and _has_acceptor(route.dependant):
                answers = submission_responses(where.prefix)
                if _has_parameters(route.dependant):
                    # What FastAPI itself refuses, it describes nowhere else once there is a 422.
                    answers[422]["content"]["application/json"] = {"schema": {"type": "object"}}
                route.responses = {**answers, **route.responses}
                extra = route.openapi_extra or {}
                known = extra.get("parameters", [])
                added = [one for one in read if one not in known]
                route.openapi_extra = {**extra, "parameters": [*known, *added]}
        return generate()

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _has_parameters(dependant: Dependant) -> bool:
    own = dependant.path_params or dependant.query_params
    own = own or dependant.header_params or dependant.cookie_params
    return bool(own) or any(_has_parameters(one) for one in dependant.dependencies)


def _answer_refused_bodies(app: FastAPI) -> None:
    for kind, usual, rejection in (
        (RequestValidationError, request_validation_exception_handler, _misshapen),
        (HTTPException, http_exception_handler, _unreadable),
    ):
        handler: Any = app.exception_handlers.get(kind, usual)
        app.add_exception_handler(kind, _problems_for_submissions(handler, rejection))


def _problems_for_submissions(usual: _AnyHandler, rejection: _Rejection) -> _Handler:
    """Answer refused bodies of submissions by a problem, anything else as the app does anyway."""

    async def answer(request: Request, error: Any) -> Response:
        rejected = rejection(request, error) if _submits(request) else None
        problem = None if rejected is None else problem_of(rejected)
        if problem is None:
            if inspect.iscoroutinefunction(usual):
                response: Response = await usual(request, error)
            else:
                response = await run_in_threadpool(usual, request, error)
            return response
        return starlette.WholeResponse(problem)

    return answer


def _misshapen(request: Request, error: RequestValidationError) -> RequestRejected | None:
    return rejection_of(request_of(request.scope), error.errors())


def _unreadable(_: Request, error: HTTPException) -> RequestRejected | None:
    if error.detail != _UNREADABLE:
        return None  # some other refusal, whose cause is the app's own business
    # FastAPI treats some kinds of what is not JSON apart from the rest.
    if isinstance(error.__cause__, UnicodeDecodeError):
        return MalformedBody("it is not UTF-8")
    if isinstance(error.__cause__, RecursionError):
        return MalformedBody("it is nested too deeply")
    if isinstance(error.__cause__, ValueError):
        return MalformedBody(str(error.__cause__))
    return None


def _submits(request: Request) -> bool:
    """Tell whether there is an `Accept` among the parameters of a route and its dependencies."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    return dependant is not None and _has_acceptor(dependant)


def _has_acceptor(dependant: Dependant) -> bool:
    return any(one.call is Acceptor or _has_acceptor(one) for one in dependant.dependencies)
