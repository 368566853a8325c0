"""Where the present comes from: this machine's clock, or that of the store all machines share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

from asyncjobs.errors import StoreError
from asyncjobs.protocols import Clock, StoreClock
from asyncjobs.records.logging import log

_PAUSE_SECONDS = 30.0
_LOOKS = 3


class SystemClock:
    """Tell the time of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SharedClock:
    """Tell a store's time, by this machine's clock and how far it is off.

    Machines that share a store then agree on what is due and which lease has lapsed, even where one
    of them has its clock set wrongly.
    """

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._off = timedelta(0)

    def now(self) -> datetime:
        return self._own.now() + self._off

    async def compare(self, store: StoreClock) -> None:
        """Ask the store for its time; raises what the store raises.

        Several times, and what was answered soonest counts: the store looked at its clock at some
        moment in between, so that is how far the answer may be wrong.
        """
        shortest = timedelta.max
        for _ in range(_LOOKS):
            asked = self._own.now()
            theirs = await store.now()
            took = abs(self._own.now() - asked)  # it may be set back meanwhile
            if took < shortest:
                shortest, self._off = took, theirs - (asked + took / 2)

    async def run(self, store: StoreClock) -> None:
        """Compare now and then, until cancelled: clocks drift, and are set."""
        while True:
            await anyio.sleep(_PAUSE_SECONDS)
            try:
                await self.compare(store)
            except StoreError as error:
                log.debug("The store's clock could not be read: %s", error)
