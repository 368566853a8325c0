"""Procrastinate: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Status

from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher
from benchmarks.engines_measured.common import BROKER, SLOTS, Bench, queue_on

pro = App(connector=PsycopgConnector(conninfo=BROKER))
dispatcher = ProcrastinateDispatcher(pro)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@pro.task(name="own")
async def own_task(number: int) -> int:
    return number


async def run_own_pro(count: int) -> list[Status]:
    """Procrastinate keeps no results; it is asked for each status."""
    asked = [await own_task.defer_async(number=number) for number in range(count)]
    found: list[Status] = []
    for one in asked:
        while (status := await pro.job_manager.get_job_status_async(one)) is not (  # noqa: ASYNC110
            Status.SUCCEEDED
        ):
            await anyio.sleep(0.001)
        found.append(status)
    return found


@asynccontextmanager
async def prepared() -> AsyncGenerator[None]:
    async with pro.open_async():
        await pro.schema_manager.apply_schema_async()
        yield


command = (
    "procrastinate",
    "--app",
    "benchmarks.engines_measured.bench_procrastinate.pro",
    "worker",
    "--concurrency",
    SLOTS,
)
bench = Bench(jobs, command, run_own_pro, prepared)
