"""Deadlines in unserved lanes: which process checks them, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, Policy, Settings
from asyncjobs.core.job import JobId, suspects_lane
from asyncjobs.core.lifecycle import DEADLINE_EXCEEDED
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import FaultyStore, LoopClock, sample_job
from tests.queues import simulated

SWEEP = timedelta(seconds=5)
MINUTE = timedelta(minutes=1)


class Looking(FaultyStore):
    """Records which lanes were searched for jobs due for at least a minute, and when."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.looks: list[tuple[float, set[str]]] = []

    @property
    def later_looks(self) -> list[tuple[float, set[str]]]:
        """Return these without the first one, which precedes all takes of the process."""
        return [look for look in self.looks if look[0] > 0]

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        if LoopClock().now() - now == MINUTE:
            self.looks.append((anyio.current_time(), set(lanes)))
        return await super().take(lanes, now=now, until=until, limit=limit)


def queue_on(store: Any) -> AsyncJobs:
    """Make a queue with handlers in two lanes."""
    settings = Settings(sweep_interval=SWEEP, redelivery=timedelta(hours=3), grace=0)
    jobs = AsyncJobs(store, clock=LoopClock(), settings=settings)

    @jobs.handler("mine", policy=Policy(queue="mine", timeout=None))
    async def mine(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    @jobs.handler("theirs", policy=Policy(queue="theirs"))
    async def theirs(_none: None, _job: JobContext) -> None: ...

    return jobs


def with_suspects(*queues: str) -> set[str]:
    return {*queues, *map(suspects_lane, queues)}


async def stored(store: Any, job_id: JobId) -> Job:
    """Return a job as it is stored: readers would repair it."""
    [job] = await store.get([job_id])
    assert isinstance(job, Job)
    return job


@pytest.mark.parametrize("losses", [0, 2], ids=["queue", "suspects"])
def test_an_overdue_job_in_an_unserved_lane_fails_without_a_read(losses: int) -> None:
    async def work() -> None:
        store = MemoryStore()
        jobs = queue_on(store)
        async with jobs.as_worker(queues=["mine"]):
            await anyio.sleep(90)  # after the first search
            job = sample_job(
                type="theirs",
                queue="theirs",
                payload_json=b"null",
                created_at=jobs.clock.now(),
                deadline=jobs.clock.now() + timedelta(minutes=5),
            )
            lane = suspects_lane("theirs") if losses else "theirs"
            job = job.changed(losses=losses, lane=lane)
            await store.insert([job])
            await anyio.sleep(7 * 60 + 10)
        assert (await stored(store, job.id)).error == DEADLINE_EXCEEDED

    simulated(work)


def test_a_process_checks_unserved_lanes_once_a_minute() -> None:
    async def work() -> None:
        store = Looking()
        async with queue_on(store).as_worker(queues=["mine"]):
            await anyio.sleep(190)
        assert [moment for moment, _ in store.later_looks] == pytest.approx([60, 120, 180])
        assert [lanes for _, lanes in store.later_looks] == [with_suspects("theirs")] * 3

    simulated(work)


def test_a_process_that_serves_every_lane_checks_no_other_lane() -> None:
    async def work() -> None:
        store = Looking()
        async with queue_on(store):
            await anyio.sleep(190)
        assert store.later_looks == []

    simulated(work)


def test_a_process_without_a_worker_checks_every_lane() -> None:
    async def work() -> None:
        store = Looking()
        jobs = queue_on(store)
        await jobs.open(run_handlers=False)
        await anyio.sleep(70)
        await jobs.close()
        assert [lanes for _, lanes in store.looks] == [with_suspects("mine", "theirs")] * 2

    simulated(work)


def test_a_worker_that_is_busy_for_a_minute_checks_its_own_lanes() -> None:
    async def work() -> None:
        store = Looking()
        jobs = queue_on(store)
        async with jobs.as_worker(concurrency=1, queues=["mine"]):
            running, waiting = [await jobs.enqueue("mine", None) for _ in range(2)]
            late = await jobs.enqueue("mine", None, options=EnqueueOptions(deadline=90))
            await anyio.sleep(200)
            assert store.looks[-1][1] == with_suspects("mine", "theirs")
            assert (await stored(store, late.id)).error == DEADLINE_EXCEEDED
            assert (await stored(store, running.id)).error is None
            assert (await stored(store, waiting.id)).error is None

    simulated(work)
