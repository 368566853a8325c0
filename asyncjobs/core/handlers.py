"""Job types: a name, typed payload and result, limits, and usually a handler function."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from types import NoneType
from typing import Any, Generic, Literal, TypeVar, assert_never, cast

from pydantic import JsonValue, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from asyncjobs.core.job import RESERVED_PREFIX, Job, JobStatus, Policy
from asyncjobs.core.output import ItemType
from asyncjobs.core.signatures import read_signature
from asyncjobs.errors import (
    ConfigurationError,
    FieldIssue,
    InvalidPayload,
    InvalidResult,
    JobUnsuccessful,
    MalformedBody,
    PayloadTooLarge,
    UnknownType,
)
from asyncjobs.settings import Seconds, duration

P = TypeVar("P")
R = TypeVar("R")

# Python's own default limit (`sys.int_info.default_max_str_digits`).
_MAX_INTEGER_DIGITS = 4300
_LONG_INTEGER = re.compile(rb"[0-9]{%d}" % (_MAX_INTEGER_DIGITS + 1))

#: Where a handler runs instead of the default for its kind of function.
RunIn = Literal["process"]


@dataclass(frozen=True)
class ImportPath:
    """Where another process finds a function: the module to import, and the name in it."""

    module: str
    name: str

    def find(self) -> Callable[..., Any]:
        """Import and return the function; raise `ConfigurationError` if it does not exist."""
        try:
            found: Any = import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"The process of a job cannot import {self.module}.{self.name}: {error}"
            ) from error
        function: Callable[..., Any] = getattr(found, "function", found)  # of a `Handler`
        return function


def import_path_of(name: str, function: Callable[..., Any]) -> ImportPath:
    """Return the import path of a function; raise `ConfigurationError` if it has none."""
    qualified = getattr(function, "__qualname__", f"a {type(function).__name__}")
    # No <locals>, <lambda>, partial or callable object; and no method, whose object stays here.
    if "<" in qualified or not inspect.isfunction(function):
        raise ConfigurationError(
            f"Handler {name!r} is {qualified}: to run in its own process, "
            "it must be a module-level function that can be imported by its name."
        )
    return ImportPath(function.__module__, qualified)


def merged_policy(base: Policy, given: Policy | None, **limits: Any) -> Policy:
    """Return the limits of one handler: its own, then those of its `policy`, then the app's.

    A field counts as given if the handler named it, even with the default value. Raises
    `ConfigurationError` for limits out of range.
    """
    fields: dict[str, Any] = dict(base)
    if given is not None:
        fields.update((name, getattr(given, name)) for name in given.model_fields_set)
    fields.update(limits)
    try:
        return Policy(**fields)
    except ValidationError as error:
        raise ConfigurationError(f"The limits of a job type are not valid: {error}") from error


@dataclass(frozen=True)
class Limits:
    """The limits in a handler's declaration, to be merged with those of a queue."""

    policy: Policy | None = None
    named: Mapping[str, object] = field(default_factory=dict[str, object])

    def merged(self, base: Policy) -> Policy:
        """Return all limits of the handler in a queue with this policy; see `merged_policy`."""
        return merged_policy(base, self.policy, **self.named)


