"""FastAPI: `mount(app, jobs)` or `jobs_router(jobs)`, and `accept: Accept` in a route.

    app.include_router(router := jobs_router(jobs, identify=current_user), prefix="/api/jobs")
    Accept = Annotated[Acceptor, Depends(router.accept)]

`mount` is the short way: the same routes, with an `Accept` that is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, overload
from uuid import uuid4
from weakref import WeakKeyDictionary

try:
    from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket, params
except ImportError as error:
    raise ImportError(
        "asyncjobs.adapters.fastapi needs FastAPI: pip install 'asyncjobs-http[fastapi]'"
    ) from error
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Match, NoMatchFound, Router
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from asyncjobs.adapters import starlette
from asyncjobs.adapters.asgi import (
    StatusMonitor,
    request_of,
    routed_request_of,
    submission_of,
)
from asyncjobs.adapters.starlette import (
    ANY_PATH,
    PendingResponse,
    problem_response,
)
from asyncjobs.adapters.submissions import (
    Description,
    SubmissionRoute,
    acceptors,
    answer_refused_bodies,
    submission_route,
    with_models,
)
from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import Batch, EnqueueOptions
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.documents import AcceptedDocument
from asyncjobs.http.mounts import Mount, MountOptions, check_queue, check_target, owner_of
from asyncjobs.http.openapi import (
    JOB_ID,
    parameters_of,
    responses_of,
)
from asyncjobs.http.routes import LIST, RENEWAL, ROUTES, TAG_RENEWAL, Route
from asyncjobs.http.scripts import SCRIPTS
from asyncjobs.http.submissions import Body, Handle, Submit, find_mount
from asyncjobs.queue import AsyncJobs

if TYPE_CHECKING:
    from asyncjobs.http.tokens import Tokens

__all__ = [
    "Accept",
    "AcceptedDocument",
    "Acceptor",
    "JobsRouter",
    "SubmissionRoute",
    "jobs_router",
    "mount",
    "problem_response",
]

P = TypeVar("P")

#: A FastAPI dependency that returns the owner of a request, a string; None for an anonymous caller.
#: If a function has a single parameter without an annotation, it receives the request.
Identify = Callable[..., Any]

_AnyHandler = Callable[[Request, Any], Any]

_FOUND = "asyncjobs.owner"

# In OpenAPI, an alternative to the schemes of `identify`.
_JOB_TOKEN = Depends(
    HTTPBearer(
        scheme_name="JobToken",
        bearerFormat="JWT",
        description="The `token` of the 202.",
        auto_error=False,
    )
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
_METHODS_WITH_BODY = {"POST", "PUT", "PATCH"}
_POLICY_VIOLATION = 1008


class Acceptor:
    """Submits jobs on behalf of one request: `return await accept(export, cmd)`."""

    def __init__(self, submit: Callable[[Any, Any, Submit], Awaitable[Response]]) -> None:
        self._submit = submit

    @overload
    def __call__(self, job: Handle, /) -> Awaitable[Response]: ...

    @overload
    def __call__(
        self,
        handler: JobType[P, Any],
        payload: P | Body | Batch[P] = ...,
        /,
        *,
        user_id: str | None = ...,
        options: EnqueueOptions | None = ...,
        idempotency_key: str | None = ...,
    ) -> Awaitable[Response]: ...

    @overload
    def __call__(
        self,
        handler: str,
        payload: object = ...,
        /,
        *,
        user_id: str | None = ...,
        options: EnqueueOptions | None = ...,
        idempotency_key: str | None = ...,
    ) -> Awaitable[Response]: ...

    def __call__(
        self,
        handler: JobType[P, Any] | str | Handle,
        payload: P | Body | Batch[P] = Body.UNREAD,
        /,
        *,
        user_id: str | None = None,
        options: EnqueueOptions | None = None,
        idempotency_key: str | None = None,
    ) -> Awaitable[Response]:
        """Submit the payload, or the JSON body of the request, as a job, and answer 202: await it.

        With `Batch(payloads)` as the payload, it submits a batch, with a job for each of them. With
        the handle of a job or a batch that exists, and nothing else, it only answers.

        The handler is given itself or by its name. The job belongs to `user_id`, or to the owner
        that `identify` returns. An `idempotency_key` takes precedence over the request's header.
        Raises `ConfigurationError` for a handler of another queue, and outside an event loop, as in
        a `def` route.
        """
        return self._submit(handler, payload, Submit(user_id, options, idempotency_key))


async def _mounted_acceptor(request: Request) -> Acceptor:
    def submit(handler: Any, payload: Any, submit: Submit) -> Awaitable[Response]:
        return starlette.accept(
            request,
            handler,
            payload,
            user_id=submit.user_id,
            options=submit.options,
            idempotency_key=submit.idempotency_key,
        )

    return Acceptor(submit)


acceptors[_mounted_acceptor] = None

#: For an app with a `mount`: annotate a route's parameter with it, `accept: Accept`.
Accept = Annotated[Acceptor, Depends(_mounted_acceptor)]


class JobsRouter(APIRouter):
    """The routes of one queue; `accept` is the dependency that submits jobs to it.

    The URLs of jobs follow the prefixes under which the router is included, and the root path of
    the app. The queue opens with the lifespan of that app, or at its first use.
    """

    def __init__(self, monitor: StatusMonitor, identify: Any) -> None:
        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncGenerator[None]:
            async with monitor.running():
                yield

        super().__init__(lifespan=lifespan)
        # Names one route, by which the prefix is found.
        self._anchor = f"asyncjobs:{uuid4()}"
        self._monitor = monitor
        self.accept: Callable[..., Awaitable[Acceptor]] = self._acceptor(identify)
        _add_routes(self, monitor, identify, self._anchor)
        path = f"{monitor.endpoints.mount.websocket_prefix}/{{job_id}}"
        self.add_api_websocket_route(path, _socket_endpoint(monitor))
        self.add_api_websocket_route(f"{path}/", _socket_endpoint(monitor))

    def _acceptor(self, identify: Any) -> Callable[..., Awaitable[Acceptor]]:
        async def accept(request: Request, owner: Any = identify) -> Acceptor:
            return Acceptor(partial(self._submit, request, owner_of(owner)))

        callbacks = self._monitor.endpoints.mount.options.callbacks
        acceptors[accept] = Description(callbacks=callbacks)
        return accept

    def _submit(
        self,
        request: Request,
        owner: str | None,
        handler: JobType[P, Any] | str | Handle,
        payload: P | Body | Batch[P],
        submit: Submit,
    ) -> Awaitable[Response]:
        monitor = self._monitor
        find_mount([monitor.endpoints], handler)
        root, prefix = self._place(request.scope)

        async def submitting() -> Response:
            body = await starlette.body_for(request, monitor, handler, payload)
            asked = submission_of(request.scope, root, prefix, body, owner)
            return await starlette.submitted(monitor, asked, handler, payload, submit)

        return PendingResponse(submitting)

    def _place(self, scope: Scope) -> tuple[str, str]:
        """Return the root path and the prefix of the routes, as the app's router knows them."""
        for router, root in starlette.routers_of(scope):
            # Stored in the router's attributes, since a router cannot be the key of a dictionary.
            known: dict[str, str] = vars(router).setdefault("asyncjobs_prefixes", {})
            prefix = known.get(self._anchor) or self._prefix_in(router, {})
            if prefix is not None:
                known[self._anchor] = prefix
            else:
                # Parameters in the prefix get the values of the request: `/{tenant}/jobs`.
                prefix = self._prefix_in(router, scope["path_params"])
            if prefix is not None:
                return root, prefix
        raise ConfigurationError(
            "accept() found no URL for its jobs: include the router of this Accept in the app of "
            "the route, or in the outermost app, by app.include_router(router, prefix=...)."
        )

    def _prefix_in(self, router: Router, known: dict[str, Any]) -> str | None:
        try:
            path = router.url_path_for(self._anchor, **{**known, "path": "_"})
        except (NoMatchFound, AssertionError):  # the latter for a parameter of the wrong type
            return None
        return str(path).removesuffix("/_")


