"""What a worker process is told from outside: by signals, or by the process that supervises it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from enum import IntEnum
from functools import partial
from threading import Thread

import anyio
from anyio.abc import TaskStatus
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

log = logging.getLogger("asyncjobs")


class Order(IntEnum):
    """How urgently to stop."""

    GO_ON = 0
    DRAIN = 1  # begin nothing more, give running jobs the grace period
    HURRY = 2  # break running jobs off, and give them back


class Orders:
    """The most urgent order so far; an order is never taken back."""

    def __init__(self) -> None:
        self.given = Order.GO_ON
        self._events = {order: anyio.Event() for order in Order}

    def give(self, order: Order) -> None:
        """Give an order, which a more urgent one outranks."""
        self.given = max(self.given, order)
        for one, event in self._events.items():
            if one <= self.given:
                event.set()

    async def wait_for(self, order: Order) -> None:
        """Return when this or a more urgent order is given."""
        await self._events[order].wait()

    async def hear_signals(self, *, task_status: TaskStatus[None]) -> None:
        """Drain at the first SIGTERM or SIGINT, hurry at the second; the third ends the process."""
        if os.name == "nt":  # no event loop hears signals there; Ctrl-C breaks into it
            task_status.started()
            return
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            given = Order.GO_ON
            async for number in signals:
                given = Order(given + 1)
                log.info("%s: %s", signal.Signals(number).name, given.name.lower())
                self.give(given)
                if given is Order.HURRY:
                    break

    def hear_supervisor(self) -> None:
        """Take orders, one name a line, from standard input; its end is the supervisor's end."""
        token = current_token()

        def listen() -> None:
            for line in sys.stdin:
                order = Order[line.strip().upper()]
                run_sync(partial(self.give, order), token=token)
            run_sync(partial(self.give, Order.DRAIN), token=token)

        def listen_on() -> None:
            try:
                listen()
            except RuntimeError:
                return  # the event loop has ended before

        Thread(target=listen_on, name="asyncjobs supervisor", daemon=True).start()
