"""Tells what an application's own code lets out from what the event loop wants of a task."""

from __future__ import annotations

import math

import anyio

from asyncjobs.records.waiting import running_asyncio_loop


def belongs_to_the_loop(error: BaseException, *, stopping: bool) -> bool:
    """Tell whether an error is the event loop's way to end this task, not the application's own.

    A handler or a hook may let out a cancellation that nobody asked for: of a future that it
    awaited, or of its own task. The loop itself cancels by scopes, until it ends.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, GeneratorExit):
        return not loop_runs()  # a task that is still there when the loop ends is closed
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    return stopping or anyio.current_effective_deadline() == -math.inf


def loop_runs() -> bool:
    """Tell whether there is an event loop to wait in."""
    if running_asyncio_loop() is not None:
        return True
    try:
        anyio.current_time()
    except RuntimeError:
        return False
    return True