def jobs_router(
    jobs: AsyncJobs,
    *,
    identify: Identify | None = None,
    base_url: str | None = None,
    options: MountOptions | None = None,
    tokens: Tokens | None = None,
) -> JobsRouter:
    """Return a router with the status monitor: `app.include_router(jobs_router(jobs), prefix=...)`.

    `identify` is a dependency like any other: it may have dependencies of its own, be overridden by
    `app.dependency_overrides`, and raise `HTTPException`. WebSockets resolve it, too, as if they
    were GET requests. A job belongs to the owner that submitted it, and no other caller finds it.
    Routes submit jobs by `Annotated[Acceptor, Depends(router.accept)]`. For problem documents as
    answers to invalid bodies, and for OpenAPI, give their router `route_class=SubmissionRoute`.
    """
    check_queue(jobs, _function_of(identify))
    monitor = StatusMonitor(
        jobs,
        prefix=None,
        base_url=base_url,
        identify=None if identify is None else _Resolver(identify),
        options=options,
        tokens=tokens,
    )
    return JobsRouter(monitor, _dependency(identify))


def mount(
    app: FastAPI,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
    tokens: Tokens | None = None,
) -> None:
    """Serve the routes of `jobs_router` below `prefix`, and keep `jobs` open while the app runs.

    The app's own `dependencies` apply to the jobs and their WebSockets, too. If a route of the app
    raises an error of this library, the answer is a problem document; so it is for an invalid body
    of a route with an `Accept`. OpenAPI describes the answers of such routes if they are declared
    on the app after the mount, or on a router with `route_class=SubmissionRoute`. Raises
    `ConfigurationError` for an app that is not one, and for a second mount at the same prefix.
    """
    check_target(FastAPI, app, jobs, prefix, _function_of(identify))
    owner = None if identify is None else _Resolver(identify)
    monitor = StatusMonitor(
        jobs, prefix=prefix, base_url=base_url, identify=owner, options=options, tokens=tokens
    )
    guards = app.router.dependencies
    resolver = _Resolver(identify, guards) if identify or guards else None
    # A token takes the place of the caller, and not of the app's own dependencies.
    guard = _Resolver(None, guards) if guards else None
    starlette.join(app, monitor, _Socket(monitor, resolver, guard))
    if resolver is None:
        # Without dependencies, Starlette's routes answer requests in a third of the time.
        starlette.serve(app, monitor, prefix)
    router = APIRouter() if resolver else _DescribedRouter()
    _add_routes(router, monitor, _dependency(identify))
    app.include_router(router, prefix=prefix)
    if resolver is not None:
        # For methods that FastAPI does not know.
        starlette.serve(app, monitor, prefix)
    if app.router.route_class is APIRoute:
        app.router.route_class = submission_route(
            Description(prefix, monitor.endpoints.mount.options.callbacks)
        )
    answer_refused_bodies(app)


