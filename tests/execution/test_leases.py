"""The heartbeat of a process whose store does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, Settings
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import FaultyStore, LoopClock
from tests.queues import simulated

LEASE = timedelta(seconds=30)


class Hanging(FaultyStore):
    """Answers no change while it hangs, and refuses none."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.hangs = False
        self.goes_on = anyio.Event()

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        if self.hangs:
            await self.goes_on.wait()
        return await super().replace(changes)


def test_an_attempt_is_stopped_when_its_lease_lapses_in_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        store = Hanging()
        # The heartbeat's call would only return after an hour.
        settings = Settings(lease=LEASE, store_timeout=timedelta(hours=1), grace=0)
        jobs = AsyncJobs(store, clock=LoopClock(), settings=settings)
        held: list[float] = []
        stopped = anyio.Event()

        @jobs.handler("endless")
        async def endless(_none: None, job: JobContext) -> None:
            begun_at = anyio.current_time()
            store.hangs = job.attempt == 1
            try:
                await anyio.sleep_forever()
            finally:
                held.append(anyio.current_time() - begun_at)
                store.hangs = False
                store.goes_on.set()
                stopped.set()

        async with jobs:
            await jobs.enqueue("endless", None)
            await stopped.wait()
        poll = settings.poll_interval.total_seconds()
        assert held[0] == pytest.approx(LEASE.total_seconds(), abs=poll)

    simulated(work)
    assert caplog.text.count("is not recorded: its lease was lost") == 1
