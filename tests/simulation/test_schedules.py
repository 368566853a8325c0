"""A day of schedules in simulated time, while processes are killed and their calls fail.

In another one, their records are removed again and again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, Policy, Settings
from asyncjobs.core.schedules import record_id
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, LoopClock
from tests.queues import simulated

# The machine has to execute each poll; holds keep their length.
SEDATE = Settings(poll_interval=timedelta(seconds=60), sweep_interval=timedelta(seconds=20))
PROCESSES = 3
HOURS = 24
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)

USUAL = Faults(delay=0.02)
SHAKY = Faults(before=0.05, after=0.05, delay=0.02)
CUT = Faults(before=1, after=1, delay=0.02)


class Inserted(MemoryStore):
    """Keeps every job that was ever inserted, also after its deletion."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks: Counter[tuple[str, datetime]] = Counter()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        stored = await super().insert(jobs)
        for job, found in zip(jobs, stored, strict=True):
            if job.id == found.id and job.scheduled_at is not None:
                self.ticks[job.tags[0], job.scheduled_at] += 1
        return stored


def process(store: MemoryStore, chance: random.Random) -> tuple[AsyncJobs, FaultyStore]:
    """Make one process of an application with three schedules."""
    line = FaultyStore(store, USUAL, seed=chance.getrandbits(32))
    jobs = AsyncJobs(
        line, clock=LoopClock(), settings=SEDATE, dispatcher=LocalDispatcher(concurrency=4)
    )

    async def work(job: JobContext) -> str:
        await anyio.sleep(chance.choice([0, 5]))
        return str(job.scheduled_at)

    kept = jobs.handler("kept")(work)
    brief = jobs.handler("brief", policy=Policy(retention=0))(work)
    ten = timedelta(minutes=10)
    jobs.schedule("kept", kept, every=ten, missed="once", options=EnqueueOptions(tags=["kept"]))
    jobs.schedule(
        "brief", brief, cron="*/10 * * * *", missed="once", options=EnqueueOptions(tags=["brief"])
    )
    seven = timedelta(minutes=7)
    jobs.schedule("often", kept, every=seven, options=EnqueueOptions(tags=["often"]))
    return jobs, line


def simulated_day(seed: int, *, removing: bool = False) -> Inserted:
    """Return the store after a day."""
    chance, store = random.Random(seed), Inserted()  # noqa: S311  # seeded faults, no secrets

    async def remove() -> None:
        while removing:
            # Many removals are at a tick.
            await anyio.sleep_until(
                600 * chance.randrange(1, 8)
                + anyio.current_time() // 600 * 600
                + chance.choice([0, 0.01, 0.03, 0.05, 0.1, chance.uniform(0, 600)])
            )
            await store.delete([record_id(name) for name in ("kept", "brief", "often")])

    async def live_and_die() -> None:
        while True:
            jobs, line = process(store, chance)
            line.faults = chance.choice([USUAL, USUAL, SHAKY])
            async with jobs:
                # Many ends are at a tick.
                await anyio.sleep_until(
                    600 * chance.randrange(1, 4)
                    + anyio.current_time() // 600 * 600
                    + chance.choice([0, 0.01, 0.02, 0.05, chance.uniform(0, 600)])
                )
                if chance.random() < 0.7:
                    line.faults = CUT  # killed, rather than shut down

    async def simulate() -> None:
        async with anyio.create_task_group() as machines:
            for _ in range(PROCESSES):
                machines.start_soon(live_and_die)
            machines.start_soon(remove)
            await anyio.sleep(HOURS * 3600 + 300)
            machines.cancel_scope.cancel()

    simulated(simulate)
    return store


@pytest.mark.parametrize("seed", range(1))
def test_each_tick_of_a_day_has_one_job_under_faults(seed: int) -> None:
    store = simulated_day(seed)
    assert set(store.ticks.values()) == {1}
    ticks = [BEGIN + number * timedelta(minutes=10) for number in range(1, 6 * HOURS + 1)]
    assert [tick for tick in ticks if ("kept", tick) not in store.ticks] == []
    # A job without retention is not enqueued again if its process may have stored it.
    assert len([tick for tick in ticks if ("brief", tick) in store.ticks]) > len(ticks) / 2
    assert any(name == "often" for name, _ in store.ticks)


@pytest.mark.parametrize("seed", range(1))
def test_no_tick_has_two_jobs_although_its_schedule_is_removed_again_and_again(seed: int) -> None:
    store = simulated_day(seed, removing=True)
    assert set(store.ticks.values()) == {1}
    for name in ("kept", "brief", "often"):
        # A removal costs the tick at that moment at most, and of those of a dead process one more.
        assert len([tick for one, tick in store.ticks if one == name]) > 6 * HOURS / 2