class _DescribedRouter(APIRouter):
    """Routes that exist only for OpenAPI: the routes before them answer all requests."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match nothing, so that FastAPI does not check each route for the app's own requests.

        Versions that copy the routes into the app do not call this, and check each route.
        """
        del scope
        return Match.NONE, {}


class _ReadRoute(APIRoute):
    """A route that leaves other methods to other routes, or to the redirect to another path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found, child = super().matches(scope)
        return (found, child) if found is Match.FULL else (Match.NONE, {})


class _Resolver:
    """Resolves `identify` outside the route of a request, as FastAPI would for a route.

    It is used for WebSockets, which begin as a GET (RFC 6455, 4.1), since most dependencies take a
    `Request`; and for the `Accept` of a mount, which is created before the mount is known. `guards`
    are resolved first, only for their errors.
    """

    def __init__(self, identify: Identify | None, guards: Sequence[params.Depends] = ()) -> None:
        self._dependency = _dependency(identify)
        self._guards = guards
        # By app, because of its `dependency_overrides`.
        self._routes: WeakKeyDictionary[Any, APIRoute] = WeakKeyDictionary()

    async def __call__(self, scope: Scope) -> str | None:
        found: list[Any] = []
        asked = {**starlette.as_http(scope), _FOUND: found}
        # Without handlers, errors are raised instead of answered.
        asked.pop("starlette.exception_handlers", None)
        await self._route_for(scope["app"]).app(asked, _receive_nothing, _send_nothing)
        return owner_of(found[0])

    def _route_for(self, app: Any) -> APIRoute:
        route = self._routes.get(app)
        if route is None:

            async def resolved(request: Request, owner: Any = self._dependency) -> Response:
                request.scope[_FOUND].append(owner)
                return Response()

            route = self._routes[app] = APIRoute(
                "/",
                resolved,
                response_class=Response,
                dependencies=self._guards,
                dependency_overrides_provider=app,
            )
        return route


class _Socket:
    """Answers the WebSockets of a mount, and refuses those that the app's dependencies refuse."""

    def __init__(
        self, monitor: StatusMonitor, resolver: _Resolver | None, guard: _Resolver | None
    ) -> None:
        self._monitor = monitor
        self._resolver = resolver
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = routed_request_of(scope, scope["path_params"]["job_id"], None)
        by_token = self._monitor.endpoints.carries_token(asked)
        resolver = self._guard if by_token else self._resolver
        try:
            owner = None if resolver is None else await resolver(scope)
        except (HTTPException, RequestValidationError):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        await self._monitor.talk(asked._replace(owner=owner), receive, send)


