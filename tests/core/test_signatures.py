"""A handler's annotations decide its arguments; other parameters are refused."""

from __future__ import annotations

import functools
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Annotated, Any, Generic, TypeVar

import pytest
from fast_depends import Depends
from fastapi import Depends as FastAPIDepends
from pydantic import JsonValue

from asyncjobs import JobContext
from asyncjobs.core.signatures import read_signature
from asyncjobs.errors import ConfigurationError

T = TypeVar("T")


class Resourceful(JobContext, Generic[T]):
    """A generic job class."""


def get_session() -> str:
    return "session"


Session = Annotated[str, Depends(get_session)]


def nothing() -> None: ...
def payload_alone(order: int) -> None: ...
def job_alone(job: JobContext) -> None: ...
def job_of_another_name(context: JobContext) -> None: ...
def both(order: int, job: JobContext) -> None: ...
def job_first(job: JobContext, order: int) -> None: ...
def job_of_a_class(order: int, job: Resourceful[str]) -> None: ...
def perhaps_a_job(order: int, job: JobContext | None) -> None: ...
def annotated_job(order: int, job: Annotated[JobContext, "the job"]) -> None: ...
def job_by_name(order: int, *, job: JobContext) -> None: ...
def job_alone_by_name(*, job: JobContext) -> None: ...
def payload_without_job(order: int, *, session: Session) -> None: ...
def all_of_them(order: int, job: JobContext, session: Session) -> None: ...
def dependency_alone(session: Session) -> None: ...
def dependency_first(session: Session, order: int, job: JobContext) -> None: ...
def dependency_by_default(order: int, session: str = Depends(get_session)) -> None: ...
def unannotated(order, job): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
def unannotated_job(job): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
def unannotated_payload(order): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
def any_job(order: int, context: Any) -> None: ...
def unannotated_job_first(job: Any, order: int) -> None: ...
def with_factor(factor: int, order: int, job: JobContext, *, unit: str) -> None: ...


def with_a_limit(order: int, limit: int, job: JobContext) -> None: ...


class Service:
    def method(self, order: int, job: JobContext) -> None: ...
    def __call__(self, job: JobContext, session: Session) -> None: ...


AnyFunction = Callable[..., Any]

