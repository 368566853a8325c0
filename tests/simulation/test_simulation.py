"""Hours of operation with seeded faults, in seconds: lost connections, kills, failed calls.

Trio's clock jumps to the next event, so leases, timeouts and deadlines have their real lengths. The
invariants are checked on every write of every process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, JobStatus, Policy, Retry, Settings
from asyncjobs.core.job import Job, JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, LoopClock
from tests.queues import simulated

JOBS = 60

# The machine has to execute each poll; the leases keep their length.
SEDATE = Settings(
    poll_interval=timedelta(seconds=10),
    sweep_interval=timedelta(seconds=15),
    progress_interval=timedelta(seconds=5),
)
PROCESSES = 3
HOUR = 3600.0

USUAL = Faults(delay=0.02)
SHAKY = Faults(before=0.05, after=0.05, delay=0.02)
CUT = Faults(before=1, after=1, delay=0.02)


class History(MemoryStore):
    """Keeps every state that was ever written."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[JobId, list[Job]] = {}

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        stored = await super().insert(jobs)
        for job in stored:
            self.states.setdefault(job.id, [job])
        return stored

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        written = await super().replace(changes)
        for change, done in zip(changes, written, strict=True):
            if done:
                self.states[change.job.id].append(change.job)
        return written


class World:
    """A store, and processes that come and go."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311  # seeded faults, no secrets
        self.store = History()
        self.accepted: list[JobId] = []

    def process(self) -> tuple[AsyncJobs, FaultyStore]:
        """Make one process, with the application's handlers and its own connection."""
        line = FaultyStore(self.store, USUAL, seed=self.chance.getrandbits(32))
        jobs = AsyncJobs(
            line,
            clock=LoopClock(),
            settings=SEDATE,
            dispatcher=LocalDispatcher(concurrency=4),
            policy=Policy(retention=None, deadline=timedelta(hours=6)),
        )
        self.register(jobs)
        return jobs, line

    def register(self, jobs: AsyncJobs) -> None:
        @jobs.handler("work", timeout=1800, retry=Retry(max_attempts=3))
        async def work(seconds: float, job: JobContext) -> int:
            async for _ in job.track(range(10)):
                await anyio.sleep(seconds / 10)
            if self.chance.random() < 0.2:
                raise OSError("it happens")
            return job.fence

    async def submit(self) -> None:
        """Act as the clients: submit now and then, cancel some."""
        jobs, _ = self.process()
        async with jobs:
            for _ in range(JOBS):
                await anyio.sleep(self.chance.expovariate(1 / 30))
                seconds = self.chance.choice([0.1, 5, 60, 600, 2400])
                late = EnqueueOptions(run_at=timedelta(seconds=self.chance.choice([0, 0, 90])))
                job = await jobs.enqueue("work", seconds, options=late)
                self.accepted.append(job.id)
                if self.chance.random() < 0.15:
                    await jobs.cancel(self.chance.choice(self.accepted))

    async def live_and_die(self) -> None:
        """Act as one machine: its processes work for a while and end in one way or another."""
        while True:
            jobs, line = self.process()
            line.faults = self.chance.choice([USUAL, USUAL, SHAKY])
            async with jobs:
                await anyio.sleep(self.chance.uniform(60, 2400))
                if self.chance.random() < 0.5:
                    line.faults = CUT  # killed, rather than shut down


@pytest.mark.parametrize("seed", range(3))
def test_every_accepted_job_ends_once_under_faults(seed: int) -> None:
    world = World(seed)

    async def simulate() -> None:
        with anyio.fail_after(48 * HOUR):
            async with anyio.create_task_group() as machines:
                for _ in range(PROCESSES):
                    machines.start_soon(world.live_and_die)
                await world.submit()
                await settled(world.store)
                machines.cancel_scope.cancel()

    simulated(simulate)
    assert len(world.accepted) == JOBS
    for job_id in world.accepted:
        check(world.store.states[job_id])


async def settled(store: History) -> None:
    """Wait until every job has ended, and then some time in which nothing may change."""
    while not all(states[-1].status.terminal for states in store.states.values()):  # noqa: ASYNC110
        await anyio.sleep(60)
    await anyio.sleep(HOUR)


def check(states: list[Job]) -> None:
    """Check all states of one job."""
    end = states[-1]
    assert end.status.terminal
    assert [job.status.terminal for job in states].count(True) == 1
    versions = [job.version for job in states]
    assert all(after - before in {0, 1} for before, after in pairwise(versions))
    assert end.failures < end.retry.max_attempts
    assert end.losses <= end.max_deliveries
    assert end.completed_at is not None
    assert end.completed_at <= end.deadline + timedelta(minutes=1)
    if end.status is JobStatus.COMPLETED:
        # The outcome must be that of the attempt that held the lease when it was written.
        assert end.result == end.attempt == states[-2].attempt


def test_the_check_detects_broken_histories() -> None:
    world = World(0)

    async def lose_one() -> None:
        jobs, _ = world.process()
        async with jobs:
            later = EnqueueOptions(run_at=timedelta(seconds=1))  # so it is stored as pending
            job = await jobs.enqueue("work", 0.1, options=later)
            await jobs.wait(job.id)

    simulated(lose_one)
    [states] = world.store.states.values()
    check(states)
    twice = states[-1].model_copy(update={"revision": 99, "result_json": b"2"})
    for broken in ([*states, twice], states[:-1], [states[0], states[-1]]):
        with pytest.raises(AssertionError):
            check(broken)
