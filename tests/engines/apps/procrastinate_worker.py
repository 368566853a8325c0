"""The Procrastinate app of the tests' workers, with a time limit that would harm jobs."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from procrastinate import App, PsycopgConnector

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register

TIME_LIMIT_SECONDS = 0.2


async def limited(call_next: Any, _context: Any, _worker: Any) -> Any:
    async with asyncio.timeout(TIME_LIMIT_SECONDS):
        return await call_next()


app = App(
    connector=PsycopgConnector(conninfo=os.environ["BROKER"]),
    worker_defaults={"worker_middleware": [limited], "task_middleware": [limited]},
)
dispatcher = ProcrastinateDispatcher(app)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
dispatcher.register_task(jobs)


@app.task(name="plain")
def plain() -> None:
    raise ValueError("failed")
