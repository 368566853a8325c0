"""Calls handlers with their dependencies: resolved before the call, cleaned up after it.

The library fast-depends reads the dependencies: their markers, nesting and overrides. It does not
resolve them here, because it passes the values of all parameters down by name: a dependency may get
the value of another parameter with its name. And a cancelled handler would cancel its clean-up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio
from anyio import to_thread

from asyncjobs.core.handlers import Handler, Overrides
from asyncjobs.core.signatures import dependency_marker, is_job, name_of
from asyncjobs.errors import ConfigurationError

if TYPE_CHECKING:
    from fast_depends.core import CallModel
    from fast_depends.dependencies import Provider

AnyHandler = Handler[Any, Any]


@dataclass(frozen=True)
class _Dependency:
    """One function that is called for a handler, and its parameters."""

    function: Callable[..., Any]
    asynchronous: bool
    generator: bool
    shared: bool
    needs: Mapping[str, _Dependency]
    job_names: tuple[str, ...]
    payload_name: str | None


def call(handler: AnyHandler, payload: Any, job: Any) -> Any:
    """Call a handler with its dependencies; for an `async def`, return a coroutine.

    Dependencies are made for this call, one after the other, and are cleaned up before it returns,
    in reverse order, even if the handler raises. Their errors are raised as the handler's own.
    """
    if not handler.signature.dependencies:
        return handler.call(payload, job)
    one_call = _Call(dependencies_of(handler), handler, payload, job)
    return one_call.on_the_loop() if handler.asynchronous else one_call.in_this_thread()


def dependencies_of(handler: AnyHandler) -> Mapping[str, _Dependency]:
    """Return the dependencies of a handler by parameter, with the current overrides.

    Raises `ConfigurationError` if one cannot be resolved, or fast-depends is not installed.
    """
    if not handler.signature.dependencies:
        return {}
    # Overrides may change between two jobs, as they do in tests.
    overrides = tuple(handler.overrides.items())
    known = _read.get(handler)
    if known is None or known[0] != overrides:
        known = _read[handler] = (overrides, _Reader(handler, handler.overrides).read())
    return known[1]


# The dependencies of each handler, and the overrides that they were read with.
_read: WeakKeyDictionary[AnyHandler, tuple[object, Mapping[str, _Dependency]]] = WeakKeyDictionary()


class _Reader:
    """Reads the dependencies of one handler."""

    def __init__(self, handler: AnyHandler, overrides: Overrides) -> None:
        self._handler = handler
        self._name = name_of(handler.function)
        self._overrides = overrides

    def read(self) -> dict[str, _Dependency]:
        """Return the dependencies by the parameter that receives them."""
        try:
            from fast_depends.core import build_call_model  # noqa: PLC0415  # of an extra
            from fast_depends.dependencies import Provider  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                f"Handler {self._name} has dependencies, which need an extra: "
                "pip install 'asyncjobs-http[depends]'"
            ) from error
        provider = Provider()
        # `_dependency` refuses asynchronous ones of a `def` handler, with a better message.
        build = partial(build_call_model, dependency_provider=provider, is_sync=False)
        found: dict[str, _Dependency] = {}
        for original, override in self._overrides.items():
            provider.overrides[original] = build(override)
        for one in self._handler.signature.dependencies:
            model = build(one.marker.dependency, use_cache=one.marker.use_cache)
            key = provider.add_dependant(model)
            found[one.name] = self._dependency(provider.get_dependant(key), provider)
        return found

    def _dependency(self, model: CallModel, provider: Provider) -> _Dependency:
        name = name_of(model.call)
        if model.is_async and not self._handler.asynchronous:
            raise ConfigurationError(
                f"Handler {self._name} is a `def`, and its dependency {name} is asynchronous: "
                "declare the handler with `async def`, or the dependency with `def`."
            )
        self._refuse_unknown(model, name)
        return _Dependency(
            function=model.call,
            asynchronous=model.is_async,
            generator=model.is_generator,
            shared=model.use_cache,
            needs={
                parameter: self._dependency(provider.get_dependant(key), provider)
                for parameter, key in model.dependencies.items()
            },
            job_names=tuple(one.field_name for one in model.params if _is_job(one)),
            payload_name=next(
                (one.field_name for one in model.params if self._is_payload(one)), None
            ),
        )

    def _refuse_unknown(self, model: CallModel, name: str) -> None:
        """Raise `ConfigurationError` for a parameter that has no value."""
        for one in model.params:
            try:
                dependency_marker(one.field_type, one.default_value)
            except ValueError as error:
                raise ConfigurationError(
                    f"Dependency {name} of handler {self._name}: its parameter "
                    f"{one.field_name!r} {error}."
                ) from None
            required = one.default_value is Ellipsis
            if required and not _is_job(one) and not self._is_payload(one):
                raise ConfigurationError(
                    f"Dependency {name} of handler {self._name}: its parameter "
                    f"{one.field_name!r} is neither a dependency, nor the job (annotated with "
                    "JobContext), nor the payload (with the same name as in the handler)."
                )

    def _is_payload(self, parameter: Any) -> bool:
        named: bool = parameter.field_name == self._handler.signature.payload_name
        return named and not _is_job(parameter)


def _is_job(parameter: Any) -> bool:
    unsaid = parameter.field_type is Any and parameter.default_value is Ellipsis
    return is_job(parameter.field_type) or (unsaid and parameter.field_name == "job")


class _Call:
    """One call of a handler, and the dependencies made for it."""

    def __init__(
        self, dependencies: Mapping[str, _Dependency], handler: AnyHandler, payload: Any, job: Any
    ) -> None:
        self._dependencies = dependencies
        self._handler = handler
        self._payload = payload
        self._job = job
        self._made: dict[Callable[..., Any], Any] = {}

    async def on_the_loop(self) -> Any:
        """Call an `async def`; its `def` dependencies run in threads."""
        stack = AsyncExitStack()
        try:
            given = {
                name: await self._awaited(one, stack) for name, one in self._dependencies.items()
            }
            value = await self._handler.call(self._payload, self._job, given)
        except GeneratorExit:  # the attempt is ended by force, and nothing can be awaited
            raise
        except BaseException as error:
            # Shielded: the clean-up must finish although the handler was cancelled.
            with anyio.CancelScope(shield=True):
                await stack.__aexit__(type(error), error, error.__traceback__)
            raise  # even if a dependency suppresses it, because there is no value
        with anyio.CancelScope(shield=True):
            await stack.aclose()
        return value

    def in_this_thread(self) -> Any:
        """Call a `def` in the current thread."""
        stack = ExitStack()
        try:
            given = {name: self._called(one, stack) for name, one in self._dependencies.items()}
            value = self._handler.call(self._payload, self._job, given)
            _refuse_awaitable(self._handler, value)
        except BaseException as error:
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        stack.close()
        return value

    async def _awaited(self, one: _Dependency, stack: AsyncExitStack) -> Any:
        if one.shared and one.function in self._made:
            return self._made[one.function]
        needs = {name: await self._awaited(need, stack) for name, need in one.needs.items()}
        function = partial(one.function, **needs, **self._own(one))
        value: Any
        if one.generator and one.asynchronous:
            value = await stack.enter_async_context(asynccontextmanager(function)())
        elif one.generator:
            value = await stack.enter_async_context(_InThreads(contextmanager(function)()))
        elif one.asynchronous:
            value = await function()
        else:
            value = await to_thread.run_sync(function)
        if one.shared:
            self._made[one.function] = value
        return value

    def _called(self, one: _Dependency, stack: ExitStack) -> Any:
        if one.shared and one.function in self._made:
            return self._made[one.function]
        needs = {name: self._called(need, stack) for name, need in one.needs.items()}
        function = partial(one.function, **needs, **self._own(one))
        value = stack.enter_context(contextmanager(function)()) if one.generator else function()
        if one.shared:
            self._made[one.function] = value
        return value

    def _own(self, one: _Dependency) -> dict[str, Any]:
        own = dict.fromkeys(one.job_names, self._job)
        if one.payload_name is not None:
            own[one.payload_name] = self._payload
        return own


def _refuse_awaitable(handler: AnyHandler, value: object) -> None:
    """Raise `ConfigurationError` for a value that would be awaited after the clean-up."""
    if inspect.isawaitable(value):
        getattr(value, "close", lambda: None)()  # a coroutine that is not awaited would warn
        raise ConfigurationError(
            f"Handler {name_of(handler.function)} has dependencies and is a `def` that returns "
            "an awaitable: declare it with `async def`."
        )


class _InThreads:
    """Enters and leaves a context manager in threads, even if the handler is cancelled."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def __aenter__(self) -> Any:
        return await to_thread.run_sync(self._context.__enter__)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # A limiter of its own: tasks that wait for this clean-up may hold all the other threads.
        leave = partial(self._context.__exit__, kind, error, traceback)
        return bool(await to_thread.run_sync(leave, limiter=anyio.CapacityLimiter(1)))
