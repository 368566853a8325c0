"""The floor on SQLite: one writing thread, and a transaction for all pending writes.

As durable as the SQLite store (WAL, `synchronous=FULL`), with similar rows: id, state, payload,
times, result. The worker claims and finishes in batches. It notices new rows by the file's
`data_version`, which it reads each millisecond.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from benchmarks.places import Place
from benchmarks.sides.gathering import Gathering
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

T = TypeVar("T")

TABLE = """
CREATE TABLE IF NOT EXISTS work (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, payload TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, result TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON work (number) WHERE state = 'waiting';
"""
INSERT = "INSERT INTO work (id, state, payload, created) VALUES (?, 'waiting', ?, ?)"
CLAIM = """
UPDATE work SET state = 'running', started = ? WHERE number IN (
    SELECT number FROM work WHERE state = 'waiting' ORDER BY number LIMIT 500
) RETURNING id, payload
"""
FINISH = "UPDATE work SET state = 'done', ended = ?, result = ? WHERE id = ?"
READ = "SELECT state, result FROM work WHERE id = ?"


def connect(folder: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{folder}/floor.db", isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA busy_timeout = 10000")
    db.executescript(TABLE)
    return db


class Writer:
    """A connection and the thread that writes with it."""

    def __init__(self, folder: str) -> None:
        self._db = connect(folder)
        self._thread = ThreadPoolExecutor(1)

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change in a transaction, on the thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._transact, change
        )

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            return change(self._db)
        finally:
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._thread.shutdown()
        self._db.close()


class SQLiteFloor(Side):
    drained = 10_000

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._submit = Gathering(self._insert)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._writer = Writer(self.place.folder)
        self._reader = connect(self.place.folder)
        yield
        self._writer.close()
        self._reader.close()

    async def _insert(self, ids: Sequence[str]) -> Sequence[str]:
        payload, now = json.dumps(PAYLOAD), time.time()
        rows = [(one, payload, now) for one in ids]
        await self._writer.write(lambda db: db.executemany(INSERT, rows))
        return ids

    async def submit(self) -> str:
        return await self._submit(uuid.uuid4().hex)

    async def submit_many(self, count: int) -> Sequence[str]:
        return await self._insert([uuid.uuid4().hex for _ in range(count)])

    async def ended(self, ticket: str) -> bool:
        state, result = self._reader.execute(READ, (ticket,)).fetchone()
        return bool(state == "done" and json.loads(result) == RESULT)

    def worker(self) -> Sequence[str]:
        return ("-m", "benchmarks.sides.floor_sqlite")


async def work(folder: str) -> None:
    writer, watcher = Writer(folder), connect(folder)

    async def finish(done: list[tuple[str, str]]) -> Sequence[None]:
        rows = [(time.time(), result, one) for one, result in done]
        await writer.write(lambda db: db.executemany(FINISH, rows))
        return [None] * len(done)

    finishing = Gathering(finish)

    async def run(one: str) -> None:
        stamp(time.monotonic())
        await finishing((one, json.dumps(RESULT)))

    version = None
    while True:
        [found] = watcher.execute("PRAGMA data_version").fetchone()
        if found == version:
            await asyncio.sleep(0.001)
            continue
        claimed = await writer.write(lambda db: db.execute(CLAIM, (time.time(),)).fetchall())
        await asyncio.gather(*(run(one) for one, _payload in claimed))
        # Writes of this process change the version, too: only an empty claim makes it valid.
        version = None if claimed else found


if __name__ == "__main__":
    asyncio.run(work(Place.current().folder))
