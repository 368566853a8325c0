"""Reads the signature of a handler: its payload, job and dependencies, by their annotations."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from types import NoneType
from typing import Annotated, Any, Union, assert_never

from pydantic import JsonValue

from asyncjobs.errors import ConfigurationError

_ALLOWED = (
    "A handler takes a payload, a job (annotated with JobContext), both or neither, and any "
    "number of dependencies (Annotated[..., Depends(...)])."
)

# Annotations that carry no information.
_ANYTHING = (inspect.Parameter.empty, Any, object)

_NONE = (None, NoneType)

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class JobParameter:
    """Base class of `JobContext`, the type of a handler's job parameter."""


class Role(Enum):
    """What a parameter of a handler receives."""

    PAYLOAD = "payload"
    JOB = "job"
    DEPENDENCY = "dependency"


@dataclass(frozen=True)
class Taken:
    """One parameter of a handler; for a dependency, `marker` is what `Depends` returned."""

    name: str
    role: Role
    annotation: Any
    by_name: bool
    marker: Any = None


@dataclass(frozen=True)
class Signature:
    """The parameters and the result of a handler; `payload` is None if it takes no payload.

    `generator` is whether it yields its output, `output` the type of what it yields, None if that
    is not known.
    """

    payload: Any
    result: Any
    asynchronous: bool
    taken: tuple[Taken, ...]
    generator: bool = False
    output: Any = None

    @cached_property
    def dependencies(self) -> tuple[Taken, ...]:
        """The parameters that are dependencies."""
        return tuple(one for one in self.taken if one.role is Role.DEPENDENCY)

    @property
    def payload_name(self) -> str | None:
        """The name of the payload's parameter; None if there is none."""
        return next((one.name for one in self.taken if one.role is Role.PAYLOAD), None)

    def arguments(
        self, payload: Any, job: Any, dependencies: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments for a call of the function."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for one in self.taken:
            value: Any
            match one.role:
                case Role.PAYLOAD:
                    value = payload
                case Role.JOB:
                    value = job
                case Role.DEPENDENCY:
                    value = dependencies[one.name]
                case _:
                    assert_never(one.role)
            if one.by_name:
                kwargs[one.name] = value
            else:
                args.append(value)
        return args, kwargs


def read_signature(function: Callable[..., Any]) -> Signature:
    """Return a function's signature as a handler; raise `ConfigurationError` if it cannot be one.

    A payload or a result without an annotation may be any JSON value.
    """
    name = name_of(function)
    hints = _hints_of(function, name)
    fixed = _fixed_by_partial(function)
    parameters = [
        one.replace(annotation=hints.get(one.name, one.empty))
        for one in inspect.signature(function).parameters.values()
        if one.name not in fixed
    ]
    for one in parameters:
        if one.kind in _VARIADIC:
            raise _refused(name, repr(str(one).partition(":")[0]), "takes any number of arguments")
    taken = _roles(name, parameters)
    payload = next((one.annotation for one in taken if one.role is Role.PAYLOAD), None)
    plain = annotated(function)
    yields = inspect.isasyncgenfunction(plain)
    generator = yields or inspect.isgeneratorfunction(plain)
    result, output = hints.get("return", JsonValue), None
    if generator:
        _check_yields(name, result if "return" in hints else Any, asynchronous=yields)
        output, result = _yielded(result)
    return Signature(
        payload=JsonValue if payload is inspect.Parameter.empty else payload,
        result=result,
        asynchronous=yields or inspect.iscoroutinefunction(plain),
        taken=taken,
        generator=generator,
        output=output,
    )


def _check_yields(name: str, annotation: Any, *, asynchronous: bool) -> None:
    """Raise `ConfigurationError` unless a generator function may have this return annotation."""
    annotation = _without_metadata(annotation)
    origin = typing.get_origin(annotation) or annotation
    made = types.AsyncGeneratorType if asynchronous else types.GeneratorType
    try:
        fits = annotation in _ANYTHING or issubclass(made, origin)
    except TypeError:  # no class, or a protocol that cannot be checked
        fits = getattr(origin, "_is_protocol", False)
    if not fits:
        kind = "AsyncIterator" if asynchronous else "Iterator"
        written = getattr(annotation, "__name__", None) if origin is annotation else None
        raise ConfigurationError(
            f"Handler {name} yields its output, so it returns an iterator, not "
            f"{written or annotation}: annotate it with `-> {kind}[...]`, of the type of its items."
        )


def _without_metadata(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _yielded(annotation: Any) -> tuple[Any, Any]:
    """Return the types of what a generator yields and returns; None and any JSON if unknown."""
    annotation = _without_metadata(annotation)
    arguments = typing.get_args(annotation)
    output = arguments[0] if arguments and arguments[0] not in _ANYTHING else None
    # Only `Generator` names the type of the returned value.
    named = typing.get_origin(annotation) is Generator and len(arguments) == 3
    result = arguments[2] if named and arguments[2] not in _NONE else JsonValue
    return output, result


def annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that has the annotations of a partial or of a callable object."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function for error messages."""
    return getattr(function, "__qualname__", repr(function))


def is_job(annotation: Any) -> bool:
    """Return whether an annotation is the job: `JobContext`, `JobContext[X]`, or optional."""
    origin = typing.get_origin(annotation)
    if origin is Annotated or origin in {Union, types.UnionType}:
        return any(is_job(one) for one in typing.get_args(annotation))
    found = origin or annotation
    return isinstance(found, type) and issubclass(found, JobParameter)


def dependency_marker(annotation: Any, default: Any) -> Any:
    """Return the `Depends` marker of fast-depends on a parameter; None if it has none.

    Markers are recognised by name: neither library need be installed. Raises `ValueError` for
    FastAPI's marker.
    """
    metadata = getattr(annotation, "__metadata__", ())
    for one in (*metadata, default):
        for kind in type(one).__mro__:
            if (kind.__module__, kind.__name__) == ("fastapi.params", "Depends"):
                raise ValueError(
                    "has FastAPI's Depends, which needs a request: declare it with "
                    "`from fast_depends import Depends` (pip install 'asyncjobs-http[depends]')"
                )
            if (kind.__module__, kind.__name__) == ("fast_depends.dependencies.model", "Dependant"):
                return one
    return None


def _roles(name: str, parameters: list[inspect.Parameter]) -> tuple[Taken, ...]:
    markers: dict[str, Any] = {}
    for one in parameters:
        try:
            markers[one.name] = dependency_marker(one.annotation, one.default)
        except ValueError as error:
            raise ConfigurationError(
                f"Handler {name}: its parameter {one.name!r} {error}."
            ) from None
    plain = [one for one in parameters if markers[one.name] is None]
    job = _job_among(name, plain)
    payloads = [one for one in plain if one is not job]
    for one in payloads[1:]:
        kept = payloads[0].name
        raise _refused(name, repr(one.name), f"is not the job, and {kept!r} is already the payload")
    for one in payloads:
        if one.kind is one.KEYWORD_ONLY:
            raise _refused(name, repr(one.name), "is the payload, so it must not be keyword-only")
    roles = {one.name: Role.PAYLOAD for one in payloads}
    if job is not None:
        roles[job.name] = Role.JOB
    return tuple(
        Taken(
            name=one.name,
            role=roles.get(one.name, Role.DEPENDENCY),
            annotation=one.annotation,
            by_name=one.kind is one.KEYWORD_ONLY,
            marker=markers[one.name],
        )
        for one in parameters
    )


def _job_among(name: str, plain: list[inspect.Parameter]) -> inspect.Parameter | None:
    """Return the parameter that receives the job: by its annotation, else by name or position."""
    jobs = [one for one in plain if is_job(one.annotation)]
    if len(jobs) > 1:
        raise _refused(name, repr(jobs[1].name), f"is a second job besides {jobs[0].name!r}")
    if jobs:
        return jobs[0]
    unsaid = [one for one in plain if one.annotation in _ANYTHING]
    named = [one for one in unsaid if one.name == "job"]
    if named:
        return named[0]
    return plain[1] if len(plain) == 2 and plain[1] in unsaid else None


def _hints_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated(function), include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"Handler {name}: {error}. Its annotations must be importable names of its module."
        ) from error


def _fixed_by_partial(function: Callable[..., Any]) -> set[str]:
    fixed: set[str] = set()
    while isinstance(function, partial):
        fixed.update(function.keywords)
        function = function.func
    return fixed


def _refused(name: str, parameter: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"Handler {name}: its parameter {parameter} {reason}. {_ALLOWED}")
