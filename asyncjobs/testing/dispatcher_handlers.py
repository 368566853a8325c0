"""The handlers of the dispatcher suites, for all processes of a dispatcher's workers.

Files beside the path that they are given control them, since other processes can see these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from asyncjobs.core.job import Retry
from asyncjobs.errors import JobFailed
from asyncjobs.execution.context import JobContext
from asyncjobs.queue import AsyncJobs

_AT_ONCE = Retry(max_attempts=2, initial_delay=Retry().initial_delay * 0)

# How often a handler checks whether it may end.
_PAUSE = 0.01

STEPS = 5


def register(jobs: AsyncJobs) -> None:
    """Register the handlers on a queue; required in every process that runs its jobs."""
    jobs.handler("echo")(_echo)
    jobs.handler("steps")(_steps)
    jobs.handler("emit")(_emit)
    jobs.handler("hold")(_hold)
    jobs.handler("urgent")(_hold)
    jobs.handler("patient")(_hold)
    jobs.handler("refuse")(_refuse)
    jobs.handler("second_time", retry=_AT_ONCE)(_second_time)


def release(path: Path) -> None:
    """Let the jobs end that wait at this path."""
    path.with_suffix(".released").touch()


def began(path: Path) -> int:
    """Return how often a handler that was given this path has begun."""
    beginnings = path.with_suffix(".began")
    return len(beginnings.read_bytes()) if beginnings.exists() else 0


async def _echo(value: Any, _job: JobContext) -> Any:
    return value


async def _steps(number: int, job: JobContext) -> int:
    async for _ in job.track(range(STEPS), unit="steps"):
        await anyio.lowlevel.checkpoint()
    return 2 * number


async def _emit(path: Path, job: JobContext) -> None:
    for number in range(STEPS):
        await job.emit([job.fence, number])
    await _hold(path, job)
    await job.emit([job.fence, STEPS])


async def _hold(path: Path, job: JobContext) -> int:
    _begin(path)
    job.progress(40, "holding")
    while not path.with_suffix(".released").exists():  # noqa: ASYNC110  # other processes make it
        await anyio.sleep(_PAUSE)
    return job.fence


async def _refuse(path: Path, _job: JobContext) -> None:
    _begin(path)
    raise JobFailed("Not today.", code="refused")


async def _second_time(path: Path, job: JobContext) -> int:
    _begin(path)
    if job.fence == 1:
        raise OSError("the first time")
    return job.fence


def _begin(path: Path) -> None:
    # A single byte appended to a file is written atomically, whatever other processes write.
    with path.with_suffix(".began").open("ab") as beginnings:
        beginnings.write(b".")
