"""One worker process: opens a queue, runs its jobs, drains when it is told to stop."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from asyncjobs.errors import AsyncJobsError
from asyncjobs.queue import AsyncJobs
from asyncjobs.workers.health import beat
from asyncjobs.workers.shutdown import Order, Orders

log = logging.getLogger("asyncjobs")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What one worker process does: how many jobs at a time, of which queues (None is all)."""

    concurrency: int = 10
    queues: Sequence[str] | None = None
    health_file: Path | None = None
    supervised: bool = False


async def serve(jobs: AsyncJobs, how: Serving) -> None:
    """Run jobs until told to stop; return when all have ended or were given back.

    Raises what opening the queue raises. Until it is open a signal ends the process, which has
    nothing to lose yet.
    """
    failure: AsyncJobsError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await _serve(jobs, how, tasks)
        except AsyncJobsError as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _serve(jobs: AsyncJobs, how: Serving, tasks: TaskGroup) -> None:
    orders = Orders()
    async with jobs.as_worker(concurrency=how.concurrency, queues=how.queues):
        await tasks.start(orders.hear_signals)
        if how.supervised:
            orders.hear_supervisor()
        if how.health_file is not None:
            tasks.start_soon(beat, how.health_file, jobs)
        queues = ", ".join(how.queues or jobs.registry.queues)
        log.info("Worker %s serves %s, %s jobs at a time", os.getpid(), queues, how.concurrency)
        await orders.wait_for(Order.DRAIN)
        log.info("Worker %s begins nothing more", os.getpid())
        tasks.start_soon(_hurry_when_told, orders, jobs)
    log.info("Worker %s has ended", os.getpid())


async def _hurry_when_told(orders: Orders, jobs: AsyncJobs) -> None:
    await orders.wait_for(Order.HURRY)
    if jobs.is_open:
        jobs.hurry()
