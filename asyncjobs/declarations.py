"""Declares and registers handlers: `@handler("export")`, `@jobs.handler(...)`, `jobs.include`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, Concatenate, Protocol, TypeVar, overload

from asyncjobs.core.handlers import (
    Handler,
    JobType,
    Limits,
    Registry,
    RunIn,
    check_name,
    check_run_in,
    checked_aliases,
    checked_estimate,
)
from asyncjobs.core.job import Policy, Retry
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.context import JobContext
from asyncjobs.execution.dependencies import dependencies_of
from asyncjobs.settings import Seconds

P = TypeVar("P")
R = TypeVar("R")
S = TypeVar("S")

AnyHandler = Handler[Any, Any]


class NotGiven:
    """Marks a limit that the handler leaves to the policies; None is a value of its own."""


NOT_GIVEN = NotGiven()


class Decorator(Protocol):
    """Turns a function into a handler; `...` stands for its dependencies.

    A shape comes before the more general ones that include it: overlaps are meant. What comes after
    a job counts as a dependency, since type checkers do not see how a parameter is annotated.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[P, JobContext[S]], Coroutine[Any, Any, R]], /
    ) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[[P, JobContext[S]], R], /) -> Handler[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], ...], Coroutine[Any, Any, R]], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], ...], R], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[P, ...], Coroutine[Any, Any, R]], /
    ) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[P, ...], R], /) -> Handler[P, R]: ...

    # Used for what takes nothing by position; pyright says otherwise.
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[..., Coroutine[Any, Any, R]], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[..., R], /
    ) -> Handler[None, R]: ...


def given_limits(policy: Policy | None, **limits: object) -> Limits:
    """Return the limits that were given."""
    named = {name: value for name, value in limits.items() if value is not NOT_GIVEN}
    return Limits(policy, named)


def handler(  # noqa: PLR0913  # each is one that a handler may want
    name: str,
    *,
    estimate: Seconds | None = None,
    run_in: RunIn | None = None,
    aliases: Sequence[str] = (),
    timeout: Seconds | NotGiven | None = NOT_GIVEN,
    inline_wait: Seconds | NotGiven = NOT_GIVEN,
    retry: Retry | NotGiven = NOT_GIVEN,
    policy: Policy | None = None,
) -> Decorator:
    """Declare the decorated function as a handler, without a queue.

    `AsyncJobs.include` registers it, on any number of queues, and merges its limits with the policy
    of each. From then on it can be enqueued there. The options are those of `AsyncJobs.handler`,
    and so are the errors.
    """
    check_name(name, "@handler")
    limits = given_limits(policy, timeout=timeout, inline_wait=inline_wait, retry=retry)
    return declaring(name, limits, estimate=estimate, run_in=run_in, aliases=aliases)


def declaring(
    name: str,
    limits: Limits,
    *,
    estimate: Seconds | None,
    run_in: RunIn | None,
    aliases: Sequence[str],
) -> Callable[[Callable[..., Any]], AnyHandler]:
    """Return a decorator that declares a handler; check all but the function at once."""
    chosen = limits.merged(Policy())
    expected = checked_estimate(name, estimate)
    check_run_in(name, run_in)
    names = checked_aliases(name, aliases)

    def declare(function: Callable[..., Any]) -> AnyHandler:
        return Handler[Any, Any](
            name,
            function,
            policy=chosen,
            estimate=expected,
            run_in=run_in,
            aliases=names,
            limits=limits,
        )

    return declare


#: What `include` takes.
Includable = ModuleType | AnyHandler | Iterable[AnyHandler]


def handlers_in(what: Iterable[Includable]) -> Iterator[AnyHandler]:
    """Yield the handlers of modules and of iterables; raise `ConfigurationError` for others."""
    for one in what:
        if isinstance(one, ModuleType):
            yield from _handlers_of_module(one)
        elif isinstance(one, Handler):
            yield _declared(one)
        else:
            yield from map(_declared, one if isinstance(one, Iterable) else [one])  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller


def _handlers_of_module(module: ModuleType) -> list[AnyHandler]:
    """Return the declared handlers among a module's names; those of a queue belong to it."""
    names: dict[str, object] = vars(module)
    found: list[AnyHandler] = [one for one in names.values() if isinstance(one, Handler)]
    declared = [one for one in found if one.declaration is None]
    if not declared:
        raise ConfigurationError(
            f"Module {module.__name__} has no handlers to include: declare them by "
            "`from asyncjobs import handler` and @handler(name)."
        )
    return declared


