"""Part `output`: items that one handler appends to its output, beside the bare driver.

The driver stores the items of a batch in one call: each in a row of its own, or all of them in one.
The three take turns, a short while each, so that they have the same disk and the same machine.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, cast

import anyio
import psycopg
from redis.asyncio import Redis

from asyncjobs.core.output import Append, StreamKind
from asyncjobs.protocols import OutputStreams
from asyncjobs.records.group_commit import GroupCommitStore
from asyncjobs.stores import store_from_url
from asyncjobs.testing.samples import begun, sample_job
from benchmarks.places import Place
from benchmarks.running import Run

STORES = ("sqlite", "postgres", "redis")
BATCHES = (1, 10, 100, 1000)
ITEM = b'"' + b"x" * 98 + b'"'
TURN_SECONDS = 0.2
UNLIMITED = 10**12

#: Appends a batch that begins at a position.
Write = Callable[[int], Awaitable[object]]


def measure(run: Run) -> None:
    for store in STORES[:1] if run.quick else STORES:
        for batch in BATCHES[2:3] if run.quick else BATCHES:
            with run.attempt(f"output, {store}"), run.servers.place(store) as place:
                asyncio.run(take_turns(run, store, place, batch))


async def take_turns(run: Run, store: str, place: Place, batch: int) -> None:
    async with AsyncExitStack() as stack:
        sides = {
            "asyncjobs": await stack.enter_async_context(ours(place.store(store), batch)),
            **await stack.enter_async_context(FLOORS[store](place, batch)),
        }
        ends = dict.fromkeys(sides, 0)
        seconds = 0.02 if run.quick else TURN_SECONDS
        for _ in range(run.rounds * 3):
            for side, write in sides.items():
                first, began = ends[side], time.perf_counter()
                while (taken := time.perf_counter() - began) < seconds:
                    await write(ends[side])
                    ends[side] += batch
                rate = (ends[side] - first) / taken
                run.figures.add("output", f"{store}, {batch}", side, {"items [per s]": rate})


@asynccontextmanager
async def ours(url: str, batch: int) -> AsyncGenerator[Write]:
    job, data = begun(sample_job()), b",".join([ITEM] * batch)
    async with store_from_url(url) as store, anyio.create_task_group() as tasks:
        await store.insert([job])
        merged = cast("OutputStreams", GroupCommitStore(store, tasks))

        async def write(position: int) -> None:
            one = Append(
                job_id=job.id,
                stream="output",
                kind=StreamKind.JSON,
                epoch=1,
                items=batch,
                data=data,
                max_items=UNLIMITED,
                max_bytes=UNLIMITED,
                position=position,
            )
            [done] = await merged.append([one])
            assert done.end == position + batch, done

        yield write


@asynccontextmanager
async def sqlite_floor(place: Place, batch: int) -> AsyncGenerator[dict[str, Write]]:
    data = b",".join([ITEM] * batch)
    with closing(sqlite3.connect(f"{place.folder}/floor.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for name in ("items", "chunks"):
            db.execute(
                f"CREATE TABLE {name} (job INTEGER, position INTEGER, data BLOB,"
                " PRIMARY KEY (job, position))"
            )

        async def rows(position: int) -> None:
            db.execute("BEGIN IMMEDIATE")
            given = [(position + place, ITEM) for place in range(batch)]
            db.executemany("INSERT INTO items VALUES (1, ?, ?)", given)
            db.execute("COMMIT")

        async def chunks(position: int) -> None:
            db.execute("INSERT INTO chunks VALUES (1, ?, ?)", (position, data))

        yield {"floor, a row per item": rows, "floor, a row per batch": chunks}


@asynccontextmanager
async def postgres_floor(place: Place, batch: int) -> AsyncGenerator[dict[str, Write]]:
    data = b",".join([ITEM] * batch)
    opening = psycopg.AsyncConnection.connect(place.postgres, autocommit=True)
    async with await opening as connection:
        for name in ("items", "chunks"):
            await connection.execute(
                f"CREATE TABLE {name} (job bigint, position bigint, data bytea,"
                " PRIMARY KEY (job, position))"
            )

        async def rows(position: int) -> None:
            statement = "INSERT INTO items SELECT 1, * FROM unnest(%b::bigint[], %b::bytea[])"
            places = [*range(position, position + batch)]
            await connection.execute(statement, (places, [ITEM] * batch))

        async def chunks(position: int) -> None:
            await connection.execute("INSERT INTO chunks VALUES (1, %b, %b)", (position, data))

        yield {"floor, a row per item": rows, "floor, a row per batch": chunks}


@asynccontextmanager
async def redis_floor(place: Place, batch: int) -> AsyncGenerator[dict[str, Write]]:
    data = b",".join([ITEM] * batch)
    client: Any = cast("Any", Redis).from_url(place.redis)

    async def rows(_position: int) -> None:
        pipeline = client.pipeline(transaction=False)
        for _ in range(batch):
            pipeline.execute_command("XADD", "items", "*", "data", ITEM)
        await pipeline.execute()

    async def chunks(_position: int) -> None:
        await client.execute_command("XADD", "chunks", "*", "data", data)

    yield {"floor, a row per item": rows, "floor, a row per batch": chunks}
    await client.aclose()


FLOORS = {"sqlite": sqlite_floor, "postgres": postgres_floor, "redis": redis_floor}
