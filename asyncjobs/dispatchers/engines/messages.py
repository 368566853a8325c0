"""Runs the job that an engine's message names, in a worker of the engine.

Functions and classes here raise no errors of jobs or of the store: the engine must neither retry
nor record a failure. Maintenance sends a job again if it was not started, and the store has the
outcome if it was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from asyncjobs.core.job import parse_job_id
from asyncjobs.errors import AsyncJobsError
from asyncjobs.portal import portal_for
from asyncjobs.records.logging import log

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs


async def run_message(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    """Run the job that a message names, in the event loop in which the queue is open.

    Returns when the attempt has ended. A message of another namespace or of an unknown job is
    logged and dropped. A message whose job has started or ended changes nothing.
    """
    job_id = parse_job_id(str(message.get("id")))
    if message.get("namespace") != namespace or job_id is None:
        log.warning("Dropped a message of another namespace than %s: %s", namespace, dict(message))
        return
    try:
        await jobs.run(job_id)
    except AsyncJobsError as error:
        log.warning("Job %s could not be run; it will be sent again: %s", job_id, error)


def run_message_from_thread(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    """Run a job as `run_message` does, for engines whose workers have no event loop.

    The first call opens the queue in a background thread, so this happens after any fork of the
    engine.
    """
    try:
        portal_for(jobs).call(run_message, jobs, namespace, message)
    except AsyncJobsError as error:
        _log_not_opened(error)


class AsyncMessageRunner:
    """Runs jobs in the asyncio event loop of an engine's worker, and keeps the queue open there.

    The first message opens the queue, unless the application has opened it. The queue is open in a
    separate task, since an engine may start and stop its worker in different tasks. When the loop
    cancels its remaining tasks, the queue is drained and closed, if `close` was not called before.
    """

    def __init__(self, jobs: AsyncJobs, namespace: str) -> None:
        self._jobs = jobs
        self._namespace = namespace
        self._opening: _OpenQueue | None = None

    async def run(self, message: Mapping[str, object]) -> None:
        """Run a job as `run_message` does. If this call is cancelled, the job is given back.

        The handler runs in a separate task, which the cancellation does not reach.
        """
        if await self.try_open():
            await run_message(self._jobs, self._namespace, message)

    async def try_open(self) -> bool:
        """Open the queue and return whether it is open; log the error if it cannot be opened.

        An engine's worker also runs other tasks, which go on without the queue.
        """
        try:
            await self.open()
        except AsyncJobsError as error:
            _log_not_opened(error)
            return False
        return True

    async def open(self) -> None:
        """Return when the queue is open. Raises what opening it raises, and may be repeated."""
        if self._jobs.is_open:
            return
        if self._opening is None or not self._opening.is_of_this_loop:
            self._opening = _OpenQueue(self._jobs)
        try:
            # Shielded, since several callers wait for it: cancelling one of them must not end it.
            await asyncio.shield(self._opening.opened)
        except Exception:
            self._opening = None
            raise

    async def close(self) -> None:
        """Drain and close the queue, if it was opened here."""
        opening, self._opening = self._opening, None
        if opening is not None and opening.is_of_this_loop:
            opening.close.set()
            await opening.task


class _OpenQueue:
    """A task of one event loop in which the queue is open until `close` is set."""

    def __init__(self, jobs: AsyncJobs) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self.close = asyncio.Event()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.task = self._loop.create_task(self._keep_open(jobs), name="asyncjobs")

    @property
    def is_of_this_loop(self) -> bool:
        """Whether the task belongs to the running loop, not to an ended or forked one."""
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop()

    async def _keep_open(self, jobs: AsyncJobs) -> None:
        try:
            async with jobs:
                self.opened.set_result(None)
                await self.close.wait()
        except Exception as error:
            if self.opened.done():
                raise
            self.opened.set_exception(error)


def _log_not_opened(error: AsyncJobsError) -> None:
    log.warning("The queue could not be opened; its jobs will be sent again: %s", error)
