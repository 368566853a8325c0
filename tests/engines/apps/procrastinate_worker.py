"""A Procrastinate app as the tests' worker processes have it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from procrastinate import App, PsycopgConnector

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register

LIMIT = float(os.environ["LIMIT"])


async def limited(call_next: Any, _context: Any, _worker: Any) -> Any:
    """Give each task little time, as a team may do for its own tasks."""
    async with asyncio.timeout(LIMIT):
        return await call_next()


app = App(
    connector=PsycopgConnector(conninfo=os.environ["BROKER"]),
    worker_defaults={"worker_middleware": [limited], "task_middleware": [limited]},
)
dispatcher = ProcrastinateDispatcher(app)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
dispatcher.register_task(jobs)
