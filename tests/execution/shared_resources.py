"""A lifespan and handlers that child processes import; each note is a line of a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncjobs import AsyncJobs, JobContext

NOTES = "ASYNCJOBS_TEST_NOTES"

#: The tests' queue includes these.
kinds = AsyncJobs("memory://")


@dataclass
class Shared:
    """A resource that belongs to the event loop in which it was opened."""

    loop: asyncio.AbstractEventLoop
    turns: asyncio.Queue[int]
    seen: int = 0


def note(text: str) -> None:
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(f"{text} {os.getpid()}\n")


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Shared]:
    note("opened")
    shared = Shared(asyncio.get_running_loop(), asyncio.Queue())
    feeding = asyncio.create_task(feed(shared.turns))
    yield shared
    feeding.cancel()
    note("closed")


async def feed(turns: asyncio.Queue[int]) -> None:
    for number in range(100):
        await turns.put(number)
        await asyncio.sleep(0)


@kinds.handler("turn", run_in="process")
async def turn(_none: None, job: JobContext[Shared]) -> tuple[int, int]:
    assert job.resources.loop is asyncio.get_running_loop()
    job.resources.forgotten = asyncio.create_task(asyncio.sleep(3600))  # type: ignore[attr-defined]
    return os.getpid(), await job.resources.turns.get()


@kinds.handler("count", run_in="process")
def count(_none: None, job: JobContext[Shared]) -> tuple[int, int]:
    job.resources.seen += 1
    return os.getpid(), job.resources.seen


@asynccontextmanager
async def fails_elsewhere() -> AsyncGenerator[None]:
    if os.environ["ASYNCJOBS_TEST_PID"] != str(os.getpid()):
        raise OSError("no network there")
    yield
