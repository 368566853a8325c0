"""Tasks for the application's code, for asyncio and trio.

On asyncio each is a plain task, outside of the task groups and cancel scopes of the runtime: errors
of its code with scopes, task groups or the task itself end with that task. trio has no such tasks:
there it belongs to a task group of the runtime.
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

#: Runs in a task; catches all its exceptions.
Body = Callable[[], Coroutine[Any, Any, None]]

# How long a call of the application's code may take to end once it is cancelled.
_PATIENCE_SECONDS = 0.3

# Coroutines that refuse to be closed.
_kept: list[object] = []


class Task:
    """A task for the application's code, inside a cancel scope that belongs to the task."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._leavable: _Leavable | None = None
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel what the task awaits now and later; shields are respected."""
        self._scope.cancel()

    def abandon(self) -> None:
        """End the task by force on asyncio, even if its code catches every exception.

        The code is closed like a forgotten coroutine: it gets a GeneratorExit and is not resumed.
        Without this, the end of the event loop would wait for it forever.
        """
        self.cancel()
        if self._leavable is not None and self._task is not None:
            # Set first: the cancellation then ends the task instead of reaching the code.
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
        # A callback, because a task cancelled before its first step never runs `_run`.
        self._task.add_done_callback(lambda _: end())

    async def run_in_group(self, body: Body, end: Callable[[], None]) -> None:
        """Run in a task of a task group; a cancellation of the group passes through."""
        try:
            with self._scope:
                await body()
        except Exception:  # noqa: BLE001  # of the scope, if the code left one of its own open
            return
        finally:
            end()

    async def _run(self, code: _Leavable) -> None:
        try:
            with self._scope:
                await code
        except BaseException:  # noqa: BLE001  # of the scope, if the code left its own open
            return


class _Leavable:
    """Awaits the coroutine of `body`, and lets the task leave it in the middle.

    The task itself leaves it, because scopes of anyio cannot be left by another task.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self.left = False

    def __await__(self) -> Generator[Any, Any, None]:
        # Made only now: a task cancelled before its first step would leave it unawaited.
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
                # Closed here, inside the task, and before the error leaves its scope.
                if self.left:
                    _close(coroutine, inner)
                    raise
                error = raised


def _close(coroutine: object, inner: Any) -> None:
    # Read before the close: a coroutine that has been closed no longer shows what it awaited.
    awaited = _awaited_by(coroutine)
    with suppress(BaseException):
        inner.close()
    for one in awaited:
        # A frame is left if the code has caught GeneratorExit and gone on.
        if one.cr_frame is not None:
            _never_free(one)


def _awaited_by(coroutine: object) -> list[CoroutineType[Any, Any, Any]]:
    """Return a coroutine, the coroutine that it awaits, and so on to the innermost."""
    found: list[CoroutineType[Any, Any, Any]] = []
    while isinstance(coroutine, CoroutineType):
        found.append(coroutine)  # pyright: ignore[reportUnknownArgumentType]
        coroutine = found[-1].cr_await
    return found


def _never_free(coroutine: object) -> None:
    """Keep a coroutine that refuses to be closed until the process ends.

    The garbage collector would close it again, in any thread. Without an event loop there,
    `while True: with suppress(BaseException): await sleep(1)` spins in that thread forever, maybe
    in the middle of a log call that holds locks. References in modules are dropped when the
    interpreter exits, so its reference count is increased as well.
    """
    _kept.append(coroutine)
    with suppress(ImportError, AttributeError):  # not all interpreters have it
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
    """Start a task for the application's code; `tasks` is used only on trio.

    `on_end` is called when the task has ended, even if it was cancelled before its first step.
    """
    task = Task()
    if running_asyncio_loop() is not None:
        task.start(body, name, context, on_end)
    else:
        start = tasks.start_soon
        # trio starts a task in a copy of the current context.
        (context or copy_context()).run(lambda: start(task.run_in_group, body, on_end, name=name))
    return task


def start_background(body: Body, *, name: str) -> None:
    """Start a task that outlives the current one; `body` must catch all its exceptions."""
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
    """Await the application's code in a task of its own; return its value or raise its error.

    An error that is not an `Exception` (a cancellation without a request, KeyboardInterrupt) is
    raised as a `RuntimeError`. If the caller is cancelled, the other task is cancelled as well and
    its end is awaited; it is ended by force if it goes on.
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
        # Shielded: the caller is cancelled, and these waits would be cancelled with it.
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_PATIENCE_SECONDS):
                await ended.wait()
            if not ended.is_set():
                task.abandon()
                await ended.wait()
        raise
    if results:
        return results[0]
    error = errors[0] if errors else RuntimeError("The task was cancelled before it started.")
    if isinstance(error, Exception):
        raise error
    raise RuntimeError(f"The call raised {type(error).__name__}.") from error


def current_loop() -> object | None:
    """Return an object that identifies the running event loop; None outside of any."""
    loop = running_asyncio_loop()
    if loop is not None:
        return loop
    try:
        return current_token().native_token
    except RuntimeError:
        return None
