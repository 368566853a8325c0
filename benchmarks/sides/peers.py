"""Libraries without an asyncjobs dispatcher; they are measured if they are installed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.places import Place
from benchmarks.sides.side import CONCURRENCY, RESULT, Side
from benchmarks.stamps import stamp

# Neither is part of the extra `test`, so type checkers do not know them.
_Library = Any


def _worker(kind: str) -> Sequence[str]:
    # Not with `-m`: Huey finds a task by its module, which would be `__main__`.
    names = "from benchmarks.places import Place; from benchmarks.sides import peers"
    return ("-c", f"{names}; peers.{kind}(Place.current()).work()")


class Litequeue(Side):
    """A queue in a SQLite file, with a worker loop of its own here. It keeps no results."""

    blocking = True
    keeps_results = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        library: _Library = import_module("litequeue")
        self.queue = library.LiteQueue(f"{place.folder}/litequeue.db")
        self._turn = threading.Lock()  # it has one connection

    def submit(self) -> str:
        with self._turn:
            return str(self.queue.put("{}").message_id)

    def ended(self, ticket: str) -> bool:
        with self._turn:
            return int(self.queue.get(ticket).status) == 2

    def worker(self) -> Sequence[str]:
        return _worker("Litequeue")

    def work(self) -> None:
        while True:
            message = self.queue.pop()
            if message is None:
                time.sleep(0.001)
            else:
                stamp(time.monotonic())
                self.queue.done(message.message_id)


class Huey(Side):
    """Huey in a SQLite file, with `fsync` off by default; four threads."""

    blocking = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        library: _Library = import_module("huey")
        self.huey = library.SqliteHuey(filename=f"{place.folder}/huey.db")
        self._task = self.huey.task(name="own")(self._own)

    @staticmethod
    def _own() -> int:
        stamp(time.monotonic())
        return RESULT

    def submit(self) -> str:
        return str(self._task().id)

    def ended(self, ticket: str) -> bool:
        return bool(self.huey.result(ticket, preserve=True) == RESULT)

    def worker(self) -> Sequence[str]:
        return _worker("Huey")

    def work(self) -> None:
        how = {"workers": 4, "periodic": False, "initial_delay": 0.01, "max_delay": 0.05}
        self.huey.create_consumer(**how).run()


class PgQueuer(Side):
    """PgQueuer with asyncpg. It keeps no results; the status is read from its log."""

    keeps_results = False

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        library: _Library = import_module("pgqueuer.queries")
        driver: _Library = import_module("asyncpg")
        async with driver.create_pool(self.place.postgres, min_size=10, max_size=10) as pool:
            self._queries = library.Queries.from_asyncpg_pool(pool)
            await self._queries.install()
            yield

    async def submit(self) -> Any:
        return (await self._queries.enqueue("own", None))[0]

    async def submit_many(self, count: int) -> Any:
        return await self._queries.enqueue(["own"] * count, [None] * count, [0] * count)

    async def ended(self, ticket: Any) -> bool:
        found = await self._queries.job_status([ticket])
        return bool(found) and found[0][1] == "successful"

    def worker(self) -> Sequence[str]:
        return _worker("PgQueuer")

    def work(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        library: _Library = import_module("pgqueuer")
        driver: _Library = import_module("asyncpg")
        runner = library.PgQueuer.from_asyncpg_connection(await driver.connect(self.place.postgres))

        async def own(_job: Any) -> None:
            stamp(time.monotonic())

        runner.entrypoint("own")(own)
        await runner.run(batch_size=CONCURRENCY)
