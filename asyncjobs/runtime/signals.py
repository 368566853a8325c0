"""Detects a signal to stop before the server has closed its open connections.

A server waits for its connections before it ends the application's lifespan. Open streams would
keep it waiting, and the application would not learn of the shutdown.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Thread, current_thread, main_thread
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def told_to_stop(tell: Callable[[], None]) -> Generator[None]:
    """Call `tell` from another thread when a signal asks the process to end, inside the block.

    Existing signal handlers still run. Without one, or outside the main thread, nothing is
    detected: the process ends at once, or another part of it decides.
    """
    before: dict[signal.Signals, Handler] = {}
    ours: dict[signal.Signals, Handler] = {}
    if current_thread() is main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                ours[number] = _followed_by(tell, handler)
                signal.signal(number, ours[number])
    try:
        yield
    finally:
        for number, handler in ours.items():
            if signal.getsignal(number) is handler:
                with suppress(ValueError):  # exited in another thread, which cannot restore it
                    signal.signal(number, before[number])


def _followed_by(tell: Callable[[], None], handler: Handler) -> Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        # A signal handler interrupts the event loop at any point, so waiting for it here would
        # deadlock.
        Thread(target=tell, name="asyncjobs stop", daemon=True).start()
        handler(number, frame)

    return handle
