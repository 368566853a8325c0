"""Guarantees while store calls fail at random, before or after they take effect."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import pytest
from trio.testing import MockClock

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus, Policy, Retry, Selection, Settings
from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Clock, Store
from asyncjobs.testing import Fate, Faults, FaultyStore, LoopClock

T = TypeVar("T")

pytestmark = pytest.mark.every_store

SHAKY = Faults(before=0.1, after=0.1, delay=0.02)
# A faster clock leaves a busy machine little of a lease.
SEDATE = Settings(
    poll_interval=timedelta(seconds=10),
    sweep_interval=timedelta(seconds=15),
    lease=timedelta(minutes=2),
)
BRISK = Settings(
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    redelivery=timedelta(seconds=0.6),
    lease=timedelta(seconds=2),
)
KEYS = 30


@dataclass(frozen=True)
class Pace:
    """The speed of time: suitable settings, and the length of a nominal second."""

    loop: dict[str, Any]
    settings: Settings
    clock: Clock | None
    second: float = 1

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        return anyio.run(work, **self.loop)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds * self.second)


@pytest.fixture
def pace(store_kind: str) -> Pace:
    """Jump in memory, run faster on stores with threads, and in real time on all others."""
    match store_kind:
        case "memory":
            clock = MockClock(autojump_threshold=0)
        case "sqlite":
            clock = MockClock(rate=100)
        case _:
            return Pace({}, BRISK, None, second=0.01)
    return Pace({"backend": "trio", "backend_options": {"clock": clock}}, SEDATE, LoopClock())


class Shop:
    """A queue on a store that may fail, and a client that repeats failed requests."""

    def __init__(self, store: Store, pace: Pace, seed: int) -> None:
        self.store = FaultyStore(store, seed=seed)
        self.pace = pace
        self.chance = random.Random(seed)  # noqa: S311  # seeded faults, no secrets
        self.runs: dict[str, int] = {}
        self.jobs = AsyncJobs(
            self.store,
            clock=pace.clock,
            settings=pace.settings,
            policy=Policy(retention=None, timeout=None, max_deliveries=9),
        )
        self.jobs.handler("order", retry=Retry(max_attempts=3))(self.order)

    async def order(self, number: str, job: JobContext) -> str:
        self.runs[number] = self.runs.get(number, 0) + 1
        async for _ in job.track(range(3)):
            await self.pace.sleep(self.chance.random())
        return f"{number} by {job.fence}"

    async def ask_for(self, number: str) -> Job:
        """Repeat under one key, like a client that gets no answer, or 503."""
        while True:
            try:
                return (await self.jobs.enqueue("order", number, idempotency_key=number)).job
            except StoreUnavailable:
                await self.pace.sleep(1)

    async def ended(self, job_id: JobId) -> Job:
        while True:
            try:
                return await self.jobs.wait(job_id)
            except StoreUnavailable:
                await self.pace.sleep(1)


@pytest.mark.parametrize("seed", range(3))
def test_submissions_repeated_under_a_key_make_one_job_that_ends_once(
    store: Store, pace: Pace, seed: int
) -> None:
    shop = Shop(store, pace, seed)
    ends: dict[str, Job] = {}

    async def order(number: str) -> None:
        await pace.sleep(60 * shop.chance.random())
        job = await shop.ask_for(number)
        ends[number] = await shop.ended(job.id)

    async def run() -> list[Job]:
        with anyio.fail_after(24 * 3600):
            async with shop.jobs:
                shop.store.faults = SHAKY
                async with anyio.create_task_group() as clients:
                    for number in range(KEYS):
                        clients.start_soon(order, str(number))
                shop.store.faults = Faults()
                page = await shop.jobs.list(Selection(), limit=9 * KEYS)
                return [await shop.jobs.find(job.id) for job in page.jobs]

    stored = pace.run(run)
    assert sorted(ends) == sorted(str(number) for number in range(KEYS))
    assert {job.id for job in stored} == {job.id for job in ends.values()}
    assert len(stored) == KEYS
    for job in stored:
        assert job.status is JobStatus.COMPLETED
        assert job.result == f"{job.payload} by {job.attempt}"
        assert ends[str(job.payload)] == job
    fates = [call.fate for call in shop.store.calls]
    assert {Fate.NOT_DONE, Fate.ANSWER_LOST} <= set(fates)
