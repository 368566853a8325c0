"""What a call costs the PostgreSQL store when a thousand jobs are stored, and when a million are.

    python benchmarks/stored_jobs.py postgresql://...  # a minute

It makes four schemas, and drops them. All are measured in turns in one run, since machines are
noisy: read the ratios.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import psycopg

from asyncjobs.core.encoding import encode_state, encode_submission, to_microseconds
from asyncjobs.core.job import JobId
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW

#: Jobs stored, and how many of them wait, and whether those lie apart from each other.
HEAPS = (
    (1_000, 500, False),
    (1_000_000, 500, False),
    (1_000_000, 100_000, False),
    (1_000_000, 100_000, True),
)
ROUNDS = 400
BATCH = 50

# The oldest are kept finished jobs; the others wait, and are due. Apart from each other means that
# only every tenth job waits: what is taken together then lies on as many pages.
FILL = """
INSERT INTO {s}.jobs (seq, due_at, revision, id, lane, status, type, owner, key, state)
SELECT
    nextval('{s}.jobs_seq'), %b::bigint + n - CASE WHEN done THEN 0 ELSE 10000000 END, 1,
    'job_' || n, CASE WHEN done THEN 'maintenance' ELSE 'default' END,
    CASE WHEN done THEN 'completed' ELSE 'pending' END,
    'type' || n %% 97, 'owner' || n %% 1000, CASE WHEN n %% 2 = 0 THEN 'key' || n END, %b::bytea
FROM (
    SELECT n, CASE WHEN %b::boolean THEN n %% 10 > 0 ELSE n <= %b::bigint END AS done
    FROM generate_series(1, %b::bigint) AS n
) AS numbered
"""
SUBMISSIONS = "INSERT INTO {s}.submissions SELECT seq, %b::bytea, '7' FROM {s}.jobs"

Call = Callable[[PostgresStore, int, int], Awaitable[object]]


async def get(store: PostgresStore, size: int, turn: int, number: int) -> object:
    step = size // number
    return await store.get([JobId(f"job_{1 + (turn + n * step) % size}") for n in range(number)])


async def take(store: PostgresStore, _: int, turn: int, number: int) -> object:
    # What is taken is due again in the next turn: none ever runs out.
    now = NOW + timedelta(minutes=1, milliseconds=turn)
    taken = await store.take(["default"], now=now, until=now, limit=number)
    assert len(taken) == number
    return taken


CALLS: dict[str, Call] = {
    "get 1": lambda store, size, turn: get(store, size, turn, 1),
    f"get {BATCH}": lambda store, size, turn: get(store, size, turn, BATCH),
    "take 1": lambda store, size, turn: take(store, size, turn, 1),
    f"take {BATCH}": lambda store, size, turn: take(store, size, turn, BATCH),
}


async def main(url: str) -> None:
    stores = [
        PostgresStore(url, schema=f"asyncjobs_bench_{place}") for place, _ in enumerate(HEAPS)
    ]
    try:
        for store, heap in zip(stores, HEAPS, strict=True):
            await fill(store, *heap)
        async with AsyncExitStack() as stack:
            for store in stores:
                await stack.enter_async_context(store)
            print(f"medians of {ROUNDS} calls, by jobs stored (waiting); aim: 1.3 times the first")
            print(f"{'':<10}" + "".join(f"{named(*heap):>26}" for heap in HEAPS))
            for place, (name, call) in enumerate(CALLS.items()):
                times = await medians(stores, call, place * ROUNDS)
                told = (f"{time:.3f} ms  x {time / times[0]:.2f}" for time in times)
                print(f"{name:<10}" + "".join(f"{one:>26}" for one in told))
    finally:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
            for store in stores:
                await db.execute(f"DROP SCHEMA IF EXISTS {store.server.schema} CASCADE".encode())


def named(size: int, waiting: int, apart: bool) -> str:  # noqa: FBT001
    return f"{size:,} ({waiting:,}{' apart' if apart else ''})"


async def fill(store: PostgresStore, size: int, waiting: int, apart: bool) -> None:  # noqa: FBT001
    async with store:  # which makes the tables
        pass
    job, name = sample_job(), store.server.schema
    async with await psycopg.AsyncConnection.connect(store.server.conninfo, autocommit=True) as db:
        values = (to_microseconds(NOW), encode_state(job), apart, size - waiting, size)
        await db.execute(FILL.replace("{s}", name).encode(), values)
        await db.execute(SUBMISSIONS.replace("{s}", name).encode(), (encode_submission(job),))
        await db.execute(f"VACUUM ANALYZE {name}.jobs, {name}.submissions, {name}.results".encode())


async def medians(stores: list[PostgresStore], call: Call, first: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in stores]
    for turn in range(first, first + ROUNDS):
        for place, store in enumerate(stores):
            began = time.perf_counter()
            await call(store, HEAPS[place][0], turn)
            taken[place].append(1000 * (time.perf_counter() - began))
    return [statistics.median(times) for times in taken]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
