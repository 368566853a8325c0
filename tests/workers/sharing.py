"""An application whose handlers share a lifespan's resource; files record its use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncjobs import AsyncJobs, JobContext, Settings

FOLDER = Path(os.environ["FOLDER"])


@dataclass
class Pool:
    """A stand-in for a connection pool."""

    open: bool = True


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Pool]:
    if (FOLDER / "away").exists():
        raise OSError("the database is away")
    pool = Pool()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(lose(FOLDER / "lost"))
        yield pool
        watching.cancel()
    pool.open = False
    (FOLDER / "closed").touch()


async def lose(file: Path) -> None:
    while not file.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    raise OSError("the connection is lost")


jobs = AsyncJobs(
    os.environ["JOBS"],
    dispatcher="worker",
    settings=Settings(poll_interval=0.1, grace=float(os.environ["GRACE"])),
    lifespan=lifespan,
)


@jobs.handler("use")
async def use(seconds: float, job: JobContext[Pool]) -> bool:
    (FOLDER / "began").touch()
    await asyncio.sleep(seconds)
    return job.resources.open
