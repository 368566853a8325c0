"""Part `growth`: calls of a store with more and more jobs, and with more and more workers.

Calls of the growing store and of a store with a thousand jobs take turns: the ratio of the two is
the cost of the size, whatever else the machine does.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from asyncjobs import AsyncJobs
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobId, Lease, new_job_id
from asyncjobs.testing import sample_job
from benchmarks import stamps
from benchmarks.measuring import many, until
from benchmarks.places import Place
from benchmarks.processes import Process
from benchmarks.running import Run
from benchmarks.sides.ours import Ours

STORES = ("sqlite", "postgres", "redis")
SMALL = 1000
STORED = (1000, 10_000, 100_000, 1_000_000)
WAITING = (1000, 10_000, 100_000)
PROCESSES = (1, 2, 4)
#: Jobs that wait beside stored ones.
BESIDE = 500
BATCH = 50

Make = Callable[[JobId], Job]


def measure(run: Run) -> None:
    for store in STORES[:1] if run.quick else STORES:
        for kind, make, sizes in (("stored", ended, STORED), ("waiting", waiting, WAITING)):
            with (
                run.attempt(f"{store}, {kind}"),
                run.servers.place(store) as one,
                run.servers.place(store) as other,
            ):
                wanted = (200, 400) if run.quick else sizes
                growing = Growing(run, f"{store}, {kind}", make, wanted)
                asyncio.run(growing.measure(url(one, store, "a"), url(other, store, "b")))
    for _ in range(run.rounds):
        for store in STORES[:1] if run.quick else STORES:
            for number in PROCESSES[:2] if run.quick else PROCESSES:
                with run.attempt(f"{store}, {number}"), run.servers.place(store) as place:
                    rate = asyncio.run(drained(place, store, number, 200 if run.quick else 20_000))
                    found = {"drain [jobs/s]": rate}
                    run.figures.add("growth", f"{store}, processes", str(number), found)


def url(place: Place, store: str, namespace: str) -> str:
    found = place.store(store)
    return f"{found}?namespace={namespace}" if store == "redis" else found


# jobs


def ended(job_id: JobId) -> Job:
    """Make a job that has completed and is kept for a day."""
    now = datetime.now(UTC)
    job = sample_job(id=job_id, created_at=now)
    lease = Lease(worker="benchmark", token="t", until=now + timedelta(seconds=30))
    return lifecycle.complete(lifecycle.start(job, now, lease), now, token="t", result=b"1")


def waiting(job_id: JobId) -> Job:
    """Make a job that is due."""
    return sample_job(id=job_id, created_at=datetime.now(UTC))


class Heap:
    """A store with jobs, and the measured calls."""

    def __init__(self, queue: AsyncJobs) -> None:
        self._queue = queue
        self._ids: list[JobId] = []
        self._turn = 0

    async def fill(self, make: Make, size: int) -> None:
        while len(self._ids) < size:
            ids = [new_job_id() for _ in range(min(1000, size - len(self._ids)))]
            await self._queue.store.insert([make(one) for one in ids])
            self._ids += ids

    async def add_waiting(self, count: int) -> None:
        """Add waiting jobs; the position of the last one is measured."""
        jobs = [waiting(new_job_id()) for _ in range(count)]
        await self._queue.store.insert(jobs)
        self._last = jobs[-1]

    async def read(self, number: int) -> None:
        self._turn += 7919  # spread over the store, like the jobs of clients
        size = len(self._ids)
        ids = [self._ids[(self._turn + place * size // number) % size] for place in range(number)]
        assert None not in await self._queue.store.get(ids)

    async def take(self, number: int) -> None:
        now = datetime.now(UTC)  # taken jobs are due again at once, behind the others
        taken = await self._queue.store.take(["default"], now=now, until=now, limit=number)
        assert len(taken) == number

    async def position(self) -> None:
        await self._queue.position(self._last)

    def calls(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "read 1": lambda: self.read(1),
            f"read {BATCH}": lambda: self.read(BATCH),
            "take 1": lambda: self.take(1),
            f"take {BATCH}": lambda: self.take(BATCH),
            "position of the last": self.position,
        }


class Growing:
    """A store that is filled step by step, beside a small one."""

    def __init__(self, run: Run, subject: str, make: Make, sizes: tuple[int, ...]) -> None:
        self._run = run
        self._subject = subject
        self._make = make
        self._sizes = sizes

    async def measure(self, small_url: str, large_url: str) -> None:
        turns = 5 if self._run.quick else 200
        small_queue = AsyncJobs(small_url, dispatcher="worker")
        large_queue = AsyncJobs(large_url, dispatcher="worker")
        async with small_queue, large_queue:
            small, large = Heap(small_queue), Heap(large_queue)
            await small.fill(self._make, self._sizes[0])
            for size in self._sizes:
                await large.fill(self._make, size)
                if size == self._sizes[0]:
                    await small.add_waiting(BESIDE)
                    await large.add_waiting(BESIDE)
                elif self._make is waiting:
                    await large.add_waiting(1)
                settle(small_url)
                settle(large_url)
                found: dict[str, float] = {}
                for name, call in large.calls().items():
                    taken = await _in_turns(call, small.calls()[name], turns)
                    found[f"{name} [ms]"] = taken[0]
                    found[f"{name}, of {SMALL} [ratio]"] = taken[0] / taken[1]
                self._run.figures.add("growth", self._subject, str(size), found)


def settle(store: str) -> None:
    """Do at once what PostgreSQL's autovacuum does a while after many inserts."""
    if store.startswith("postgresql:"):
        with psycopg.connect(store, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


async def _in_turns(
    one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]], turns: int
) -> list[float]:
    """Return the median duration of each call, in milliseconds."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for call, times in zip((one, other), taken, strict=True):
            begun = time.perf_counter()
            await call()
            times.append(1000 * (time.perf_counter() - begun))
    return [statistics.median(times) for times in taken]


# processes


async def drained(place: Place, store: str, processes: int, count: int) -> float:
    """Return how many jobs per second this many worker processes run.

    The first quarter of the jobs does not count: not all processes have started by then.
    """
    stamps.use(Path(place.folder) / "stamps")
    side = Ours(place, store, "worker")
    async with side.opened():
        await many(side.submit, count)
    with ExitStack() as stack:
        workers = [stack.enter_context(Process(side.worker(), place)) for _ in range(processes)]

        def check() -> None:
            for one in workers:
                one.check()

        await until(lambda: stamps.count() >= count, check, 120)
    moments = stamps.read()
    begun = moments[count // 4]
    return (count - count // 4) / (moments[count - 1] - begun)