#: Maps the function of a dependency to the function to call instead.
Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class JobType(Generic[P, R]):
    """A type of job whose work is reported from outside our runner, by job id."""

    #: Names under which earlier releases stored jobs of this type.
    aliases: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        *,
        payload: Any = JsonValue,
        result: Any = JsonValue,
        policy: Policy,
        estimate: timedelta | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.estimate = estimate
        #: Whether callers must pass a payload; only None may be left out.
        self.takes_payload = payload is not None and payload is not NoneType
        self._payload: TypeAdapter[P] = _adapter(name, payload)
        self._result: TypeAdapter[R] = _adapter(name, result)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def dump_payload(self, payload: P) -> bytes:
        """Validate a payload and return it as JSON; raise `InvalidPayload` or `PayloadTooLarge`.

        Fields are written under their own names, not under the aliases that clients use. The text
        is read back at once: a payload that this changes must not become a job.
        """
        try:
            checked = self._payload.validate_python(payload)
            text = self._payload.dump_json(checked, by_alias=False, round_trip=True)
            read = self.load_payload(text)
        except ValidationError as error:
            raise InvalidPayload(_issues(error)) from error
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidPayload([FieldIssue("", str(error))]) from error
        # Equal values need no further check; values that differ may still dump to the same data.
        dump = self._payload.dump_python
        if read != checked and dump(read) != dump(checked):
            raise InvalidPayload([FieldIssue("", "storing it as JSON would change it")])
        limit = self.policy.max_payload_bytes
        if len(text) > limit:
            raise PayloadTooLarge(len(text), limit)
        return text

    def fingerprint(self, payload: P, *, ordered: bool = True) -> str:
        """Return a hash of the payload as it was sent, without the type's defaults.

        If not `ordered`, the order of arrays makes no difference: a set is written in any order.
        """
        sent = self._payload.dump_python(
            self._payload.validate_python(payload), mode="json", exclude_unset=True
        )
        canonical = _canonical(sent if ordered else _sorted(sent))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def load_payload(self, text: bytes) -> P:
        """Read a stored payload; raise `InvalidPayload` if it no longer fits the type."""
        try:
            return self._payload.validate_json(text, by_name=True, by_alias=True)
        except ValidationError as error:
            raise InvalidPayload(_issues(error)) from error

    def read_payload(self, body: bytes) -> P:
        """Read a payload that a client sent; raise `MalformedBody` or `InvalidPayload`."""
        try:
            return self._payload.validate_json(body)
        except ValidationError as error:
            [first, *_] = error.errors()
            if first["type"] == "json_invalid":
                raise MalformedBody(str(first.get("ctx", {}).get("error"))) from error
            raise InvalidPayload(_issues(error)) from error

    def dump_result(self, result: R) -> bytes:
        """Validate a result and return it as JSON; raise `InvalidResult`."""
        try:
            text = self._result.dump_json(self._result.validate_python(result), by_alias=True)
        except ValidationError as error:
            raise InvalidResult(self.name, "; ".join(map(str, _issues(error)))) from error
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidResult(self.name, str(error)) from error
        limit = self.policy.max_result_bytes
        if len(text) > limit:
            raise InvalidResult(self.name, f"it has {len(text)} bytes, at most {limit} allowed")
        self._check_readable(text)
        return text

    def _check_readable(self, text: bytes) -> None:
        """Raise `InvalidResult` for a result that can be written but not read again.

        NaN and infinity are written as null (RFC 8259 section 6 has no such numbers), which the
        annotation may not allow. Python cannot read integers with more digits than its limit.
        """
        if len(text) > _MAX_INTEGER_DIGITS and _LONG_INTEGER.search(text):
            try:
                json.loads(text)
            except ValueError as error:
                raise InvalidResult(self.name, f"it cannot be read back: {error}") from error
        if b"null" in text:
            try:
                self._result.validate_json(text)
            except ValidationError as error:
                issues = "; ".join(map(str, _issues(error)))
                reason = f"NaN and infinity become null in JSON, which is not valid: {issues}"
                raise InvalidResult(self.name, reason) from error

    def load_result(self, text: bytes) -> R:
        """Read a stored result as its type; raise `InvalidResult` if it no longer fits."""
        try:
            return self._result.validate_json(text)
        except ValidationError as error:
            raise InvalidResult(self.name, "; ".join(map(str, _issues(error)))) from error

    def result_of(self, job: Job) -> R:
        """Return a completed job's result as its type.

        Raises `JobUnsuccessful` if the job failed or was cancelled, `ValueError` if it has not
        ended or has another type, and `InvalidResult` if the stored result no longer fits the type.
        """
        if job.type != self.name and job.type not in self.aliases:
            raise ValueError(f"Job {job.id} is of type {job.type!r}, not {self.name!r}.")
        match job.status:
            case JobStatus.COMPLETED:
                return self.load_result(job.result_json or b"null")
            case JobStatus.FAILED | JobStatus.CANCELLED:
                raise JobUnsuccessful(job)
            case JobStatus.PENDING | JobStatus.PROCESSING:
                raise ValueError(f"Job {job.id} is {job.status}: it has no result yet.")
            case _:
                assert_never(job.status)


