"""What holds while calls to the store fail by seed, before or after they are carried out."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from trio.testing import MockClock

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus, Policy, Retry, Selection, Settings
from asyncjobs.errors import StoreUnavailable
from asyncjobs.model import JobId
from asyncjobs.protocols import Store
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import Fate, Faults, FaultyStore, LoopClock

T = TypeVar("T")

SHAKY = Faults(before=0.1, after=0.1, delay=0.02)
# A clock that hurries leaves a busy machine little of a lease.
SEDATE = Settings(
    poll=timedelta(seconds=10), sweep=timedelta(seconds=15), lease=timedelta(minutes=2)
)
KEYS = 30


@pytest.fixture(params=[MemoryStore, SqliteStore], ids=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    kind: type[MemoryStore | SqliteStore] = request.param
    return MemoryStore if kind is MemoryStore else lambda: SqliteStore(tmp_path / "jobs.db")


class Shop:
    """A queue on a shaky store, and a client that repeats what was not answered."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = FaultyStore(store, SHAKY, seed=seed)
        self.chance = random.Random(seed)  # noqa: S311  # seeded faults, no secrets
        self.runs: dict[str, int] = {}
        self.jobs = AsyncJobs(
            self.store,
            clock=LoopClock(),
            settings=SEDATE,
            policy=Policy(retention=None, timeout=None, max_deliveries=9),
        )
        self.jobs.handler("order", retry=Retry(max_attempts=3))(self.order)

    async def order(self, number: str, job: JobContext) -> str:
        self.runs[number] = self.runs.get(number, 0) + 1
        async for _ in job.track(range(3)):
            await anyio.sleep(self.chance.random())
        return f"{number} by {job.fence}"

    async def ask_for(self, number: str) -> Job:
        """Repeat under one key, as a client does that hears nothing, or 503."""
        while True:
            try:
                return await self.jobs.enqueue("order", number, idempotency_key=number)
            except StoreUnavailable:
                await anyio.sleep(1)

    async def ended(self, job_id: JobId) -> Job:
        while True:
            try:
                return await self.jobs.wait(job_id)
            except StoreUnavailable:
                await anyio.sleep(1)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_repeated_under_its_key_ends_once_and_makes_no_twin(
    make_store: Callable[[], Store], seed: int
) -> None:
    shop = Shop(make_store(), seed)
    ends: dict[str, Job] = {}

    async def order(number: str) -> None:
        await anyio.sleep(60 * shop.chance.random())
        job = await shop.ask_for(number)
        ends[number] = await shop.ended(job.id)

    async def run() -> list[Job]:
        with anyio.fail_after(24 * 3600):
            async with shop.jobs:
                async with anyio.create_task_group() as clients:
                    for number in range(KEYS):
                        clients.start_soon(order, str(number))
                shop.store.faults = Faults()
                page = await shop.jobs.list(Selection(), limit=9 * KEYS)
                return [await shop.jobs.find(job.id) for job in page.jobs]

    stored = run_with(shop.store.store, run)
    assert sorted(ends) == sorted(str(number) for number in range(KEYS))
    assert {job.id for job in stored} == {job.id for job in ends.values()}
    assert len(stored) == KEYS
    for job in stored:
        assert job.status is JobStatus.COMPLETED
        assert job.result == f"{job.payload} by {job.attempt}"
        assert ends[str(job.payload)] == job
    fates = [call.fate for call in shop.store.calls]
    assert min(fates.count(Fate.NOT_DONE), fates.count(Fate.ANSWER_LOST)) > 2


def run_with(store: Store, run: Callable[[], Awaitable[T]]) -> T:
    """Run with a clock that jumps; with one that hurries, where a store's threads must keep up."""
    memory = isinstance(store, MemoryStore)
    clock = MockClock(autojump_threshold=0) if memory else MockClock(rate=100)
    return anyio.run(run, backend="trio", backend_options={"clock": clock})


def test_an_enqueue_whose_answer_is_lost_is_found_again_by_its_key() -> None:
    shop = Shop(MemoryStore(), 0)

    async def run() -> None:
        async with shop.jobs:
            shop.store.faults = Faults(after=1, only=["insert"])
            with pytest.raises(StoreUnavailable):
                await shop.jobs.enqueue("order", "7", idempotency_key="7")
            shop.store.faults = Faults()
            again = await shop.jobs.enqueue("order", "7", idempotency_key="7")
            await shop.jobs.wait(again.id)
            assert len((await shop.jobs.list(Selection())).jobs) == 1

    run_with(shop.store.store, run)
    assert shop.runs == {"7": 1}
