"""What workers in the tests do besides the handlers of the rules."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio

from asyncjobs import AsyncJobs, JobContext, Transition

TOLD = "told"


def add_chores(jobs: AsyncJobs) -> None:
    """Register them; in the tests' process, too, which only names them."""
    jobs.handler("last")(last)
    jobs.handler("where")(where)
    jobs.handler(TOLD)(told)
    jobs.on("completed", tell)


async def last(seconds: float, _job: JobContext) -> None:
    await anyio.sleep(seconds)


async def where(_payload: None, _job: JobContext) -> tuple[int, int]:
    """Name the process, and the event loop in which the queue is open."""
    return os.getpid(), id(asyncio.get_running_loop())


async def told(path: str, _job: JobContext) -> str:
    return path


async def tell(transition: Transition) -> None:
    """Be told in the background, and take some time."""
    if transition.job.type == TOLD:
        await anyio.sleep(0.2)
        Path(str(transition.job.result)).touch()
