"""One worker process: opens a queue, runs its jobs and drains when it is stopped."""

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
from asyncjobs.workers.health import write_heartbeats
from asyncjobs.workers.shutdown import StopLevel, StopRequest

log = logging.getLogger("asyncjobs")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many jobs one worker process runs at a time, and of which queues (None is all)."""

    concurrency: int = 10
    queues: Sequence[str] | None = None
    health_file: Path | None = None
    supervised: bool = False


async def run_worker(jobs: AsyncJobs, options: WorkerOptions) -> None:
    """Run jobs until the process is stopped; return when all have ended or were given back.

    Raises what opening the queue raises. Until the queue is open, a signal ends the process at
    once: there is nothing to give back yet.
    """
    failure: AsyncJobsError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await _run_jobs(jobs, options, tasks)
        except AsyncJobsError as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _run_jobs(jobs: AsyncJobs, options: WorkerOptions, tasks: TaskGroup) -> None:
    stop = StopRequest()
    async with jobs.as_worker(concurrency=options.concurrency, queues=options.queues):
        await tasks.start(stop.follow_signals)
        if options.supervised:
            stop.follow_supervisor()
        if options.health_file is not None:
            tasks.start_soon(write_heartbeats, options.health_file, jobs)
        queues = ", ".join(options.queues or jobs.registry.queues)
        log.info("Worker %s serves %s, %s jobs at a time", os.getpid(), queues, options.concurrency)
        await stop.wait_for(StopLevel.DRAIN)
        log.info("Worker %s starts no more jobs", os.getpid())
        tasks.start_soon(_hurry, stop, jobs)
    log.info("Worker %s has ended", os.getpid())


async def _hurry(stop: StopRequest, jobs: AsyncJobs) -> None:
    await stop.wait_for(StopLevel.HURRY)
    if jobs.is_open:
        jobs.hurry()
