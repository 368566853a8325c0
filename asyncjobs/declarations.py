"""Declares and registers handlers: `@handler("export")`, `@jobs.handler(...)`, `jobs.include`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
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

#: What a handler returns, for type checkers, that yields its output.
Yielding = AsyncIterator[Any] | Iterator[Any]


class NotGiven:
    """Marks a limit that the handler leaves to the policies; None is a value of its own."""


NOT_GIVEN = NotGiven()


class Decorator(Protocol):
    """Turns a function into a handler; `...` stands for its dependencies.

    A special shape comes before the general ones that include it, so overlaps are intended.
    Parameters after the job count as dependencies, since type checkers do not evaluate their
    annotations.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[P, JobContext[S]], Coroutine[Any, Any, R]], /
    ) -> Handler[P, R]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[[P, JobContext[S]], Yielding], /
    ) -> Handler[P, Any]: ...

    @overload
    def __call__(self, function: Callable[[P, JobContext[S]], R], /) -> Handler[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], ...], Coroutine[Any, Any, R]], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], ...], Yielding], /
    ) -> Handler[None, Any]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], ...], R], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[P, ...], Coroutine[Any, Any, R]], /
    ) -> Handler[P, R]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[P, ...], Yielding], /
    ) -> Handler[P, Any]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[P, ...], R], /) -> Handler[P, R]: ...

    # For functions without positional parameters; pyright considers it unreachable.
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[..., Coroutine[Any, Any, R]], /
    ) -> Handler[None, R]: ...

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[..., Yielding], /
    ) -> Handler[None, Any]: ...

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[..., R], /
    ) -> Handler[None, R]: ...


def given_limits(policy: Policy | None, **limits: object) -> Limits:
    """Return the limits that were given."""
    named = {name: value for name, value in limits.items() if value is not NOT_GIVEN}
    return Limits(policy, named)


def handler(  # noqa: PLR0913  # one parameter per option
    name: str,
    *,
    estimate: Seconds | None = None,
    run_in: RunIn | None = None,
    aliases: Sequence[str] = (),
    timeout: Seconds | NotGiven | None = NOT_GIVEN,
    inline_wait: Seconds | NotGiven = NOT_GIVEN,
    retry: Retry | NotGiven = NOT_GIVEN,
    output: Any = None,
    emit_every: Seconds | NotGiven = NOT_GIVEN,
    policy: Policy | None = None,
) -> Decorator:
    """Declare the decorated function as a handler, without a queue.

    `AsyncJobs.include` registers it on any number of queues, and merges its limits with the policy
    of each; then it can be enqueued there. Options and errors are those of `AsyncJobs.handler`.
    """
    check_name(name, "@handler")
    limits = given_limits(
        policy, timeout=timeout, inline_wait=inline_wait, retry=retry, emit_every=emit_every
    )
    return declaring(name, limits, estimate=estimate, run_in=run_in, aliases=aliases, output=output)


def declaring(
    name: str,
    limits: Limits,
    *,
    estimate: Seconds | None,
    run_in: RunIn | None,
    aliases: Sequence[str],
    output: Any,
) -> Callable[[Callable[..., Any]], AnyHandler]:
    """Return a decorator that declares a handler; all options are checked at once."""
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
            output=output,
        )

    return declare


#: The arguments that `include` accepts.
Includable = ModuleType | AnyHandler | Iterable[AnyHandler]


def handlers_in(what: Iterable[Includable]) -> Iterator[AnyHandler]:
    """Yield the handlers in modules and iterables; raise `ConfigurationError` for other values."""
    for one in what:
        if isinstance(one, ModuleType):
            yield from _handlers_of_module(one)
        elif isinstance(one, Handler):
            yield _declared(one)
        else:
            yield from map(_declared, one if isinstance(one, Iterable) else [one])  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller


def _handlers_of_module(module: ModuleType) -> list[AnyHandler]:
    """Return the handlers declared in a module; those registered on a queue belong to it."""
    names: dict[str, object] = vars(module)
    found: list[AnyHandler] = [one for one in names.values() if isinstance(one, Handler)]
    declared = [one for one in found if one.declaration is None]
    if not declared:
        raise ConfigurationError(
            f"Module {module.__name__} has no handlers to include: declare them with "
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
            f"Handler {found.name!r} was registered by @jobs.handler on a queue: declare it with "
            "`from asyncjobs import handler` and @handler(name) to include it."
        )
    return found


class Registrar:
    """Registers the job types of one queue."""

    def __init__(self, policy: Policy) -> None:
        self.registry = Registry()
        self.policy = policy
        #: Maps a dependency's function to the one to call instead, for tests.
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}

    def handler(  # noqa: PLR0913  # one parameter per option
        self,
        name: str,
        *,
        estimate: Seconds | None = None,
        run_in: RunIn | None = None,
        aliases: Sequence[str] = (),
        timeout: Seconds | NotGiven | None = NOT_GIVEN,
        inline_wait: Seconds | NotGiven = NOT_GIVEN,
        retry: Retry | NotGiven = NOT_GIVEN,
        output: Any = None,
        emit_every: Seconds | NotGiven = NOT_GIVEN,
        policy: Policy | None = None,
    ) -> Decorator:
        """Register the decorated function as the handler of a job type.

        Its parameters are a payload, a job (`JobContext`), both or neither, recognised by their
        annotations, and dependencies (`Annotated[..., Depends(...)]`). Payload and result have the
        types of the annotations. `estimate` is the duration that clients are advised to expect.
        `timeout` limits one attempt (None: only the deadline does). A submission over HTTP waits
        for `inline_wait` and answers 200 if the job has ended by then: 0.2, for example, for work
        that usually ends at once. `policy` has more limits; limits in neither come from the queue's
        own policy. `output` is the type of the items that `job.emit` takes; a handler that yields
        them has it in its annotation. With `emit_every`, items are collected for so long before
        they are stored. `aliases` are earlier names of the type: jobs waiting under them run with
        this handler.

        An `async def` runs on the event loop, a `def` in a thread, and either with
        `run_in="process"` in a child process, which is killed if the handler has to stop. The child
        must be able to import the function's module and find the function in it by its name.

        Raises `ConfigurationError` for inconsistent limits, a name given twice, unsupported
        parameters or annotations, a decorator without a name, and a function that a child process
        could not find.
        """
        check_name(name, "@jobs.handler")
        limits = given_limits(
            policy, timeout=timeout, inline_wait=inline_wait, retry=retry, emit_every=emit_every
        )
        declare = declaring(
            name, limits, estimate=estimate, run_in=run_in, aliases=aliases, output=output
        )
        limits.merged(self.policy)  # raises for inconsistent limits

        def register(function: Callable[..., Any]) -> Handler[Any, Any]:
            return self._register(declare(function))

        return register

    def include(self, *what: Includable) -> None:
        """Register handlers declared by `@handler(...)`, or all handlers of a module.

        Their limits are merged with the policy of this queue. Handlers that are included already
        are skipped. Raises `ConfigurationError` for a module without handlers, for handlers of
        another queue, and as `handler` does.
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
        job. Timeout and deadline apply as for any other type. Raises as `handler`.
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
        dependencies_of(made)  # raises for unsupported dependencies
        self.registry.add(made)
        return made
