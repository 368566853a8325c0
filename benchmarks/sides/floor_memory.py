"""The floor in memory: a record in a dictionary, and a task that changes it."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

from benchmarks.places import Place
from benchmarks.sides.side import RESULT, Side
from benchmarks.stamps import stamp


@dataclass
class Record:
    created: float
    started: float | None = None
    ended: float | None = None
    result: int | None = None


class MemoryFloor(Side):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._records: dict[str, Record] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self) -> str:
        ticket = uuid.uuid4().hex
        record = self._records[ticket] = Record(time.time())
        task = asyncio.create_task(self._run(record))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.sleep(0)  # like a caller that waits for a store
        return ticket

    async def _run(self, record: Record) -> None:
        record.started = time.time()
        stamp(time.monotonic())
        record.result, record.ended = RESULT, time.time()

    async def ended(self, ticket: str) -> bool:
        return self._records[ticket].result == RESULT
