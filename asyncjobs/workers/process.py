"""One worker process: opens a queue, runs its jobs and drains when it is stopped."""

from __future__ import annotations

import faulthandler
import gc
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from asyncjobs.errors import AsyncJobsError, ResourcesUnavailable
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.logging import log
from asyncjobs.workers.health import write_heartbeats
from asyncjobs.workers.shutdown import StopLevel, StopRequest

# Counted after the grace period. Ending the process itself takes a moment of the five seconds.
_EXIT_SECONDS = 4.8


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many jobs one worker process runs at a time, and of which queues (None is all)."""

    concurrency: int = 10
    queues: Sequence[str] | None = None
    health_file: Path | None = None
    supervised: bool = False


def run_worker(jobs: AsyncJobs, options: WorkerOptions) -> None:
    """Run jobs until the process is stopped; return when all have ended or were given back.

    Raises what opening the queue raises. Until the queue is open, a signal ends the process at
    once, since there is nothing to give back yet. A process that does not stop within the grace
    period and five seconds is ended by `os._exit`, whatever its handlers do.
    """
    stops: list[StopRequest] = []
    try:
        anyio.run(_run, jobs, options, stops, backend="asyncio")
    finally:
        for stop in stops:
            # When the interpreter ends, it waits for threads that handlers started, and runs the
            # rest of their coroutines. No Python thread could end that; this timer does, within the
            # time allowed for the whole stop.
            faulthandler.dump_traceback_later(stop.ended(), exit=True)


async def _run(jobs: AsyncJobs, options: WorkerOptions, stops: list[StopRequest]) -> None:
    failure: AsyncJobsError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await _run_jobs(jobs, options, stops, tasks)
        except AsyncJobsError as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _run_jobs(
    jobs: AsyncJobs, options: WorkerOptions, stops: list[StopRequest], tasks: TaskGroup
) -> None:
    def running() -> str:
        return ", ".join(f"{job.id} ({job.type})" for job in jobs.running)

    limit = jobs.settings.grace.total_seconds() + _EXIT_SECONDS
    stop = StopRequest(limit, running)
    stops.append(stop)
    with ExitStack() as signals:
        await _serve(jobs, options, stop, signals, tasks)
    log.info("Worker %s has ended", os.getpid())


async def _serve(
    jobs: AsyncJobs,
    options: WorkerOptions,
    stop: StopRequest,
    signals: ExitStack,
    tasks: TaskGroup,
) -> None:
    async with jobs.as_worker(concurrency=options.concurrency, queues=options.queues):
        # Left only after the queue is closed: signals count while it drains.
        signals.enter_context(stop.following_signals())
        if options.supervised:
            stop.follow_supervisor()
        if options.health_file is not None:
            tasks.start_soon(write_heartbeats, options.health_file, jobs)
        queues = ", ".join(options.queues or jobs.registry.queues)
        log.info("Worker %s serves %s, %s jobs at a time", os.getpid(), queues, options.concurrency)
        # Objects made so far live as long as the process. Scanning them again and again took a
        # fifth of the time of short jobs.
        gc.freeze()
        tasks.start_soon(_stop_without_handlers, stop, jobs)
        try:
            await stop.wait_for(StopLevel.DRAIN)
        except BaseException:  # a handler may stop the event loop, which then cancels its tasks
            log.critical(
                "The event loop stopped; worker %s exits. Running jobs: %s",
                os.getpid(),
                stop.running() or "none",
            )
            raise
        log.info("Worker %s is stopping and starts no more jobs", os.getpid())
        tasks.start_soon(_hurry, stop, jobs)
        drained = jobs.is_drained
    if drained:
        raise ResourcesUnavailable("it has ended while the worker was running")


async def _stop_without_handlers(stop: StopRequest, jobs: AsyncJobs) -> None:
    """Stop a process whose handlers' lifespan has ended; another process may do better."""
    await jobs.until_drained()
    stop.request(StopLevel.DRAIN)


async def _hurry(stop: StopRequest, jobs: AsyncJobs) -> None:
    await stop.wait_for(StopLevel.HURRY)
    if jobs.is_open:
        jobs.hurry()
