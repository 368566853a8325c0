"""The application whose jobs the worker processes of these tests run."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import anyio

from asyncjobs import AsyncJobs, JobContext, Policy, Settings

jobs = AsyncJobs(
    os.environ["JOBS"],
    dispatcher="worker",
    settings=Settings(
        poll_interval=timedelta(seconds=0.1), grace=timedelta(seconds=float(os.environ["GRACE"]))
    ),
)


@jobs.handler("work")
async def work(folder: Path, job: JobContext) -> int:
    """Start, run until a file allows the end, and return the ids of the processes."""
    (folder / f"{job.id}.began").touch()
    while not (folder / "go on").exists():  # noqa: ASYNC110
        await anyio.sleep(0.01)
    return os.getpid()


@jobs.handler("urgent", policy=Policy(queue="urgent"))
async def urgent(_none: None, _job: JobContext) -> int:
    return os.getpid()


def made_when_asked() -> AsyncJobs:
    """Return the queue, as an application with a factory function does."""
    return jobs


not_a_queue = "text"
