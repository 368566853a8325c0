"""How an application registers its job types: the decorator, and the call for outside work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar, overload

from pydantic import ValidationError

from asyncjobs.context import JobContext
from asyncjobs.errors import ConfigurationError
from asyncjobs.model import Policy, Retry
from asyncjobs.registry import Handler, JobType, Registry

P = TypeVar("P")
R = TypeVar("R")

#: A duration: seconds, or a timedelta.
Seconds = float | timedelta


class Unset(Enum):
    """Stands for "not given" where None has a meaning of its own."""

    UNSET = "unset"


class Decorator(Protocol):
    """Turns a function into a registered handler."""

    @overload
    def __call__(
        self, function: Callable[[P, JobContext], Coroutine[Any, Any, R]], /
    ) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[[P, JobContext], R], /) -> Handler[P, R]: ...


class Registrar:
    """Registers job types under one policy for those that set no limits of their own."""

    def __init__(self, policy: Policy) -> None:
        self.registry = Registry()
        self.policy = policy

    def handler(
        self,
        name: str,
        *,
        timeout: Seconds | Unset | None = Unset.UNSET,
        estimate: Seconds | None = None,
        inline: Seconds | None = None,
        retry: Retry | None = None,
        policy: Policy | None = None,
    ) -> Decorator:
        """Register the decorated function `(payload, job) -> result` as the handler of a job type.

        `timeout` bounds one attempt (None: only the deadline does), `estimate` is the duration that
        clients are told to expect. A submission over HTTP waits for `inline` and answers 200 if the
        job has ended by then: 0.2, say, for work that usually ends at once. Payload and result
        have the types of the annotations. An `async def` runs on the event loop, a `def` in a
        thread. Raises `ConfigurationError` for limits that make no sense, a name given twice, and
        annotations that are not JSON.
        """
        chosen = self._limits(policy, timeout, retry=retry, inline=inline)

        def register(function: Callable[..., Any]) -> Handler[Any, Any]:
            made = Handler[Any, Any](name, function, policy=chosen, estimate=duration(estimate))
            self.registry.add(made)
            return made

        return register

    def external(
        self,
        name: str,
        *,
        payload: type[P],
        result: type[R],
        timeout: Seconds | Unset | None = Unset.UNSET,
        estimate: Seconds | None = None,
        policy: Policy | None = None,
    ) -> JobType[P, R]:
        """Register a job type whose work is done elsewhere and reported by job id.

        The reports are `update_progress`, `complete`, `fail` and `stop`; the first one starts the
        job. Timeout and deadline are kept for it as for any other. Raises as `handler`.
        """
        chosen = self._limits(policy, timeout)
        made = JobType[P, R](
            name, payload=payload, result=result, policy=chosen, estimate=duration(estimate)
        )
        self.registry.add(made)
        return made

    def _limits(
        self, policy: Policy | None, timeout: Seconds | Unset | None, **others: object
    ) -> Policy:
        fields = dict(policy or self.policy)
        if not isinstance(timeout, Unset):
            fields["timeout"] = timeout
        fields.update((name, value) for name, value in others.items() if value is not None)
        try:
            return Policy(**fields)
        except ValidationError as error:
            raise ConfigurationError(f"The limits of a job type make no sense: {error}") from error


@overload
def duration(value: Seconds) -> timedelta: ...
@overload
def duration(value: None) -> None: ...
def duration(value: Seconds | None) -> timedelta | None:
    """Read seconds as a duration."""
    if value is None or isinstance(value, timedelta):
        return value
    return timedelta(seconds=value)
