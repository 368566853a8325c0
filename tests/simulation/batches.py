"""Storms over batches: users submit, extend and cancel batches, and machines fail meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from asyncjobs import BatchHandle, EnqueueOptions, Job, JobStatus
from asyncjobs.core.job import JobId
from asyncjobs.core.labels import Tally
from asyncjobs.protocols import ChangeNotices, Listing, Page, Selection, Store, Tallies
from asyncjobs.stores.memory import MemoryStore
from tests.simulation.handlers import Errand
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import STORMY_SECONDS, Ledger, Line, World

BATCHES = 5


@dataclass
class Wish:
    """What a user asked for: how many jobs a batch must have, unless an answer was lost."""

    batch: JobId
    least: int
    most: int
    cancelled: bool = False
    jobs: list[Job] = field(default_factory=list[Job])


class CountingLine(Line):
    """A connection to a store that lists and counts jobs."""

    powers: frozenset[type] = frozenset({ChangeNotices, Listing, Tallies})
    filters: frozenset[str] = frozenset({"user_id", "type", "status", "tag", "batch"})

    def __init__(self, world: World, notes: Ledger) -> None:
        super().__init__(world, notes)
        assert isinstance(world.store, MemoryStore)
        self._all = world.store

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await self._carry(lambda: self._all.list(which, limit=limit, after=after))

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        return await self._carry(lambda: self._all.count_before(job, until=until, most=most))

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return await self._carry(lambda: self._all.first_due(lanes))

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        return await self._carry(lambda: self._all.tally(labels))


class BatchWorld(World):
    """A world whose users submit batches instead of jobs."""

    connection = CountingLine

    def __init__(self, loop: SimulatedLoop, store: Store, seed: int) -> None:
        super().__init__(loop, store, seed)
        self.wishes: list[Wish] = []

    async def _use(self, key: str) -> None:
        """Submit a batch like a client: repeat it under its key until there is an answer."""
        if int(key.removeprefix("key ")) >= BATCHES:
            return
        await asyncio.sleep(self.chance.uniform(0, STORMY_SECONDS * 0.6))
        errands = [self._errand() for _ in range(self.chance.choice([1, 3, 12]))]
        payloads = [what for kind, what in errands if kind == "brief"]
        options = EnqueueOptions(
            run_at=self.chance.choice([None, None, 30]),
            deadline=self.chance.choice([None, None, None, 100]),
        )
        batch: BatchHandle | None = None
        while batch is None:
            if machine := self._machine():
                enqueue = partial(machine.jobs.enqueue_batch, "brief", payloads)
                answer = await machine.answer(
                    partial(enqueue, idempotency_key=key, options=options)
                )
                batch = answer if isinstance(answer, BatchHandle) else None
            if batch is None:
                await asyncio.sleep(self.chance.uniform(0.1, 5))
        self.accepted.append(batch.id)
        wish = Wish(batch.id, len(payloads), len(payloads))
        self.wishes.append(wish)
        await asyncio.sleep(self.chance.choice([0, 1, 20]))
        match self.chance.choice(["leave", "add", "add", "cancel", "follow"]):
            case "add":
                await self._add(wish)
            case "cancel":
                if machine := self._machine():
                    wish.cancelled = True
                    await machine.answer(lambda: machine.jobs.cancel(wish.batch))
            case "follow":
                await self._follow(wish.batch)
            case _:
                pass

    async def _add(self, wish: Wish) -> None:
        machine = self._machine()
        if machine is None:
            return
        more = [Errand(seconds=self.chance.choice([0, 5]))] * self.chance.choice([1, 4])
        wish.most += len(more)
        answer = await machine.answer(lambda: machine.jobs.add_to_batch(wish.batch, "brief", more))
        if isinstance(answer, Job):
            wish.least += len(more)

    async def _wait_for_ends(self) -> None:
        """Wait for the batches and for all of their jobs, and judge the numbers."""
        await super()._wait_for_ends()
        for wish in self.wishes:
            wish.jobs = await self._jobs_of(wish.batch)
            while not all(job.status.terminal for job in wish.jobs):
                await asyncio.sleep(5)
                wish.jobs = await self._jobs_of(wish.batch)
            [batch] = await self.store.get([wish.batch])
            assert batch is not None
            for words in _wrongs(batch, wish):
                self.notes.write("wrong", words=f"batch {wish.batch}: {words}")

    async def _jobs_of(self, batch: JobId) -> list[Job]:
        listing = self.store
        assert isinstance(listing, Listing)
        found: list[Job] = []
        after: str | None = None
        while True:
            page = await listing.list(Selection(batch=batch), limit=100, after=after)
            found += page.jobs
            if (after := page.next) is None:
                return found


def _wrongs(batch: Job, wish: Wish) -> list[str]:
    """Return what is wrong with the numbers of an ended batch."""
    counts = batch.counts
    assert counts is not None
    wrong: list[str] = []
    found = Counter(job.status for job in wish.jobs)
    numbers = {status: getattr(counts, status) for status in JobStatus}
    if numbers != {status: found.get(status, 0) for status in JobStatus}:
        wrong.append(f"it counts {numbers}, but there are {dict(found)}")
    if not wish.least <= counts.total <= wish.most:
        wrong.append(f"it has {counts.total} jobs, not {wish.least} to {wish.most}")
    if counts.stored < wish.least:
        wrong.append(f"{wish.least} jobs were accepted, but {counts.stored} are stored")
    incomplete = batch.error is not None and batch.error.code == "batch_incomplete"
    if incomplete == (counts.stored == counts.total) and not wish.cancelled:
        wrong.append(f"it is incomplete={incomplete} with {counts.stored} of {counts.total} jobs")
    if (batch.status is JobStatus.COMPLETED) != (counts.completed == counts.total):
        wrong.append(f"it is {batch.status} with {numbers}")
    if batch.status is JobStatus.CANCELLED and not wish.cancelled:
        wrong.append("it was cancelled by itself")
    return wrong
