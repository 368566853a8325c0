"""Part `features`: jobs with a title, tags, a batch, a file or a schedule, beside plain jobs.

Jobs are accepted while no handler runs, then run in the same process. All kinds of jobs take turns
on the same store: a ratio is that of two turns of the same round.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, JobId, JobStatus
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.testing import ManualClock
from benchmarks.jobs import BATCH, PATIENCE_SECONDS
from benchmarks.measuring import many
from benchmarks.places import Place
from benchmarks.running import Run
from benchmarks.sides.catalogue import STORES
from benchmarks.sides.side import CONCURRENCY, PAYLOAD, RESULT

JOBS = 1500
#: The jobs of a turn whose jobs save a file.
SAVING = 500
#: The jobs of a turn whose jobs are accepted one after another: each waits for the disk.
ALONE = 200
#: The schedules that are due at the same time.
SCHEDULES = 20
#: The rounds of the part, per round of the run.
TURNS = 3
CONTENT = b"x" * 1024
METADATA = {"customer": "c-1042", "rows": 1200, "format": "csv"}

PLAIN = "plain"
MANY = f"plain, {BATCH} in a call"
SINGLE = "plain, one after another"

#: Accepts a number of jobs.
Accept = Callable[[AsyncJobs, int], Awaitable[object]]


def enqueued(options: Callable[[int], EnqueueOptions | None]) -> Accept:
    """Let a hundred callers enqueue jobs, whose options depend on their number."""

    async def accept(jobs: AsyncJobs, count: int) -> None:
        begun = 0

        async def call() -> None:
            nonlocal begun
            begun += 1
            await jobs.enqueue("noop", PAYLOAD, options=options(begun))

        await many(call, count)

    return accept


def without(_number: int) -> None:
    return None


def titled(number: int) -> EnqueueOptions:
    return EnqueueOptions(title=f"Export {number}", metadata=METADATA)


def tagged(number: int) -> EnqueueOptions:
    return EnqueueOptions(tags=("export", "monthly", f"customer:{number % 10}"))


async def in_calls(jobs: AsyncJobs, count: int) -> None:
    for begun in range(0, count, BATCH):
        await jobs.enqueue_many("noop", [PAYLOAD] * min(BATCH, count - begun))


async def in_a_batch(jobs: AsyncJobs, count: int) -> None:
    await jobs.enqueue_batch("noop", [PAYLOAD] * count)


async def one_by_one(jobs: AsyncJobs, count: int) -> None:
    for _ in range(count):
        await jobs.enqueue("noop", PAYLOAD)


async def by_ticks(jobs: AsyncJobs, count: int) -> None:
    """Move the clock of a queue that is used by hand from tick to tick."""
    clock = jobs.clock
    assert isinstance(clock, ManualClock)
    for _ in range(count // SCHEDULES):
        clock.advance(timedelta(seconds=1))
        assert len(await jobs.enqueue_ticks()) == SCHEDULES


@dataclass(frozen=True)
class Kind:
    """A kind of jobs: how they are accepted, what shows that they are of the kind."""

    accept: Accept
    shows: Callable[[Job], bool] = lambda _: True
    #: The kind of plain jobs with which it is compared.
    beside: str = PLAIN
    jobs: int = JOBS
    #: Whether the queue has a file storage and a schedule.
    equipped: bool = False
    saves_a_file: bool = False
    by_ticks: bool = False


KINDS = {
    PLAIN: Kind(enqueued(without)),
    "plain, on a queue with files and a schedule": Kind(enqueued(without), equipped=True),
    "title and metadata": Kind(
        enqueued(titled), lambda job: job.title is not None and job.metadata == METADATA
    ),
    "3 tags": Kind(enqueued(tagged), lambda job: len(job.tags) == 3),
    "a file of 1 KiB": Kind(
        enqueued(without),
        lambda job: [file.size for file in job.files] == [len(CONTENT)],
        jobs=SAVING,
        equipped=True,
        saves_a_file=True,
    ),
    MANY: Kind(in_calls, beside=MANY),
    "in a batch": Kind(in_a_batch, lambda job: job.batch is not None, beside=MANY),
    SINGLE: Kind(one_by_one, beside=SINGLE, jobs=ALONE),
    "by the tick of a schedule": Kind(
        by_ticks,
        lambda job: job.scheduled_at is not None,
        beside=SINGLE,
        jobs=ALONE,
        by_ticks=True,
    ),
}


def measure(run: Run) -> None:
    for store in STORES[:2] if run.quick else STORES:
        with run.attempt(f"features, {store}"):
            for number in range(1 if run.quick else run.rounds * TURNS):
                with run.servers.place(store) as place:
                    asyncio.run(take_turns(run, store, place, number))


async def take_turns(run: Run, store: str, place: Place, number: int) -> None:
    """Measure each kind once, in the opposite order in every other round."""
    if not run.quick:  # the first jobs open connections and load modules
        await Turn(place, store, KINDS[PLAIN]).measured(ALONE)
    names = list(KINDS)
    for name in names if number % 2 == 0 else reversed(names):
        kind = KINDS[name]
        found = await Turn(place, store, kind).measured(SCHEDULES if run.quick else kind.jobs)
        run.figures.add("features", store, name, found)


class Turn:
    """A queue that accepts and runs jobs of one kind."""

    def __init__(self, place: Place, store: str, kind: Kind) -> None:
        self._kind = kind
        self._ran: list[JobId] = []
        self._all_ran = anyio.Event()
        self._count = 0
        files = Path(place.folder) / "files" if kind.equipped else None
        dispatcher = LocalDispatcher(CONCURRENCY)
        self._jobs = AsyncJobs(place.store(store), dispatcher=dispatcher, files=files)
        self._jobs.handler("noop")(self._noop)
        if kind.equipped:
            self._jobs.schedule("nightly", "noop", PAYLOAD, every=timedelta(days=1))

    async def _noop(self, _payload: dict[str, int], job: JobContext) -> int:
        if self._kind.saves_a_file:
            await job.save_file("export.csv", CONTENT)
        self._ran.append(job.id)
        if len(self._ran) == self._count:
            self._all_ran.set()
        return RESULT

    async def measured(self, count: int) -> dict[str, float]:
        self._count = count
        accepted = await self._accepted_by_hand() if self._kind.by_ticks else None
        async with self._jobs.open(run_handlers="later"):
            if accepted is None:
                accepted = await self._accepted()
            ran = await _taken(self._run)
            await self._check()
        return {
            "accepted [jobs/s]": count / accepted[0],
            "run [jobs/s]": count / ran[0],
            "CPU of a job [us]": 1e6 * (accepted[1] + ran[1]) / count,
        }

    async def _accepted(self) -> tuple[float, float]:
        return await _taken(lambda: self._kind.accept(self._jobs, self._count))

    async def _accepted_by_hand(self) -> tuple[float, float]:
        # All ticks are in the past: the jobs are due when the handlers start.
        clock = ManualClock(datetime.now(UTC) - timedelta(minutes=5))
        with self._jobs.using(self._jobs.store, clock=clock):
            async with self._jobs as jobs:
                for number in range(SCHEDULES):
                    jobs.schedule(f"schedule-{number}", "noop", PAYLOAD, every=1)
                await jobs.enqueue_ticks()  # stores the records
                taken = await self._accepted()
        # In real time they are due every second, which would add jobs while these run.
        self._jobs.declared_schedules.clear()
        return taken

    async def _run(self) -> None:
        await self._jobs.start_handlers()
        with anyio.fail_after(PATIENCE_SECONDS):
            await self._all_ran.wait()
            await self._jobs.drain()

    async def _check(self) -> None:
        """Check that each job has run once, and some of the jobs in the store."""
        assert len({*self._ran}) == len(self._ran) == self._count
        for job_id in self._ran[-20:]:
            job = await self._jobs.get(job_id)
            assert job is not None, job_id
            assert job.status is JobStatus.COMPLETED, job
            assert self._kind.shows(job), job


async def _taken(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the seconds of a call, and those of this process on a processor."""
    gc.collect()  # not during the call, because of what the turn before has left
    cpu, begun = time.process_time(), time.perf_counter()
    await call()
    return time.perf_counter() - begun, time.process_time() - cpu
