"""How an application registers its job types: the decorator, and the call for outside work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

from pydantic import ValidationError

from asyncjobs.context import JobContext
from asyncjobs.errors import ConfigurationError
from asyncjobs.hooks import Hook, Hooks
from asyncjobs.model import Policy, Retry
from asyncjobs.registry import Handler, JobType, Registry, RunIn
from asyncjobs.transitions import Event, EventName

P = TypeVar("P")
R = TypeVar("R")
H = TypeVar("H", bound=Hook)

#: A duration: seconds, or a timedelta.
Seconds = float | timedelta


class Limits(TypedDict, total=False):
    """The limits of a job type that are named most; those of `policy` count where one is not.

    `timeout` bounds one attempt (None: only the deadline does). A submission over HTTP waits for
    `inline` and answers 200 if the job has ended by then: 0.2, say, for work that usually ends at
    once.
    """

    timeout: Seconds | None
    inline: Seconds
    retry: Retry
    policy: Policy


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
        self.hooks = Hooks()
        self.policy = policy

    def handler(
        self,
        name: str,
        *,
        estimate: Seconds | None = None,
        run_in: RunIn | None = None,
        **limits: Unpack[Limits],
    ) -> Decorator:
        """Register the decorated function `(payload, job) -> result` as the handler of a job type.

        `estimate` is the duration that clients are told to expect; `Limits` says what `timeout`,
        `inline`, `retry` and `policy` do. Payload and result have the types of the annotations.

        An `async def` runs on the event loop, a `def` in a thread, and either with
        `run_in="process"` in a process of its own, which is killed where the handler must stop. Its
        module must be importable there, and the function be found in it by its name.

        Raises `ConfigurationError` for limits that make no sense, a name given twice, annotations
        that are not JSON, and a function that another process could not find.
        """
        chosen = self._limits(limits)

        def register(function: Callable[..., Any]) -> Handler[Any, Any]:
            expected = duration(estimate)
            made = Handler[Any, Any](
                name, function, policy=chosen, estimate=expected, run_in=run_in
            )
            self.registry.add(made)
            return made

        return register

    def external(
        self,
        name: str,
        *,
        payload: type[P],
        result: type[R],
        estimate: Seconds | None = None,
        **limits: Unpack[Limits],
    ) -> JobType[P, R]:
        """Register a job type whose work is done elsewhere and reported by job id.

        The reports are `update_progress`, `complete`, `fail` and `stop`; the first one starts the
        job. Timeout and deadline are kept for it as for any other. Raises as `handler`.
        """
        chosen = self._limits(limits)
        made = JobType[P, R](
            name, payload=payload, result=result, policy=chosen, estimate=duration(estimate)
        )
        self.registry.add(made)
        return made

    @overload
    def on(self, event: Event | EventName, hook: Hook, /) -> None: ...

    @overload
    def on(self, event: Event | EventName, /) -> Callable[[H], H]: ...

    def on(self, event: Event | EventName, hook: Hook | None = None, /) -> Callable[[H], H] | None:
        """Call a function with a `Transition` at each such event; or decorate one.

        It is called in the process that made the move, after the write, for one transition after
        the other and at most once for each. An `async def` runs on the event loop, a `def` in a
        thread. What it raises is logged. Raises `ConfigurationError` for an unknown event.
        """

        def add(hook: H) -> H:
            self.hooks.add(event, hook)
            return hook

        if hook is None:
            return add
        self.hooks.add(event, hook)
        return None

    def _limits(self, limits: Limits) -> Policy:
        unknown = ", ".join(sorted(limits.keys() - Limits.__annotations__))
        if unknown:
            raise TypeError(f"A job type has no option {unknown}.")
        fields: dict[str, Any] = dict(limits.get("policy", self.policy))
        fields.update((name, value) for name, value in limits.items() if name != "policy")
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
