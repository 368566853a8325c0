"""What each store costs, beside its bare driver on the same server in the same run.

    python benchmarks/stores.py                              # two minutes; needs the extra `test`
    python benchmarks/stores.py redis://... postgresql://... # servers of yours: their data is used

Without URLs: SQLite, and servers that are started for it (PostgreSQL without fsync, Valkey without
a log). Machines are noisy: read the ratios.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import psycopg
import redis.asyncio

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.core.job import JobStatus

ROOT = Path(__file__).parents[1]
SECONDS = 1.0
CALLERS = 100
DRAIN = 3000
#: More than are finished in a second.
ROWS = 50_000
PAYLOAD = {"customer": "c" * 36, "items": list(range(20))}
#: About what a job takes, in one row: submission, state, payload.
BODY = b"x" * 900

#: The queue of the process that is measured, and of the worker process.
jobs = AsyncJobs(os.environ.get("BENCHMARK_STORE", "memory://"), dispatcher="worker")


@jobs.handler("noop")
async def noop(_payload: dict[str, Any], _job: JobContext) -> int:
    return 1


# the drivers


class RawSqlite:
    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE raw (n INTEGER PRIMARY KEY, done INTEGER, body BLOB)")

    async def insert(self, rows: int) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT INTO raw (done, body) VALUES (0, ?)", [(BODY,)] * rows)
        self.db.execute("COMMIT")

    async def finish(self, rows: int) -> int:
        find = "SELECT n FROM raw WHERE done = 0 LIMIT ?"
        return self._mark(find, rows, 1) and self._mark(find.replace("= 0", "= 1"), rows, 2)

    def _mark(self, find: str, rows: int, state: int) -> int:
        self.db.execute("BEGIN IMMEDIATE")
        marked = self.db.execute(f"UPDATE raw SET done = {state} WHERE n IN ({find})", (rows,))
        self.db.execute("COMMIT")
        return marked.rowcount

    async def read(self) -> None:
        self.db.execute("SELECT body FROM raw WHERE n = 1").fetchone()

    async def close(self) -> None:
        self.db.close()


class RawPostgres:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    @classmethod
    async def open(cls, url: str) -> RawPostgres:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await connection.execute("DROP TABLE IF EXISTS raw_rows")
        await connection.execute(
            "CREATE TABLE raw_rows (n bigserial PRIMARY KEY, done int DEFAULT 0, body bytea)"
        )
        await connection.execute("CREATE INDEX ON raw_rows (n) WHERE done = 0")
        return cls(connection)

    async def insert(self, rows: int) -> None:
        statement = "INSERT INTO raw_rows (body) SELECT unnest(%s::bytea[])"
        await self.connection.execute(statement, ([BODY] * rows,), binary=True)

    async def finish(self, rows: int) -> int:
        taken = await self.connection.execute(
            "UPDATE raw_rows SET done = 1 WHERE n IN (SELECT n FROM raw_rows WHERE done = 0"
            " ORDER BY n LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING n",
            (rows,),
        )
        numbers = [n for [n] in await taken.fetchall()]
        await self.connection.execute("UPDATE raw_rows SET done = 2 WHERE n = ANY(%s)", (numbers,))
        return len(numbers)

    async def read(self) -> None:
        await (await self.connection.execute("SELECT body FROM raw_rows WHERE n = 1")).fetchone()

    async def close(self) -> None:
        await self.connection.execute("DROP TABLE raw_rows")
        await self.connection.close()


class RawRedis:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.name = f"raw-{uuid.uuid4().hex}"
        self.made = 0

    async def insert(self, rows: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for _ in range(rows):
            self.made += 1
            pipeline.hset(f"{self.name}:{self.made}", mapping={"body": BODY})
            pipeline.zadd(f"{self.name}:due", {str(self.made): self.made})
        await pipeline.execute()

    async def finish(self, rows: int) -> int:
        taken = await self.client.zpopmin(f"{self.name}:due", rows)
        pipeline = self.client.pipeline(transaction=False)
        for key, _ in taken:
            pipeline.hset(f"{self.name}:{key.decode()}", mapping={"done": 2})
        await pipeline.execute()
        return len(taken)

    async def read(self) -> None:
        await self.client.hgetall(f"{self.name}:1")

    async def close(self) -> None:
        await self.client.aclose()


async def raw_for(url: str, folder: Path) -> Any:
    if url.startswith("sqlite"):
        return RawSqlite(folder / "raw.db")
    if url.startswith("postgres"):
        return await RawPostgres.open(url.partition("?")[0])
    return RawRedis(redis.asyncio.from_url(url.partition("?")[0]))


# what is measured


async def rate(once: Callable[[], Awaitable[int]], callers: int = 1) -> float:
    """Count how many per second come of calls, by several callers at once."""
    made = 0

    async def call() -> None:
        nonlocal made
        while time.perf_counter() - begun < SECONDS:
            done = await once()  # apart: others count while this one waits
            made += done

    begun = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(call)
    return made / (time.perf_counter() - begun)


async def inserted(raw: Any, rows: int) -> int:
    await raw.insert(rows)
    return rows


async def drained(raw: Any, batch: int) -> float:
    """Count how many rows per second are taken and finished, of as many as there must be."""
    for _ in range(ROWS // 1000):
        await raw.insert(1000)
    done, begun = 0, time.perf_counter()
    while done < ROWS and time.perf_counter() - begun < SECONDS:
        done += await raw.finish(batch)
    return done / (time.perf_counter() - begun)


async def one_read(read: Callable[[], Awaitable[object]]) -> int:
    await read()
    return 1


async def measure(url: str, folder: Path) -> None:
    raw = await raw_for(url, folder)
    queue = AsyncJobs(url, dispatcher="worker")
    kind = queue.external("order", payload=dict[str, Any], result=int)

    async def enqueue() -> int:
        await queue.enqueue(kind, PAYLOAD)
        return 1

    print(f"\n{url.partition(':')[0]}")
    async with queue:
        raw_one = await rate(lambda: inserted(raw, 1))
        raw_batch = await rate(lambda: inserted(raw, CALLERS))
        show("enqueue, one after the other", await rate(enqueue), raw_one, "rows one by one")
        ours = await rate(enqueue, CALLERS)
        show(f"enqueue, {CALLERS} at once", ours, raw_batch, f"rows by {CALLERS}; aim 0.5")
        job = await queue.enqueue(kind, PAYLOAD)
        reads = await rate(lambda: one_read(lambda: queue.get(job.id)))
        show("status read, one after the other", reads, await rate(lambda: one_read(raw.read)))
        raw_done = 0.0
        for batch in (1, 10, 100):
            raw_done = await drained(raw, batch)
            print(f"  bare take and finish by {batch:<3}           {raw_done:10,.0f} /s")
        round_trip = await quantiles(raw.read)
    await report_worker(url, raw_done, round_trip)
    await raw.close()


async def report_worker(url: str, raw_done: float, round_trip: tuple[float, float]) -> None:
    """Measure with one worker process: how many jobs per second, and how soon one has ended."""
    queue = AsyncJobs(url, dispatcher="worker")
    queue.registry.add(noop)
    async with queue:
        async with anyio.create_task_group() as tasks:
            sent: list[str] = []

            async def submit() -> None:
                while len(sent) < DRAIN:
                    sent.append((await queue.enqueue(noop, PAYLOAD)).id)

            for _ in range(CALLERS):
                tasks.start_soon(submit)
        worker = await start_worker(url)
        try:
            done = [await queue.wait(one) for one in sent]  # type: ignore[arg-type]
            assert {job.status for job in done} == {JobStatus.COMPLETED}
            began = min(job.started_at for job in done if job.started_at)
            ended = max(job.completed_at for job in done if job.completed_at)
            rate_done = len(done) / (ended - began).total_seconds()
            show("run by one worker process", rate_done, raw_done, "rows by 100; aim 0.5")

            async def there_and_back() -> None:
                await queue.wait((await queue.enqueue(noop, PAYLOAD)).id)

            p50, p99 = await quantiles(there_and_back)
        finally:
            worker.terminate()
            worker.wait()
    print(f"  enqueue to known end: p50 {p50:.2f} ms, p99 {p99:.2f} ms;"
          f" bare read p50 {round_trip[0]:.2f} ms, ratio {p50 / round_trip[0]:.1f}")  # fmt: skip


async def start_worker(url: str) -> subprocess.Popen[bytes]:
    return await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "asyncjobs", "worker", "stores:jobs", "--log-level", "error"],
        cwd=ROOT / "benchmarks",
        env={**os.environ, "BENCHMARK_STORE": url, "PYTHONSAFEPATH": "1"},
    )


async def quantiles(call: Callable[[], Awaitable[object]], times: int = 200) -> tuple[float, float]:
    taken: list[float] = []
    for _ in range(times):
        begun = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - begun))
    cuts = statistics.quantiles(taken, n=100)
    return cuts[49], cuts[98]


def show(what: str, ours: float, bare: float, note: str = "the same") -> None:
    print(f"  {what:<33} {ours:10,.0f} /s   bare {bare:10,.0f} /s   {ours / bare:5.2f} ({note})")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the servers run as nobody
        urls = sys.argv[1:] or [f"sqlite:///{folder / 'jobs.db'}", *servers(folder, stack)]
        for url in urls:
            asyncio.run(measure(url, folder))


def servers(folder: Path, stack: ExitStack) -> list[str]:
    """Start the servers that the tests use."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import OwnServer, serving  # noqa: PLC0415  # the tests' own

    (folder / "postgres").mkdir()
    os.chown(folder / "postgres", 65534, 65534)
    postgres = OwnServer(folder / "postgres")
    postgres.start()
    stack.callback(postgres.stop)
    (folder / "valkey").mkdir()
    valkey = stack.enter_context(serving(folder / "valkey"))
    return [postgres.url, valkey.url]


if __name__ == "__main__":
    main()
