"""An asyncio event loop in simulated time: a seed decides delays, and machines can stop.

If nothing is ready, time jumps to the next timer; each turn of the loop takes a moment, so that
answers of simulated I/O arrive in the middle of chains of callbacks, as in reality. Each timer
fires a little late. The seed permutes nothing else: callbacks of `call_soon` keep their order,
which asyncio guarantees.

The context variable `MACHINE` names a *machine*: all tasks and callbacks that started in its
context. A frozen machine does nothing, like a process after SIGSTOP; a machine that is frozen for
ever was killed. None of its code runs, not even a `finally`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import selectors
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, TypeVar, TypeVarTuple
from unittest.mock import patch

import anyio

from asyncjobs.core.randomness import forget_spare

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MACHINE: contextvars.ContextVar[int | None] = contextvars.ContextVar("MACHINE", default=None)

# A turn of the loop takes up to this many seconds. When a task spins (a handler that swallows its
# cancellation is cancelled at each turn) time goes faster.
_TURN_SECONDS = 50e-6
_LONG_TURN_SECONDS = 0.01
_MANY_TURNS = 300

_LATE_SECONDS = 100e-6


class NothingHappens(AssertionError):  # trace of the run
    """Raised when every task waits and no timer or callback is left."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop; `time()` begins at 0."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311  # reproducible, no secrets
        self._time = 0.0
        self._spinning = 0
        self._numbers = count()
        self._tasks: dict[int | None, dict[asyncio.Task[Any], None]] = defaultdict(dict)
        self._frozen: dict[int, list[_Call]] = {}
        super().__init__(_NoSelector(self._pass_time))

    def time(self) -> float:
        return self._time

    def tasks_of(self, machine: int) -> list[asyncio.Task[Any]]:
        """Return the tasks of a machine that have not ended."""
        return [task for task in self._tasks[machine] if not task.done()]

    def freeze(self, machine: int) -> None:
        """Stop all tasks and callbacks of a machine."""
        self._frozen.setdefault(machine, [])

    def thaw(self, machine: int) -> None:
        """Continue a machine, starting with the callbacks that became ready in the meantime."""
        for call in self._frozen.pop(machine, ()):
            super().call_soon(call, context=call.context)

    def is_frozen(self, machine: int | None) -> bool:
        return machine in self._frozen

    def park(self, call: _Call) -> None:
        self._frozen[call.context[MACHINE] or 0].append(call)

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        call = _Call(self, callback, args, context)
        call.handle = super().call_soon(call, context=call.context)
        return call.handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        call = _Call(self, callback, args, context)
        late = when + self._chance.uniform(0, _LATE_SECONDS)
        call.handle = handle = super().call_at(late, call, context=call.context)
        return handle

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_options: Any,
    ) -> asyncio.Task[T]:
        context = contextvars.copy_context() if context is None else context
        number = next(self._numbers)
        task = _Task(number, coro, loop=self, name=name or f"task {number}", context=context)
        tasks = self._tasks[context.get(MACHINE)]
        tasks[task] = None
        task.add_done_callback(lambda ended: tasks.pop(ended, None))
        return task

    def _pass_time(self, timeout: float | None) -> None:
        if timeout is None:
            raise NothingHappens
        if timeout > 0:
            self._spinning = 0
            self._time += timeout
        else:
            self._spinning += 1
            turn = _TURN_SECONDS if self._spinning < _MANY_TURNS else _LONG_TURN_SECONDS
            self._time += self._chance.uniform(0, turn)


class _Call:
    """A callback that waits while its machine is frozen."""

    __slots__ = ("_args", "_callback", "_loop", "context", "handle")

    def __init__(self, loop: SimulatedLoop, callback: Any, args: Any, context: Any) -> None:
        self._loop = loop
        self._callback = callback
        self._args = args
        self.context: contextvars.Context = context or contextvars.copy_context()
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.handle is not None and self.handle.cancelled():
            return
        if self._loop.is_frozen(self.context.get(MACHINE)):
            self._loop.park(self)
        else:
            self._callback(*self._args)


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run."""

    def __init__(self, number: int, coro: Any, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector(selectors.DefaultSelector):
    """Lets time pass instead of blocking."""

    def __init__(self, wait: Callable[[float | None], None]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._wait(timeout)
        return []


def run_simulated(work: Callable[[SimulatedLoop], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run a coroutine in its own event loop; the same seed gives the same run."""
    loop = SimulatedLoop(seed)
    with seeded(seed), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


@contextmanager
def _numbered_scopes() -> Generator[None]:
    """Give cancel scopes reproducible places in sets, as `SimulatedTask` does for tasks.

    Tasks of a group are cancelled in the order of such a set.
    """
    # The scopes are kept, so that no id is reused.
    numbered: dict[int, tuple[anyio.CancelScope, int]] = {}

    def number_of(scope: anyio.CancelScope) -> int:
        return numbered.setdefault(id(scope), (scope, len(numbered)))[1]

    # A scope of another thread may be in sets already, so it keeps its hash.
    with patch.object(
        anyio.CancelScope, "__hash__", _in_this_thread(number_of, anyio.CancelScope.__hash__)
    ):
        yield


def _in_this_thread(simulated: Callable[[*Ts], T], real: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
    """Return a function that is the simulated one in this thread, the real one in all others.

    An application of another test may still be served by a thread of this process.
    """
    here = threading.get_ident()

    def function(*args: *Ts) -> T:
        return (simulated if threading.get_ident() == here else real)(*args)

    return function


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Draw job ids, tokens and jitter from a seed."""
    chance = random.Random(seed)  # noqa: S311  # reproducible, no secrets
    forget_spare()
    gc.disable()  # it runs at arbitrary moments, and ends async generators
    try:
        with ExitStack() as stack:
            stack.enter_context(_numbered_scopes())
            stack.enter_context(
                patch.object(os, "urandom", _in_this_thread(chance.randbytes, os.urandom))
            )
            for name in ("random", "uniform"):
                drawn = _in_this_thread(getattr(chance, name), getattr(random, name))
                stack.enter_context(patch.object(random, name, drawn))
            yield
    finally:
        gc.enable()
        forget_spare()