def _add_routes(
    router: APIRouter, monitor: StatusMonitor, identify: Any, anchor: str | None = None
) -> None:
    # Routes of FastAPI only: its older versions drop an enclosing router's prefix from other
    # routes.
    anyone = _public_endpoint(monitor)
    for name in SCRIPTS:
        # Before the routes that identify the caller.
        endpoint = _public_endpoint(monitor, name)
        for path in (f"/{name}", f"/{name}/"):
            router.add_api_route(path, endpoint, methods=_METHODS, include_in_schema=False)
    served = _owner_without_token(monitor) if monitor.endpoints.mount.tokens else identify
    for route in _routes_of(monitor.endpoints.mount):
        _add_route(router, monitor, route, served, described_by=identify)
    path = f"/{{path:{ANY_PATH}}}"
    router.add_api_route(path, anyone, methods=["OPTIONS"], include_in_schema=False)
    rest = _rest_endpoint(monitor, served)
    router.add_api_route(path, rest, name=anchor, methods=_METHODS, include_in_schema=False)


def _routes_of(mount: Mount) -> Iterator[Route]:
    if mount.identified:
        yield LIST
    yield from ROUTES
    if mount.tokens is not None:
        yield RENEWAL
    if mount.tokens is not None and mount.identified:
        yield TAG_RENEWAL


def _owner_without_token(monitor: StatusMonitor) -> Any:
    """Return a dependency on `identify`, which is not resolved for requests with a token.

    FastAPI itself resolves all dependencies of a route, and `identify` may refuse such requests.
    """

    async def owner(request: Request) -> Any:
        asked = await monitor.identified(request_of(request.scope), request.scope)
        return asked.owner

    return Depends(owner)


def _public_endpoint(monitor: StatusMonitor, path: str | None = None) -> Any:
    """Answer requests that need no caller: scripts and OPTIONS."""

    async def answer(request: Request) -> Response:
        asked = routed_request_of(request.scope, path or request.path_params["path"], None)
        found = monitor.endpoints.answer_anyone(asked)
        return starlette.response_of(found or await monitor.endpoints.handle(asked))

    return answer


