"""Machines that share a store use the store's time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import StoreClock
from asyncjobs.records.clock import SharedClock, SystemClock
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import ManualClock
from tests.queues import simulated

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


class StoreAhead(MemoryStore):
    """Has a clock that is an hour ahead of this machine's."""

    powers = MemoryStore.powers | {StoreClock}
    away = False

    async def now(self) -> datetime:
        if self.away:
            raise StoreUnavailable("ahead", "it is away")
        return datetime.now(UTC) + HOUR


def close(one: datetime, other: datetime) -> bool:
    """Return whether two moments are equal up to the drift of a test's clocks."""
    return abs(one - other) < HOUR / 2


async def test_jobs_have_times_of_the_stores_clock() -> None:
    jobs = AsyncJobs(StoreAhead())

    @jobs.handler("double")
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    async with jobs:
        done = await (await jobs.enqueue(double, 21)).wait(timeout=60)
    ahead = datetime.now(UTC) + HOUR
    assert done.result == 42
    assert close(done.created_at, ahead)
    assert done.completed_at is not None
    assert close(done.completed_at, ahead)


@pytest.mark.every_store
async def test_a_machine_with_a_wrong_clock_uses_the_stores_time(store: Any) -> None:
    own = ManualClock(datetime.now(UTC) - 5 * HOUR)
    jobs = AsyncJobs(store, clock=SharedClock(own))
    kind = jobs.external("double", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 21)).job
        done = await jobs.complete(job.id, 42)
    told = datetime.now(UTC) if StoreClock in store.powers else own.now()
    assert done.completed_at is not None
    assert close(job.created_at, told)
    assert close(done.completed_at, told)


async def test_without_a_clock_in_the_store_the_machines_clock_is_used() -> None:
    assert isinstance(AsyncJobs(MemoryStore()).clock, SystemClock)


async def test_a_clock_passed_by_the_application_is_kept() -> None:
    clock = ManualClock()
    assert AsyncJobs(StoreAhead(), clock=clock).clock is clock


async def test_a_comparison_corrects_a_clock_that_was_set() -> None:
    own = ManualClock(datetime.now(UTC) - 5 * HOUR)
    clock = SharedClock(own)
    await clock.compare(StoreAhead())
    assert close(clock.now(), datetime.now(UTC) + HOUR)
    own.advance(3 * HOUR)
    await clock.compare(StoreAhead())
    assert close(clock.now(), datetime.now(UTC) + HOUR)


class StoreFarAway(StoreAhead):
    """Delays all its answers on the way back, except one."""

    def __init__(self, own: ManualClock, *seconds: float) -> None:
        super().__init__()
        self._own, self._seconds = own, list(seconds)

    async def now(self) -> datetime:
        answer = self._own.now() + HOUR
        self._own.advance(timedelta(seconds=self._seconds.pop(0)))
        return answer


async def test_the_fastest_answer_sets_the_clock() -> None:
    own = ManualClock(datetime.now(UTC))
    clock = SharedClock(own)
    await clock.compare(StoreFarAway(own, 3, 0.002, 5))
    assert abs(clock.now() - (own.now() + HOUR)) == timedelta(seconds=0.001)


async def test_comparing_with_an_unavailable_store_raises() -> None:
    store = StoreAhead()
    store.away = True
    with pytest.raises(StoreUnavailable):
        async with AsyncJobs(store):
            pass


def test_clocks_are_compared_repeatedly_even_after_an_error() -> None:
    async def work() -> None:
        own, store = ManualClock(datetime.now(UTC) - 5 * HOUR), StoreAhead()
        clock = SharedClock(own)
        store.away = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.run, store)
            await anyio.sleep(HOUR.total_seconds())
            store.away = False
            await anyio.sleep(HOUR.total_seconds())
            tasks.cancel_scope.cancel()
        assert close(clock.now(), datetime.now(UTC) + HOUR)

    simulated(work)
