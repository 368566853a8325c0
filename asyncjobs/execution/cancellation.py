"""Separates the event loop's cancellations from errors of the application's code."""

from __future__ import annotations

import math

import anyio

from asyncjobs.records.waiting import running_asyncio_loop


def belongs_to_the_loop(error: BaseException, *, stopping: bool) -> bool:
    """Return whether the event loop raised an error to end this task, not the application.

    A handler or a hook may raise a cancellation without a request: that of a future it awaited, or
    of its own task. The event loop itself cancels by scopes, until it ends.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, GeneratorExit):
        return not loop_runs()  # tasks that are left when the event loop ends are closed
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    # A deadline of -inf means that an enclosing scope was cancelled.
    return stopping or anyio.current_effective_deadline() == -math.inf


def loop_runs() -> bool:
    """Return whether an event loop is running."""
    if running_asyncio_loop() is not None:
        return True
    try:
        anyio.current_time()
    except RuntimeError:
        return False
    return True
