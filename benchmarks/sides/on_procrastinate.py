"""Procrastinate, and asyncjobs on it, in one PostgreSQL; one worker."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Status

from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import CONCURRENCY, PAYLOAD, Side
from benchmarks.stamps import stamp

app = App(connector=PsycopgConnector(conninfo=PLACE.postgres, min_size=4, max_size=20))
dispatcher = ProcrastinateDispatcher(app)
jobs = queue_on(dispatcher, "postgres")
dispatcher.register_task(jobs)


@app.task(name="own")
async def own(payload: dict[str, int]) -> None:
    del payload
    stamp(time.monotonic())


class _Worker(Side):
    drained = 2000

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            yield

    def worker(self) -> Sequence[str]:
        target = ("--app", "benchmarks.sides.on_procrastinate.app")
        return ("-m", "procrastinate", *target, "worker", "--concurrency", str(CONCURRENCY))


class ProcrastinateTasks(_Worker):
    """Procrastinate keeps no results; its status is read instead."""

    keeps_results = False
    opened = _Worker.connected

    async def submit(self) -> int:
        return await own.defer_async(payload=PAYLOAD)

    async def submit_many(self, count: int) -> Sequence[int]:
        arguments: list[dict[str, Any]] = [{"payload": PAYLOAD}] * count
        return await own.batch_defer_async(*arguments)

    async def ended(self, ticket: int) -> bool:
        return await app.job_manager.get_job_status_async(ticket) is Status.SUCCEEDED


class OnProcrastinate(_Worker, OnQueue):
    jobs = jobs

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        async with self.connected(), self.jobs:
            yield