def _rest_endpoint(monitor: StatusMonitor, identify: Any) -> Any:
    """Answer all other requests: other methods, a slash at the end, other paths."""

    async def answer(request: Request, owner: Any = identify) -> Response:
        asked = routed_request_of(request.scope, request.path_params["path"], owner_of(owner))
        await monitor.ready()
        return starlette.response_of(await monitor.endpoints.handle(asked))

    return answer


def _add_route(
    router: APIRouter, monitor: StatusMonitor, route: Route, identify: Any, described_by: Any
) -> None:
    async def answer(request: Request, owner: Any = identify) -> Response:
        given = request.path_params
        path = given["job_id"] + route.suffix.format(**given) if of_job else route.suffix[1:]
        asked = routed_request_of(request.scope, path, owner_of(owner))
        await monitor.ready()
        return starlette.response_of(await monitor.endpoints.handle(asked))

    async def described(owner: Any = described_by) -> None: ...

    tokens = monitor.endpoints.mount.tokens is not None
    of_job = route is not LIST and route is not TAG_RENEWAL
    below = f"/{{job_id}}{route.suffix}" if of_job else route.suffix
    if tokens:
        # The route that follows is only for OpenAPI, where it names the schemes of `identify`.
        router.add_api_route(below, answer, methods=[route.method], include_in_schema=False)
    secured = tokens and monitor.endpoints.mount.identified
    router.add_api_route(
        below,
        described if tokens else answer,
        methods=[route.method],
        dependencies=[_JOB_TOKEN] if secured else None,
        summary=route.summary,
        name=f"asyncjobs_{route.method.lower()}_{route.operation.value}",
        tags=["jobs"],
        response_class=Response,
        responses=with_models(responses_of(route, tokens=tokens)),
        openapi_extra={
            "parameters": [
                *([JOB_ID] if of_job else []),
                *parameters_of(route, tokens=tokens),
            ]
        },
    )
    if route.method == "GET":
        # After the GET: a 405 lists the methods of the first route of a path.
        router.add_api_route(below, answer, methods=["HEAD"], include_in_schema=False)
    if route is LIST:
        router.add_api_route(
            "/",
            answer,
            methods=["GET", "HEAD"],
            include_in_schema=False,
            route_class_override=_ReadRoute,
        )


def _socket_endpoint(monitor: StatusMonitor) -> Callable[[WebSocket], Awaitable[None]]:
    async def follow(websocket: WebSocket) -> None:
        async def send(message: Message) -> None:
            try:
                await websocket.send(message)
            except WebSocketDisconnect as error:
                raise OSError("the client has disconnected") from error

        asked = routed_request_of(websocket.scope, websocket.path_params["job_id"], None)
        try:
            asked = await monitor.identified(asked, websocket.scope)
        except (HTTPException, RequestValidationError):
            await websocket.close(_POLICY_VIOLATION)
            return
        await monitor.talk(asked, websocket.receive, send)

    return follow


def _function_of(identify: Any) -> Any:
    """Return the function of a dependency."""
    return identify.dependency if isinstance(identify, params.Depends) else identify


def _dependency(identify: Any) -> Any:
    """Return `identify` as the default value of a parameter."""
    if identify is None:
        return Depends(_anonymous)
    if isinstance(identify, params.Depends):
        return identify
    parameters = [*inspect.signature(identify).parameters.values()]
    if len(parameters) != 1 or parameters[0].annotation not in {
        inspect.Parameter.empty,
        Any,
        "Any",
    }:
        return Depends(identify)
    # Otherwise FastAPI would take the parameter for a query parameter.
    if inspect.iscoroutinefunction(identify):

        async def identified(request: HTTPConnection) -> Any:
            return await identify(request)

        return Depends(identified)

    def identified_in_thread(request: HTTPConnection) -> Any:
        return identify(request)

    return Depends(identified_in_thread)


async def _anonymous() -> None:
    return None


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


async def _send_nothing(_: Message) -> None:
    return None
