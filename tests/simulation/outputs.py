"""Storms over output: handlers emit, readers follow on several machines, and machines fail."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise

from pydantic import BaseModel

from asyncjobs import EnqueueOptions, JobContext, JobHandle, JobStatus, OutputItem, Retry
from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import (
    Append,
    Appended,
    OutputPart,
    ReadFrom,
    StreamInfo,
    StreamKind,
    numbered_items,
)
from asyncjobs.protocols import ChangeNotices, OutputStreams, Store
from asyncjobs.stores.memory import MemoryStore
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import STORMY_SECONDS, Ledger, Line, Machine, World

TALKS = 6
_EVERYTHING = 10**9


class Talk(BaseModel):
    """How many items a handler emits, how long it rests after each, how often it raises."""

    items: int
    rest: float
    failures: int = 0


class StreamingLine(Line):
    """A connection to a store that keeps output."""

    powers: frozenset[type] = frozenset({ChangeNotices, OutputStreams})

    def __init__(self, world: World, notes: Ledger) -> None:
        super().__init__(world, notes)
        assert isinstance(world.store, MemoryStore)
        self._all = world.store

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        ids = [one.job_id for one in appends]
        return await self._write(ids, lambda: self._all.append(appends))

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await self._carry(lambda: self._all.begin_epoch(job_id, epoch))

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        return await self._carry(lambda: self._all.read_output(reads))

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        return await self._carry(lambda: self._all.outputs(ids))


class OutputWorld(World):
    """A world whose users submit jobs that emit, and read what they emit."""

    connection = StreamingLine

    def __init__(self, loop: SimulatedLoop, store: Store, seed: int) -> None:
        super().__init__(loop, store, seed)
        # For each job the items, of attempt and number, whose `emit` returned when it was stored.
        self._acknowledged: dict[JobId, list[list[int]]] = defaultdict(list)
        self._talks: dict[JobId, Talk] = {}
        self._seen: list[tuple[JobId, list[OutputItem], bool]] = []

    async def _open(self, machine: Machine) -> None:
        if "talk" not in machine.jobs.registry:
            retry = Retry(max_attempts=3, initial_delay=1)
            machine.jobs.handler("talk", timeout=60, retry=retry)(partial(self._talk, True))
            collects = machine.jobs.handler("collect", timeout=60, retry=retry, emit_every=0.5)
            collects(partial(self._talk, False))
        await super()._open(machine)

    async def _talk(self, durable: bool, what: Talk, job: JobContext) -> int:
        for number in range(what.items):
            await job.emit([job.attempt, number])
            if durable:
                self._acknowledged[job.id].append([job.attempt, number])
            await asyncio.sleep(what.rest)
        if job.attempt <= what.failures:
            raise OSError("it happens")
        return job.attempt

    async def _use(self, key: str) -> None:
        """Submit a job, and read its output from several machines."""
        if int(key.removeprefix("key ")) >= TALKS:
            return
        await asyncio.sleep(self.chance.uniform(0, STORMY_SECONDS * 0.6))
        talk = Talk(
            items=self.chance.choice([1, 5, 20]),
            rest=self.chance.choice([0, 0.1, 3]),
            failures=self.chance.choice([0, 0, 1, 5]),
        )
        kind = self.chance.choice(["talk", "talk", "collect"])
        options = EnqueueOptions(deadline=self.chance.choice([None, None, 100]))
        handle: JobHandle[object] | None = None
        while handle is None:
            if machine := self._machine():
                enqueue = partial(machine.jobs.enqueue, kind, talk)
                answer = await machine.answer(
                    partial(enqueue, idempotency_key=key, options=options)
                )
                handle = answer if isinstance(answer, JobHandle) else None  # pyright: ignore[reportUnknownVariableType]
            if handle is None:
                await asyncio.sleep(self.chance.uniform(0.1, 5))
        self.accepted.append(handle.id)
        self._talks[handle.id] = talk
        readers = [self.do(partial(self._read, handle.id)) for _ in range(3)]
        if self.chance.random() < 0.2:
            await asyncio.sleep(self.chance.choice([0, 5, 20]))
            if machine := self._machine():
                await machine.answer(lambda: machine.jobs.cancel(handle.id))
        await asyncio.wait(readers)

    async def _read(self, job_id: JobId) -> None:
        """Read a stream to its end, on another machine after each that stops."""
        items: list[OutputItem] = []
        for _ in range(20):
            await asyncio.sleep(self.chance.uniform(0, 10))
            machine = self._machine()
            if machine is None:
                continue
            closed: list[bool] = []
            task = machine.do(partial(self._read_on, machine, job_id, items, closed))
            while not task.done() and machine.open:
                await asyncio.wait({task}, timeout=10)
            if closed:
                self._seen.append((job_id, items, True))
                return
            # What a stopped machine had received without noting it is read again.
        self._seen.append((job_id, items, False))

    async def _read_on(
        self, machine: Machine, job_id: JobId, items: list[OutputItem], closed: list[bool]
    ) -> None:
        position = items[-1].position if items else 0
        count = len(items)
        async for portion in machine.jobs.output_reader(job_id, "output", position):
            if len(items) != count:  # another reader has taken over meanwhile
                return
            if portion.kind is not None:
                items.extend(numbered_items(portion.kind, portion.chunks))
            count = len(items)
            if portion.closed:
                closed.append(True)

    async def _wait_for_ends(self) -> None:
        await super()._wait_for_ends()
        # Calls that still travel must change nothing.
        await asyncio.sleep(60)
        assert isinstance(self.store, MemoryStore)
        for job in await self.store.get(self.accepted):
            assert job is not None
            [part] = await self.store.read_output([ReadFrom(job.id, "output", 0, _EVERYTHING)])
            chunks = part.chunks if part else ()
            items = [*numbered_items(StreamKind.JSON, chunks)]
            for words in self._wrongs(job, items):
                self.notes.write("wrong", words=f"the output of {job.id}: {words}")
            self.notes.write("output", job=job.id, items=len(items), attempts=job.attempt)

    def _wrongs(self, job: Job, items: list[OutputItem]) -> list[str]:
        """Return what is wrong with the output of an ended job, or with what readers saw."""
        wrong = _disorder(items)
        values = [item.value for item in items]
        if lost := [one for one in self._acknowledged[job.id] if one not in values]:
            wrong.append(f"it lacks {lost}, whose emit had returned")
        if job.status is JobStatus.COMPLETED:
            last = [number for attempt, number in values if attempt == job.result]
            if last != [*range(self._talks[job.id].items)]:
                wrong.append(f"the job completed in attempt {job.result}, which has {last}")
        for seen_of, seen, complete in self._seen:
            if seen_of == job.id and (seen != items[: len(seen)] or (complete and seen != items)):
                wrong.append(f"a reader saw {[item.value for item in seen]} instead of {values}")
        return wrong


def _disorder(items: list[OutputItem]) -> list[str]:
    """Return what is wrong with the order of a stream."""
    wrong: list[str] = []
    if [item.position for item in items] != [*range(1, len(items) + 1)]:
        wrong.append("the positions have gaps")
    if any(after.epoch < before.epoch for before, after in pairwise(items)):
        wrong.append("a stale attempt has emitted after a later one")
    for attempt, some in groupby(items, key=lambda item: item.value[0]):
        numbers = [item.value[1] for item in some]
        if numbers != [*range(len(numbers))]:
            wrong.append(f"attempt {attempt} has {numbers}")
    if any(item.epoch != item.value[0] for item in items):
        wrong.append("items have the epoch of another attempt")
    return wrong
