"""The current time, by this machine's clock or by that of the store that all machines share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

from asyncjobs.errors import StoreError
from asyncjobs.protocols import Clock, StoreClock
from asyncjobs.records.logging import log

_PAUSE_SECONDS = 30.0
_LOOKS = 3


class SystemClock:
    """Returns the time of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SharedClock:
    """Returns a store's time: this machine's clock plus its measured difference.

    Machines that share a store then agree on which jobs are due and which leases have lapsed, even
    if the clock of one of them is wrong.
    """

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._off = timedelta(0)

    def now(self) -> datetime:
        return self._own.now() + self._off

    async def compare(self, store: StoreClock) -> None:
        """Measure the difference to the store's clock; raise what the store raises.

        Of several calls the fastest counts: the store read its clock at some moment during the
        call, so the duration of the call bounds the error.
        """
        shortest = timedelta.max
        for _ in range(_LOOKS):
            asked = self._own.now()
            theirs = await store.now()
            took = abs(self._own.now() - asked)  # the clock may be set back meanwhile
            if took < shortest:
                # The middle of the call is the best estimate of when the store read its clock.
                shortest, self._off = took, theirs - (asked + took / 2)

    async def run(self, store: StoreClock) -> None:
        """Measure again at intervals until cancelled, because clocks drift and are adjusted."""
        while True:
            await anyio.sleep(_PAUSE_SECONDS)
            try:
                await self.compare(store)
            except StoreError as error:
                log.debug("The store's clock could not be read: %s", error)