class Handler(JobType[P, R]):
    """A type of job that our runner executes. Calling it calls the function itself.

    Without a queue it is a declaration; `bound` returns the handler for one queue.
    """

    def __init__(  # noqa: PLR0913  # one parameter per option
        self,
        name: str,
        function: Callable[..., Any],
        *,
        policy: Policy,
        estimate: timedelta | None = None,
        run_in: RunIn | None = None,
        aliases: Sequence[str] = (),
        limits: Limits | None = None,
        output: Any = None,
    ) -> None:
        signature = read_signature(function)
        super().__init__(
            name,
            payload=signature.payload,
            result=signature.result,
            policy=policy,
            estimate=estimate,
        )
        self.function = function
        self.signature = signature
        self.asynchronous = signature.asynchronous
        #: The type of the items of its unnamed stream; None if they may be anything.
        self.items = item_type(name, signature.output, output)
        self.import_path = None if run_in is None else import_path_of(name, function)
        self.aliases = checked_aliases(name, aliases)
        #: The declaration that this handler was made from; None if it is one itself.
        self.declaration: Handler[P, R] | None = None
        self.overrides: Overrides = {}
        self._limits = limits or Limits()
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def call(self, payload: P, job: Any, dependencies: Mapping[str, Any] | None = None) -> Any:
        """Call the function with only the arguments that it takes.

        What a generator yields is emitted by `job`.
        """
        args, kwargs = self.signature.arguments(payload, job, dependencies or {})
        value = self.function(*args, **kwargs)
        if not self.signature.generator:
            return value
        return _emit_each(value, job) if self.asynchronous else _emit_all(value, job)

    def bound(self, base: Policy, overrides: Overrides) -> Handler[P, R]:
        """Return the handler for a queue with this policy and these dependency overrides."""
        made = copy(self)
        made.policy = self._limits.merged(base)
        made.overrides = overrides
        made.declaration = self
        return made


async def _emit_each(items: AsyncGenerator[Any, None], job: Any) -> None:
    try:
        async for item in items:
            await job.emit(item)
    except GeneratorExit:  # ended by force: nothing can be awaited
        raise
    except BaseException:
        await items.aclose()
        raise


def _emit_all(items: Generator[Any, None, Any], job: Any) -> Any:
    with closing(items):
        while True:
            try:
                item = next(items)
            except StopIteration as end:
                return end.value
            job.emit(item)


class Registry:
    """The job types of one queue, by name."""

    def __init__(self) -> None:
        self._types: dict[str, JobType[Any, Any]] = {}
        self._aliases: dict[str, JobType[Any, Any]] = {}
        #: The queues of all handlers, in the order of their first use.
        self.queues: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[JobType[Any, Any]]:
        return iter(self._types.values())

    def __contains__(self, kind: JobType[Any, Any] | str) -> bool:
        if isinstance(kind, str):
            return kind in self._types or kind in self._aliases
        return _is_made_of(self._types.get(kind.name), kind)

    def add(self, kind: JobType[Any, Any]) -> None:
        """Register a type under its name and aliases; each name can be used only once."""
        if kind.name in self._types:
            raise ConfigurationError(
                f"Job type {kind.name!r} is registered twice, or its module is loaded twice: "
                "once as __main__ and once under its name."
            )
        for name in (kind.name, *kind.aliases):
            if name.startswith(RESERVED_PREFIX):
                raise ConfigurationError(f"The name {name!r} is reserved: choose another one.")
            known = self._types.get(name) or self._aliases.get(name)
            if known is not None:
                raise ConfigurationError(
                    f"Job type {kind.name!r} cannot have the name {name!r}: "
                    f"job type {known.name!r} already has it."
                )
        self._types[kind.name] = kind
        self._aliases.update(dict.fromkeys(kind.aliases, kind))
        if isinstance(kind, Handler) and kind.policy.queue not in self.queues:
            self.queues = (*self.queues, kind.policy.queue)

    def find(self, kind: JobType[P, R] | str) -> JobType[P, R]:
        """Return the type itself, the one made from this declaration, or the one with that name.

        Raises `UnknownType` for a name that is not registered, and `ConfigurationError` for a
        function that is not a handler, belongs to another queue, or is not included here.
        """
        if isinstance(kind, JobType) and self._types.get(kind.name) is kind:
            return kind
        _check_handler(kind)
        name = kind if isinstance(kind, str) else kind.name
        found = self._types.get(name) or self._aliases.get(name)
        if isinstance(kind, str):
            if found is None:
                raise UnknownType(name, self._types)
        elif not _is_made_of(found, kind):
            if isinstance(kind, Handler) and kind.declaration is None:
                raise ConfigurationError(
                    f"Handler {name!r} is not included in this AsyncJobs: call jobs.include(...) "
                    "with it, or with its module."
                )
            if found is None:
                raise UnknownType(name, self._types)
            raise ConfigurationError(
                f"This handler {name!r} belongs to another AsyncJobs, or its module was loaded "
                f"twice; the one registered here is another {name!r}."
            )
        return cast("JobType[P, R]", found)

    def handler(self, name: str) -> Handler[Any, Any] | None:
        """Return the handler with that name or alias; None if this process has none."""
        kind = self._types.get(name) or self._aliases.get(name)
        return kind if isinstance(kind, Handler) else None

    def check_queues(self, queues: Iterable[str] | None) -> None:
        """Raise `ConfigurationError` for a queue without handlers, or if there are no handlers."""
        known = self.queues
        if not known:
            raise ConfigurationError("This queue has no handlers: import their modules.")
        for queue in queues or ():
            if queue not in known:
                listed = ", ".join(known)
                raise ConfigurationError(f"No handler uses the queue {queue!r} (known: {listed}).")


