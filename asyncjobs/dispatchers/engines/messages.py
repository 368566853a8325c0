"""What an engine's worker does with the message of a job: runs it, and always ends normally.

An engine must not try again by itself, nor call a job failed that we have not: maintenance brings
up what was not begun, and the store has the outcome of what was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio

from asyncjobs.core.job import parse_job_id
from asyncjobs.errors import AsyncJobsError
from asyncjobs.portal import portal_for

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

log = logging.getLogger("asyncjobs")


async def run_message(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    """Run the job that a message names, in the event loop where the queue is open.

    Returns when its attempt has ended. A message of another namespace, or of an unknown job, is
    logged and dropped. What is already begun or ended is left alone: deliveries may be doubled.
    """
    job_id = parse_job_id(str(message.get("id")))
    if message.get("namespace") != namespace or job_id is None:
        log.warning("A message that is none of ours was dropped: %r", dict(message))
        return
    try:
        await jobs.run(job_id)
    except AsyncJobsError as error:
        log.warning("Job %s could not be run; it comes up again: %s", job_id, error)


def run_message_from_thread(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    """Run a job as `run_message` does, for engines whose workers have no event loop.

    The queue is opened in the background at first use, after whatever fork the engine has made.
    """
    try:
        portal_for(jobs).call(run_message, jobs, namespace, message)
    except AsyncJobsError as error:
        log.warning("The queue could not be opened; its jobs come up again: %s", error)


class QueueResidence:
    """Keeps a queue open in the asyncio event loop of an engine's worker.

    It is opened by the first message, unless the application has opened it, and has a task of its
    own: an engine begins and ends its worker in whatever tasks it likes. When the loop cancels
    its last tasks, the queue is drained and closed, if `close` was not called before.
    """

    def __init__(self, jobs: AsyncJobs, namespace: str) -> None:
        self._jobs = jobs
        self._namespace = namespace
        self._stay: _Stay | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def run_message(self, message: Mapping[str, object]) -> None:
        """Run a job as the function `run_message` does; give it back when this is cancelled.

        In a task of its own: there the cancellation that engines know, asyncio's, would look as if
        the handler had raised it, and the job would have failed.
        """
        if not await self.begin():
            return
        scope = anyio.CancelScope()
        errand = asyncio.create_task(self._carry_within(scope, message))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)
        try:
            await asyncio.shield(errand)
        except asyncio.CancelledError:
            scope.cancel()
            # Whoever cancels once more does not wait; it goes on until the job is given back.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([errand])
            raise

    async def begin(self) -> bool:
        """Open the queue, and say whether it is open; what keeps it from opening is logged.

        An engine's worker may have more to do than jobs, and goes on without.
        """
        try:
            await self.open()
        except AsyncJobsError as error:
            log.warning("The queue could not be opened; its jobs come up again: %s", error)
            return False
        return True

    async def open(self) -> None:
        """Return when the queue is open; raises what opening it raises, and may be called again."""
        if self._jobs.is_open:
            return
        if self._stay is None or not self._stay.is_ours:
            self._stay = _Stay(self._jobs)
        try:
            # Others wait for it, too: who is cancelled here must not take it with them.
            await asyncio.shield(self._stay.opened)
        except Exception:
            self._stay = None
            raise

    async def close(self) -> None:
        """Drain and close the queue, if it was opened here."""
        stay, self._stay = self._stay, None
        if stay is not None and stay.is_ours:
            stay.leave.set()
            await stay.task

    async def _carry_within(self, scope: anyio.CancelScope, message: Mapping[str, object]) -> None:
        with scope:
            await run_message(self._jobs, self._namespace, message)


class _Stay:
    """One stretch of time in one event loop, in which the queue is open."""

    def __init__(self, jobs: AsyncJobs) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self.leave = asyncio.Event()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.task = self._loop.create_task(self._live_in(jobs), name="asyncjobs")

    @property
    def is_ours(self) -> bool:
        """Whether it is of this loop, and not of one that has ended or was copied by a fork."""
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop()

    async def _live_in(self, jobs: AsyncJobs) -> None:
        try:
            async with jobs:
                self.opened.set_result(None)
                await self.leave.wait()
        except Exception as error:
            if self.opened.done():
                raise
            self.opened.set_exception(error)
