"""Handlers of the tests' workers, in addition to those of `asyncjobs.testing`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio

from asyncjobs import AsyncJobs, JobContext, Transition


def register_more(jobs: AsyncJobs) -> None:
    """Register the handlers; the tests' process registers them, too, for their names."""
    jobs.handler("process_and_loop")(process_and_loop)
    jobs.handler("touched_by_hook")(touched_by_hook)
    jobs.on("completed", touch)


async def process_and_loop(_payload: None, _job: JobContext) -> tuple[int, int]:
    """Return the process and the event loop in which the queue is open."""
    return os.getpid(), id(asyncio.get_running_loop())


async def touched_by_hook(path: str, _job: JobContext) -> str:
    return path


async def touch(transition: Transition) -> None:
    """Work in the background for some time after the job has ended."""
    if transition.job.type == "touched_by_hook":
        await anyio.sleep(0.2)
        Path(str(transition.job.result)).touch()