def _declared(one: object) -> AnyHandler:
    if not isinstance(one, Handler):
        described = getattr(one, "__qualname__", repr(one))
        raise ConfigurationError(
            f"{described} is not a handler: decorate it with @handler(name), "
            "or include the module that has handlers."
        )
    found: AnyHandler = one  # pyright: ignore[reportUnknownVariableType]  # any is one
    if found.declaration is not None:
        raise ConfigurationError(
            f"Handler {found.name!r} was registered by @jobs.handler on a queue: declare it by "
            "`from asyncjobs import handler` and @handler(name) to include it."
        )
    return found


class Registrar:
    """Registers the job types of one queue."""

    def __init__(self, policy: Policy) -> None:
        self.registry = Registry()
        self.policy = policy
        #: By a dependency's function, the one to call instead of it: for tests.
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}

    def handler(  # noqa: PLR0913  # each is one that a handler may want
        self,
        name: str,
        *,
        estimate: Seconds | None = None,
        run_in: RunIn | None = None,
        aliases: Sequence[str] = (),
        timeout: Seconds | NotGiven | None = NOT_GIVEN,
        inline_wait: Seconds | NotGiven = NOT_GIVEN,
        retry: Retry | NotGiven = NOT_GIVEN,
        policy: Policy | None = None,
    ) -> Decorator:
        """Register the decorated function as the handler of a job type.

        It takes a payload, a job (`JobContext`), both or neither, each told by its annotation, and
        dependencies (`Annotated[..., Depends(...)]`). Payload and result have the types of the
        annotations. `estimate` is the duration that clients are told to expect. `timeout` bounds
        one attempt (None: only the deadline does). A submission over HTTP waits for `inline_wait`
        and answers 200 if the job has ended by then: 0.2, say, for work that usually ends at once.
        `policy` has more limits; what neither names comes from the queue's own policy. `aliases`
        are names that the type had before: jobs that wait under them run with this handler.

        An `async def` runs on the event loop, a `def` in a thread, and either with
        `run_in="process"` in a child process, which is killed if the handler has to stop. Its
        module must be importable there, and the function be found in it by its name.

        Raises `ConfigurationError` for limits that make no sense, a name given twice, parameters
        or annotations that no handler has, a decorator without a name, and a function that a child
        process could not find.
        """
        check_name(name, "@jobs.handler")
        limits = given_limits(policy, timeout=timeout, inline_wait=inline_wait, retry=retry)
        declare = declaring(name, limits, estimate=estimate, run_in=run_in, aliases=aliases)
        limits.merged(self.policy)  # raises for those that make no sense

        def register(function: Callable[..., Any]) -> Handler[Any, Any]:
            return self._register(declare(function))

        return register

    def include(self, *what: Includable) -> None:
        """Register handlers that were declared by `@handler(...)`, or all that a module has.

        Their limits are merged with the policy of this queue. What is included already is left as
        it is. Raises `ConfigurationError` for a module without handlers, for handlers of another
        queue, and as `handler` does.
        """
        for declared in handlers_in(what):
            if declared not in self.registry:
                self._register(declared)

    def external(
        self,
        name: str,
        *,
        payload: type[P],
        result: type[R],
        estimate: Seconds | None = None,
        timeout: Seconds | NotGiven | None = NOT_GIVEN,
        inline_wait: Seconds | NotGiven = NOT_GIVEN,
        policy: Policy | None = None,
    ) -> JobType[P, R]:
        """Register a job type whose work is done elsewhere and reported by job id.

        The reports are `update_progress`, `complete`, `fail` and `stop`; the first one starts the
        job. Timeout and deadline are kept for it as for any other. Raises as `handler`.
        """
        limits = given_limits(policy, timeout=timeout, inline_wait=inline_wait)
        made = JobType[P, R](
            name,
            payload=payload,
            result=result,
            policy=limits.merged(self.policy),
            estimate=checked_estimate(name, estimate),
        )
        self.registry.add(made)
        return made

    def _register(self, declared: Handler[Any, Any]) -> Handler[Any, Any]:
        made = declared.bound(self.policy, self.dependency_overrides)
        dependencies_of(made)  # raises for those that it cannot have
        self.registry.add(made)
        return made