TAKEN: list[tuple[AnyFunction, list[object], dict[str, object]]] = [
    (nothing, [], {}),
    (payload_alone, ["payload"], {}),
    (job_alone, ["job"], {}),
    (job_of_another_name, ["job"], {}),
    (both, ["payload", "job"], {}),
    (job_first, ["job", "payload"], {}),
    (job_of_a_class, ["payload", "job"], {}),
    (perhaps_a_job, ["payload", "job"], {}),
    (annotated_job, ["payload", "job"], {}),
    (job_by_name, ["payload"], {"job": "job"}),
    (job_alone_by_name, [], {"job": "job"}),
    (payload_without_job, ["payload"], {"session": "a session"}),
    (all_of_them, ["payload", "job", "a session"], {}),
    (dependency_alone, ["a session"], {}),
    (dependency_first, ["a session", "payload", "job"], {}),
    (dependency_by_default, ["payload", "a session"], {}),
    (unannotated, ["payload", "job"], {}),
    (unannotated_job, ["job"], {}),
    (unannotated_payload, ["payload"], {}),
    (any_job, ["payload", "job"], {}),
    (unannotated_job_first, ["job", "payload"], {}),
    (functools.partial(with_factor, 2, unit="kg"), ["payload", "job"], {}),
    (functools.partial(with_a_limit, limit=3), ["payload"], {"job": "job"}),
    (Service().method, ["payload", "job"], {}),
    (Service(), ["job", "a session"], {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), TAKEN)
def test_a_function_is_called_with_the_arguments_it_declares(
    function: Callable[..., Any], args: list[object], kwargs: dict[str, object]
) -> None:
    given = read_signature(function).arguments("payload", "job", {"session": "a session"})
    assert given == (args, kwargs)


PAYLOADS: list[tuple[AnyFunction, object]] = [
    (nothing, None),
    (job_alone, None),
    (dependency_alone, None),
    (payload_alone, int),
    (job_first, int),
    (unannotated, JsonValue),
]


@pytest.mark.parametrize(("function", "payload"), PAYLOADS)
def test_the_payload_type_is_the_annotation_or_none(
    function: Callable[..., Any], payload: object
) -> None:
    assert read_signature(function).payload == payload


def two_payloads(order: int, other: str) -> None: ...
def a_third_parameter(order: int, job: JobContext, limit: int) -> None: ...
def a_third_with_default(order: int, job: JobContext, limit: int = 3) -> None: ...
def two_jobs(job: JobContext, other: JobContext) -> None: ...
def many(*orders: int) -> None: ...
def named(**orders: int) -> None: ...
def payload_by_name(*, order: int) -> None: ...
def of_a_route(order: int, session: Annotated[str, FastAPIDepends(get_session)]) -> None: ...
def of_a_route_by_default(order: int, session: str = FastAPIDepends(get_session)) -> None: ...


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (two_payloads, "'other' is not the job, and 'order' is already the payload"),
        (a_third_parameter, "'limit' is not the job, and 'order' is already the payload"),
        (a_third_with_default, "'limit' is not the job, and 'order' is already the payload"),
        (two_jobs, "'other' is a second job besides 'job'"),
        (many, r"'\*orders' takes any number of arguments"),
        (named, r"'\*\*orders' takes any number of arguments"),
        (payload_by_name, "'order' is the payload, so it must not be keyword-only"),
        (of_a_route, "'session' has FastAPI's Depends.*from fast_depends import Depends"),
        (of_a_route_by_default, "'session' has FastAPI's Depends.*from fast_depends import"),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(
    function: Callable[..., Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        read_signature(function)
    assert function.__name__ in str(refused.value)


async def yields_text(_order: int) -> AsyncIterator[str]:
    yield "a"


async def yields_anything(_order: int):  # type: ignore[no-untyped-def]  # noqa: ANN201  # on purpose
    yield "a"


def yields_numbers() -> Iterator[int]:
    yield 1


def yields_and_returns() -> Generator[int, None, str]:
    yield 1
    return "a"


def yields_and_returns_none() -> Generator[Any, None, None]:
    yield 1


def yields_in_other_words() -> Annotated[typing.Iterable[int], "numbers"]:
    yield 1


async def yields_an_object(_order: int) -> object:  # as a type checker allows
    yield 1


async def yields_as_if_it_returned(_job: JobContext) -> int:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


async def yields_as_if_it_were_def() -> Iterator[int]:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


def yields_as_if_it_were_async() -> AsyncIterator[int]:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


def yields_nothing_at_all() -> None:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


def yields_perhaps() -> list[int] | None:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("function", "fix"),
    [
        (yields_as_if_it_returned, r"not int: annotate it with `-> AsyncIterator\[...\]`"),
        (yields_as_if_it_were_def, "`-> AsyncIterator"),
        (yields_as_if_it_were_async, "`-> Iterator"),
        (yields_nothing_at_all, "`-> Iterator"),
        (yields_perhaps, "`-> Iterator"),
    ],
)
def test_a_generator_that_is_annotated_as_another_function_is_refused(
    function: Callable[..., Any], fix: str
) -> None:
    with pytest.raises(ConfigurationError, match=fix) as refused:
        read_signature(function)
    assert function.__name__ in str(refused.value)


def returns_an_iterator() -> Iterator[int]:
    return iter([1])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (yields_text, (True, True, str, JsonValue)),
        (functools.partial(yields_text, _order=1), (True, True, str, JsonValue)),
        (yields_anything, (True, True, None, JsonValue)),
        (yields_numbers, (True, False, int, JsonValue)),
        (yields_in_other_words, (True, False, int, JsonValue)),
        (yields_an_object, (True, True, None, JsonValue)),
        (yields_and_returns, (True, False, int, str)),
        (yields_and_returns_none, (True, False, None, JsonValue)),
        (returns_an_iterator, (False, False, None, Iterator[int])),
    ],
)
def test_what_a_generator_yields_is_the_type_of_its_output(
    function: Callable[..., Any], expected: tuple[bool, bool, object, object]
) -> None:
    found = read_signature(function)
    assert (found.generator, found.asynchronous, found.output, found.result) == expected
