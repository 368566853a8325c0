"""Tasks for code that is not ours: the one place that knows which event loop runs.

On asyncio each is a plain task, started in no task group and no cancel scope of the runtime.
Whatever its code does with scopes, task groups or the task itself ends with that task. trio has no
such tasks: there it belongs to a task group of the runtime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token

from asyncjobs.records.waiting import keep_until_done, running_asyncio_loop

T = TypeVar("T")

#: Runs in a task; catches whatever it raises.
Body = Callable[[], Coroutine[Any, Any, None]]

# How long a call of code that is not ours may take to end once it is cancelled.
_PATIENCE_SECONDS = 0.3

# Coroutines that refuse to be closed.
_kept: list[object] = []


class Task:
    """A task for code that is not ours, inside a cancel scope that belongs to the task."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._leavable: _Leavable | None = None
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel what the task awaits, now and from now on; shields are respected."""
        self._scope.cancel()

    def abandon(self) -> None:
        """End the task by force, if the event loop is asyncio's, whatever its code catches.

        The code is closed as a forgotten coroutine is: it gets a GeneratorExit, and is not resumed.
        Without this, the end of the event loop would wait for it for ever.
        """
        self.cancel()
        if self._leavable is not None and self._task is not None:
            self._leavable.left = True
            self._task.cancel()

    def start(
        self, body: Body, name: str, context: Context | None, end: Callable[[], None]
    ) -> None:
        """Start a plain task of the running asyncio event loop."""
        loop = asyncio.get_running_loop()
        self._leavable = _Leavable(body)
        self._task = loop.create_task(self._run(self._leavable), name=name, context=context)
        keep_until_done(self._task)
        self._task.add_done_callback(lambda _: end())

    async def run_in_group(self, body: Body, end: Callable[[], None]) -> None:
        """Run in a task of a task group; a cancellation of the group passes through."""
        try:
            with self._scope:
                await body()
        except Exception:  # noqa: BLE001  # of the scope, if the code has left one of its own open
            return
        finally:
            end()

    async def _run(self, code: _Leavable) -> None:
        try:
            with self._scope:
                await code
        except BaseException:  # noqa: BLE001  # of the scope, if the code has left its own open
            return


class _Leavable:
    """Awaits what `body` returns in such a way that the task can leave it in the middle.

    From within the task, since anyio's scopes refuse to be left by another one.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self.left = False

    def __await__(self) -> Generator[Any, Any, None]:
        # Not made before the task has begun: it may be cancelled before that.
        coroutine = self._body()
        inner: Any = coroutine.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                awaited = inner.send(value) if error is None else inner.throw(error)
            except StopIteration:
                return
            value = error = None
            try:
                value = yield awaited
            except BaseException as raised:
                if self.left:
                    _close(coroutine, inner)
                    raise
                error = raised


def _close(coroutine: object, inner: Any) -> None:
    awaited = _awaited_by(coroutine)
    with suppress(BaseException):
        inner.close()
    for one in awaited:
        if one.cr_frame is not None:
            _never_free(one)


def _awaited_by(coroutine: object) -> list[CoroutineType[Any, Any, Any]]:
    """Return a coroutine, the one that it awaits, and so on to the innermost."""
    found: list[CoroutineType[Any, Any, Any]] = []
    while isinstance(coroutine, CoroutineType):
        found.append(coroutine)  # pyright: ignore[reportUnknownArgumentType]
        coroutine = found[-1].cr_await
    return found


def _never_free(coroutine: object) -> None:
    """Keep a coroutine that refuses to be closed for as long as the process lives.

    The collector would close it once more, in whichever thread it happens to run. Without an event
    loop there, `while True: with suppress(BaseException): await sleep(1)` spins in that thread for
    ever, and may do so in the middle of a log call, with its locks. A reference in a module would
    be dropped at the end of the interpreter, and there is no other way to keep it.
    """
    _kept.append(coroutine)
    with suppress(ImportError, AttributeError):  # an interpreter that has no such thing
        import ctypes  # noqa: PLC0415  # slow to import, and seldom needed

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


def start_task(
    body: Body,
    tasks: TaskGroup,
    on_end: Callable[[], None],
    *,
    name: str,
    context: Context | None = None,
) -> Task:
    """Start a task for code that is not ours; `tasks` is used only if the event loop needs it.

    `on_end` is called when the task has ended, also if it was cancelled before its first step.
    """
    task = Task()
    if running_asyncio_loop() is not None:
        task.start(body, name, context, on_end)
    else:
        start = tasks.start_soon
        (context or copy_context()).run(lambda: start(task.run_in_group, body, on_end, name=name))
    return task


def start_background(body: Body, *, name: str) -> None:
    """Start a task that outlives the one that starts it; it must catch whatever it raises."""
    loop = running_asyncio_loop()
    if loop is not None:
        keep_until_done(loop.create_task(body(), name=name))
        return
    import trio  # noqa: PLC0415  # the only other event loop

    trio.lowlevel.spawn_system_task(body, name=name, context=copy_context())


async def apart(
    function: Callable[[], Awaitable[T]],
    tasks: TaskGroup,
    *,
    name: str,
    context: Context | None = None,
) -> T:
    """Await code that is not ours in a task of its own; return or raise what it does.

    What is not an `Exception` (a cancellation without a request, KeyboardInterrupt) comes out as a
    `RuntimeError`. If the caller is cancelled, so is the other task, and its end is awaited; one
    that goes on is ended by force.
    """
    ended = anyio.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    async def body() -> None:
        try:
            results.append(await function())
        except BaseException as error:  # noqa: BLE001  # raised below
            errors.append(error)

    task = start_task(body, tasks, ended.set, name=name, context=context)
    try:
        await ended.wait()
    except BaseException:
        task.cancel()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_PATIENCE_SECONDS):
                await ended.wait()
            if not ended.is_set():
                task.abandon()
                await ended.wait()
        raise
    if results:
        return results[0]
    error = errors[0] if errors else RuntimeError("The task was cancelled before it began.")
    if isinstance(error, Exception):
        raise error
    raise RuntimeError(f"The call raised {type(error).__name__}.") from error


def current_loop() -> object | None:
    """Return what stands for the running event loop, None outside of any."""
    loop = running_asyncio_loop()
    if loop is not None:
        return loop
    try:
        return current_token().native_token
    except RuntimeError:
        return None
