"""Hears that the process is told to stop, before its server has closed what is open.

A server waits for its connections before it ends the application's lifespan. Streams would keep it
waiting, and the application would be the last to know.
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

    Whoever handles the signal already goes on doing so. Where nobody does, or outside the main
    thread, nothing is heard: the process ends at once, or it is not for us to say.
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
                with suppress(ValueError):  # left in another thread, which cannot take it back
                    signal.signal(number, before[number])


def _followed_by(tell: Callable[[], None], handler: Handler) -> Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        # A handler interrupts the event loop at any point; to wait for it here would be for ever.
        Thread(target=tell, name="asyncjobs stop", daemon=True).start()
        handler(number, frame)

    return handle
