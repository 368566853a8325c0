"""FastAPI: `mount(app, jobs)`, and `accept: Accept` as a parameter of a route."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from asyncjobs.adapters import starlette
from asyncjobs.adapters.asgi import StatusMonitor, request_of
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
    usual: Any = app.exception_handlers.get(
        RequestValidationError, request_validation_exception_handler
    )
    app.add_exception_handler(RequestValidationError, _problems_for_submissions(usual))


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
        schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        described["content"] = {"application/problem+json": {"schema": schema}}
    elif status is HTTPStatus.ACCEPTED:
        described["model"] = JobDocument
    return described


def _problems_for_submissions(usual: _Handler) -> _Handler:
    """Answer refused bodies of submissions by a problem, anything else as the app does anyway."""

    async def answer(request: Request, error: RequestValidationError) -> Response:
        rejection = None
        if _submits(request.scope["endpoint"]):
            rejection = rejection_of(request_of(request.scope), error.errors())
        problem = None if rejection is None else problem_of(rejection)
        if problem is None:
            return await usual(request, error)
        return starlette.WholeResponse(problem)

    return answer


@cache
def _submits(endpoint: Callable[..., Any]) -> bool:
    """Tell whether a route has an `Accept` among its parameters."""
    hints = typing.get_type_hints(inspect.unwrap(endpoint), include_extras=True)
    return Accept in hints.values()
