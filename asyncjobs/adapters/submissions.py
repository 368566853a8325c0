"""FastAPI routes that submit jobs: their OpenAPI description and the answers to refused bodies.

FastAPI makes a component of an answer's `model` and chooses its name: two classes with the same
name get longer ones. But it references the model only under the media type of the route, and
supports no other for problems. `with_models` makes it write its reference in place of ours.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

from fastapi import FastAPI, Request, params
from fastapi.dependencies.models import Dependant
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from asyncjobs.adapters.asgi import request_of
from asyncjobs.adapters.starlette import WholeResponse
from asyncjobs.errors import MalformedBody, RequestRejected
from asyncjobs.http.openapi import (
    MODELS,
    Schema,
    model_of,
    submission_body,
    submission_parameters,
    submission_responses,
)
from asyncjobs.http.problems import problem_of
from asyncjobs.http.requests import is_json, rejection_of

_AnyHandler = Callable[[Request, Any], Any]

_METHODS_WITH_BODY = {"POST", "PUT", "PATCH"}


@dataclass(frozen=True)
class Description:
    """The OpenAPI description of a mount whose `Accept` is used."""

    prefix: str | None = None
    callbacks: bool = False


# The dependencies that return an Acceptor. If one has no description, its route's class has it.
acceptors: WeakKeyDictionary[Callable[..., Any], Description | None] = WeakKeyDictionary()


class SubmissionRoute(APIRoute):
    """A route class for routers whose routes submit jobs: `APIRouter(route_class=SubmissionRoute)`.

    OpenAPI describes the inputs and answers of `accept`, and invalid bodies are answered by problem
    documents. Routes without an `Accept` are unchanged.
    """

    _described: ClassVar[Description] = Description()

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        acceptor = _acceptor_in(self.dependant)
        if acceptor is not None:
            # Called again, since FastAPI reads the answers only here.
            described = self._description(acceptors[acceptor] or self._described)
            super().__init__(path, endpoint, **{**options, **described})

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Answer refused bodies of submissions by problem documents."""
        usual = super().get_route_handler()
        if _acceptor_in(self.dependant) is None:
            return usual

        async def handler(request: Request) -> Response:
            try:
                response: Response = await usual(request)
            except (RequestValidationError, HTTPException) as error:
                problem = await _problem_for_body(request, error)
                if problem is None:
                    raise
                return problem
            return response

        return handler

    def _description(self, described: Description) -> dict[str, Any]:
        answers = submission_responses(described.prefix)
        if _has_parameters(self.dependant):
            # FastAPI describes its own refusals only if the route describes no 422.
            answers[422]["content"]["application/json"] = {"schema": {"type": "object"}}
        extra = self.openapi_extra or {}
        known = extra.get("parameters", [])
        read = submission_parameters(callbacks=described.callbacks)
        added = [one for one in read if one not in known]
        body = {"requestBody": submission_body()} if self._leaves_body() else {}
        return {
            "responses": {**with_models(answers), **self.responses},
            "openapi_extra": {**body, **extra, "parameters": [*known, *added]},
        }

    def _leaves_body(self) -> bool:
        """Return whether no parameter of the route takes the body."""
        return self.body_field is None and bool(_METHODS_WITH_BODY & (self.methods or set()))


def submission_route(described: Description) -> type[SubmissionRoute]:
    """Return the route class of an app with a mount."""

    class Described(SubmissionRoute):
        _described = described

    return Described


def with_models(answers: Mapping[int | str, Schema]) -> dict[int | str, Schema]:
    """Return answers in FastAPI's form, with a `model` for each reference to a document."""
    return {status: _with_model(answer) for status, answer in answers.items()}


def _with_model(answer: Schema) -> Schema:
    content = answer.get("content", {})
    found = next(_references(content, ()), None)
    if found is None:
        return answer
    place, name = found
    return {**answer, "model": MODELS[name], "content": _Content(content, place)}


def _references(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the target of each reference to a document."""
    if not isinstance(value, dict):
        return
    schema = cast("Schema", value)
    name = model_of(schema)
    if name is not None:
        yield place, name
    for key, inner in schema.items():
        yield from _references(inner, (*place, key))


class _Content(dict[str, Any]):
    """The content of an answer; additions go to a place within it.

    FastAPI adds by `content.setdefault(media_type, {}).setdefault("schema", {})`.
    """

    def __init__(self, content: Mapping[str, Any], place: tuple[str, ...]) -> None:
        super().__init__(content)
        self._place = place

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the parent of the schema at the place, for any media type."""
        del key, default
        schema: Any = self
        for step in self._place:
            schema = schema[step]
        return {"schema": schema}


def _has_parameters(dependant: Dependant) -> bool:
    own = dependant.path_params or dependant.query_params
    own = own or dependant.header_params or dependant.cookie_params
    return bool(own) or any(_has_parameters(one) for one in dependant.dependencies)


def _acceptor_in(dependant: Dependant) -> Callable[..., Any] | None:
    """Return the dependency of an `Accept` among those of a route and of its dependencies."""
    for one in dependant.dependencies:
        if one.call is not None and one.call in acceptors:
            return one.call
        found = _acceptor_in(one)
        if found is not None:
            return found
    return None


def answer_refused_bodies(app: FastAPI) -> None:
    """Answer refused bodies of submissions by problems; leave other errors to the app."""
    for kind, usual in (
        (RequestValidationError, request_validation_exception_handler),
        (HTTPException, http_exception_handler),
    ):
        app.add_exception_handler(kind, _problems_first(app.exception_handlers.get(kind, usual)))


def _problems_first(usual: _AnyHandler) -> Callable[[Request, Any], Awaitable[Response]]:
    async def answer(request: Request, error: Any) -> Response:
        dependant = getattr(request.scope.get("route"), "dependant", None)
        if dependant is not None and _acceptor_in(dependant) is not None:
            problem = await _problem_for_body(request, error)
            if problem is not None:
                return problem
        if inspect.iscoroutinefunction(usual):
            response: Response = await usual(request, error)
        else:
            response = await run_in_threadpool(usual, request, error)
        return response

    return answer


async def _problem_for_body(
    request: Request, error: RequestValidationError | HTTPException
) -> Response | None:
    """Return the problem with a submission's JSON body; None if the error has another cause."""
    field = getattr(request.scope.get("route"), "body_field", None)
    if field is None or isinstance(field.field_info, params.Form):
        return None
    rejected: RequestRejected | None = None
    if isinstance(error, RequestValidationError):
        rejected = rejection_of(request_of(request.scope), error.errors())
    elif error.status_code == HTTPStatus.BAD_REQUEST and is_json(
        request.headers.get("content-type", "")
    ):
        # FastAPI answers some bodies that are not JSON by its own 400.
        rejected = await _malformed(request)
    problem = None if rejected is None else problem_of(rejected)
    return None if problem is None else WholeResponse(problem)


async def _malformed(request: Request) -> MalformedBody | None:
    try:
        body = await request.body()
    except (ClientDisconnect, RuntimeError):  # the latter for a body that was not cached
        return None
    try:
        json.loads(body)
    except UnicodeDecodeError:
        return MalformedBody("it is not UTF-8")
    except RecursionError:
        return MalformedBody("it is nested too deeply")
    except ValueError as error:
        return MalformedBody(str(error))
    return None
