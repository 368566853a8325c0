"""The floor on PostgreSQL with asyncpg: arrays instead of rows, and one notice per statement.

Concurrent submissions, outcomes and reads are merged to one statement each. The worker claims in
batches (`SKIP LOCKED`) and listens for notices.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.places import Place
from benchmarks.sides.gathering import Gathering
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

TABLE = """
CREATE TABLE IF NOT EXISTS work (
    number bigserial PRIMARY KEY, id uuid NOT NULL UNIQUE, state text NOT NULL,
    payload text NOT NULL, created timestamptz NOT NULL, started timestamptz, ended timestamptz,
    result text
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS waiting ON work (number) WHERE state = 'waiting';
"""
INSERT = """
WITH inserted AS (
    INSERT INTO work (id, state, payload, created)
    SELECT id, 'waiting', $2, now() FROM unnest($1::uuid[]) AS given (id)
) SELECT pg_notify('work', '')
"""
CLAIM = """
UPDATE work SET state = 'running', started = now() WHERE number IN (
    SELECT number FROM work WHERE state = 'waiting' ORDER BY number LIMIT 500
    FOR UPDATE SKIP LOCKED
) RETURNING id, payload
"""
FINISH = """
UPDATE work SET state = 'done', ended = now(), result = given.result
FROM unnest($1::uuid[], $2::text[]) AS given (id, result) WHERE work.id = given.id
"""
READ = "SELECT id, state, result FROM work WHERE id = ANY($1::uuid[])"


async def connect(url: str) -> Any:
    driver: Any = import_module("asyncpg")  # it has no types
    return await driver.connect(url)


class PostgresFloor(Side):
    drained = 10_000

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._submit = Gathering(self._insert)
        self._state = Gathering(self._read)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._writer = await connect(self.place.postgres)
        self._reader = await connect(self.place.postgres)
        await self._writer.execute(TABLE)
        yield
        await self._writer.close()
        await self._reader.close()

    async def _insert(self, ids: Sequence[uuid.UUID]) -> Sequence[uuid.UUID]:
        await self._writer.execute(INSERT, ids, json.dumps(PAYLOAD))
        return ids

    async def _read(self, ids: Sequence[uuid.UUID]) -> Sequence[tuple[str, str | None]]:
        rows = {row[0]: (row[1], row[2]) for row in await self._reader.fetch(READ, ids)}
        return [rows[one] for one in ids]

    async def submit(self) -> uuid.UUID:
        return await self._submit(uuid.uuid4())

    async def submit_many(self, count: int) -> Sequence[uuid.UUID]:
        return await self._insert([uuid.uuid4() for _ in range(count)])

    async def ended(self, ticket: uuid.UUID) -> bool:
        state, result = await self._state(ticket)
        return state == "done" and json.loads(result or "null") == RESULT

    def worker(self) -> Sequence[str]:
        return ("-m", "benchmarks.sides.floor_postgres")


async def work(url: str) -> None:
    claiming, writing = await connect(url), await connect(url)
    waiting = asyncio.Event()

    def notice(*_about: object) -> None:
        waiting.set()

    await claiming.add_listener("work", notice)

    async def finish(done: list[tuple[uuid.UUID, str]]) -> Sequence[None]:
        await writing.execute(FINISH, [one for one, _ in done], [result for _, result in done])
        return [None] * len(done)

    finishing = Gathering(finish)

    async def run(one: uuid.UUID) -> None:
        stamp(time.monotonic())
        await finishing((one, json.dumps(RESULT)))

    running: set[asyncio.Task[None]] = set()
    while True:
        waiting.clear()
        claimed = await claiming.fetch(CLAIM)
        for one, _payload in claimed:
            task = asyncio.create_task(run(one))
            running.add(task)
            task.add_done_callback(running.discard)
        if len(running) > 1000:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if not claimed:
            await waiting.wait()


if __name__ == "__main__":
    asyncio.run(work(Place.current().postgres))
