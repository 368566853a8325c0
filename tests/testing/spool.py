"""A minimal engine: a folder is its broker, and its workers are processes.

python spool.py <url of the store> <folder of the broker>
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from asyncjobs import AsyncJobs, Job, JobId
from asyncjobs.core.job import Delivery
from asyncjobs.testing import BRISK, WorkerPool
from asyncjobs.testing.dispatcher_handlers import register


class SpoolDispatcher:
    """Writes a file into the folder for each delivery."""

    delivery = Delivery.PUSH

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __aenter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def reserve(self, most: int, /) -> int:
        return most

    def release(self, _places: int, /) -> None:
        return None

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        for job in jobs:
            (self._folder / f"{job.id} {uuid.uuid4()}").touch()


async def work(url: str, folder: Path) -> None:
    jobs = AsyncJobs(url, dispatcher=SpoolDispatcher(folder), settings=BRISK)
    register(jobs)
    slots = anyio.Semaphore(WorkerPool.slots)

    async def run(job_id: JobId) -> None:
        try:
            await jobs.run(job_id)
        finally:
            slots.release()

    async with jobs, anyio.create_task_group() as tasks:
        while True:
            for delivery in folder.iterdir():
                await slots.acquire()
                delivery.unlink()
                tasks.start_soon(run, JobId(delivery.name.split()[0]))
            await anyio.sleep(0.02)


if __name__ == "__main__":
    anyio.run(work, sys.argv[1], Path(sys.argv[2]))