def check_name(name: object, decorator: str) -> None:
    """Raise `ConfigurationError` if a decorator (`@jobs.handler`) has no parentheses."""
    if not isinstance(name, str):
        called = getattr(name, "__name__", "export")
        raise ConfigurationError(
            f'{decorator} needs the name of the job type: write {decorator}("{called}").'
        )


def checked_aliases(name: str, aliases: Sequence[str]) -> tuple[str, ...]:
    """Return a handler's former names; raise `ConfigurationError` if they are not valid."""
    given: object = aliases  # by any caller
    if isinstance(given, str) or not all(isinstance(one, str) for one in list[object](aliases)):
        raise ConfigurationError(
            f'The aliases of handler {name!r} must be names, as in aliases=("old_name",), '
            f"got {aliases!r}."
        )
    if name in aliases or len(set(aliases)) < len(aliases):
        raise ConfigurationError(
            f"The aliases of handler {name!r} must differ from its name and from each other, "
            f"got {aliases!r}."
        )
    return tuple(aliases)


def check_run_in(name: str, run_in: object) -> None:
    """Raise `ConfigurationError` if `run_in` is not valid."""
    if run_in not in (None, "process"):
        raise ConfigurationError(
            f'Handler {name!r}: run_in must be "process" or omitted, got {run_in!r}. '
            "Without it, a `def` runs in a thread."
        )


def item_type(name: str, yielded: Any, declared: Any) -> ItemType | None:
    """Return the type of the items that a handler yields or declares; None if there is none."""
    if yielded is not None and declared is not None:
        raise ConfigurationError(
            f"Handler {name!r} yields its output, whose type is that of its annotation: "
            "leave out `output`."
        )
    annotation = declared if yielded is None else yielded
    return None if annotation is None else ItemType(annotation)


def checked_estimate(name: str, estimate: Seconds | None) -> timedelta | None:
    """Return an estimate as a timedelta; raise `ConfigurationError` if it is not a duration."""
    try:
        expected = duration(estimate)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Invalid estimate of job type {name!r}: {error}") from error
    if expected is not None and expected < timedelta(0):
        raise ConfigurationError(f"The estimate of job type {name!r} is negative: {expected}.")
    return expected


def _is_made_of(found: JobType[Any, Any] | None, kind: JobType[Any, Any]) -> bool:
    """Return whether a registered type is this one, or was made from this declaration."""
    if found is None or found is kind:
        return found is kind
    return isinstance(found, Handler) and found.declaration is kind


def _check_handler(kind: object) -> None:
    if not isinstance(kind, (str, JobType)):
        described = getattr(kind, "__qualname__", repr(kind))
        raise ConfigurationError(
            f"{described} is not a handler: decorate it with @jobs.handler(name)."
        )


def _adapter(name: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        raise ConfigurationError(
            f"Job type {name!r}: {annotation!r} cannot be written as JSON: {error.message}"
        ) from error


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sorted(value: Any) -> Any:
    """Return a JSON value with all of its arrays in one order."""
    if isinstance(value, dict):
        return {name: _sorted(one) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return sorted(map(_sorted, cast("list[object]", value)), key=_canonical)
    return value


def _issues(error: ValidationError) -> list[FieldIssue]:
    return [FieldIssue.at(detail["loc"], detail["msg"]) for detail in error.errors()]
