"""FastAPI: `mount(app, jobs)`, and `accept: Accept` as a parameter of a route."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from asyncjobs.adapters import starlette
from asyncjobs.adapters.asgi import StatusMonitor, request_of
from asyncjobs.errors import MalformedBody, RequestRejected
from asyncjobs.http.bodies import rejection_of
from asyncjobs.http.endpoints import Body, Endpoints, MountOptions
from asyncjobs.http.pacing import Pacing
from asyncjobs.http.problems import ProblemDocument, problem_of
from asyncjobs.http.routes import ROUTES, Route
from asyncjobs.http.wire import AcceptedDocument, JobDocument
from asyncjobs.queue import AsyncJobs
from asyncjobs.registry import JobType
from asyncjobs.submission import EnqueueOptions

__all__ = ["Accept", "AcceptedDocument", "Acceptor", "mount"]

P = TypeVar("P")

_Handler = Callable[[Request, Any], Awaitable[Response]]
_AnyHandler = Callable[[Request, Any], Any]
_Rejection = Callable[[Request, Any], RequestRejected | None]


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
    pacing: Pacing | None = None,
) -> None:
    """Serve the status monitor below `prefix`, and keep `jobs` open while the app runs.

    The routes appear in OpenAPI. Errors of this library that a route of the app lets through
    become problem documents, and so do invalid bodies of the routes that have an `Accept`.
    """
    options = MountOptions(prefix, base_url, pacing or Pacing())
    monitor = StatusMonitor(jobs, options=options)
    starlette.join(app, monitor.endpoints)
    for route in ROUTES:
        _add(app, monitor.endpoints, route)
    # What the documented routes leave over: other methods, and paths that are none.
    app.mount(prefix, monitor)
    _answer_refused_bodies(app)


def _add(app: FastAPI, endpoints: Endpoints, route: Route) -> None:
    async def answer(
        request: Request, job_id: Annotated[str, Path(description="from the 202's jobId")]
    ) -> Response:
        asked = replace(request_of(request.scope), path=job_id + route.suffix)
        return starlette.WholeResponse(await endpoints.handle(asked))

    app.add_api_route(
        f"{endpoints.options.prefix}/{{job_id}}{route.suffix}",
        answer,
        methods=[route.method],
        summary=route.summary,
        name=f"asyncjobs_{route.method.lower()}_{route.operation.value}",
        tags=["jobs"],
        response_model=route.model,
        response_description=route.answers[HTTPStatus.OK],
        responses={int(status): _described(route, status) for status in route.answers},
    )


def _described(route: Route, status: HTTPStatus) -> dict[str, Any]:
    described: dict[str, Any] = {"description": route.answers[status]}
    if status >= HTTPStatus.BAD_REQUEST:
        # As a `model` FastAPI would say that it is application/json.
        described["content"] = {"application/problem+json": {"schema": _PROBLEM}}
    elif status is HTTPStatus.ACCEPTED:
        described["model"] = JobDocument
    return described


def _inlined(schema: JsonValue, definitions: Mapping[str, JsonValue]) -> JsonValue:
    """Replace the references of a schema, which has to stand alone, by what they lead to."""
    match schema:
        case {"$ref": str(reference)}:
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            return {name: _inlined(value, definitions) for name, value in schema.items()}
        case list():
            return [_inlined(item, definitions) for item in schema]
        case _:
            return schema


_SCHEMA = ProblemDocument.model_json_schema()
_PROBLEM = _inlined(_SCHEMA, _SCHEMA.pop("$defs"))


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
