"""What an engine's worker does with the message of a job: runs it, and always ends normally.

An engine must not try again by itself, nor call a job failed that we have not: housekeeping brings
up what was not begun, and the store has the outcome of what was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from asyncjobs.errors import AsyncJobsError
from asyncjobs.model import parse_job_id
from asyncjobs.portal import portal_for
from asyncjobs.queue import AsyncJobs

log = logging.getLogger("asyncjobs")


async def carry(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
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


def carry_from_thread(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    """Run a job as `carry` does, for engines whose workers have no event loop.

    The queue is opened in the background at first use, after whatever fork the engine has made.
    """
    try:
        portal_for(jobs).call(carry, jobs, namespace, message)
    except AsyncJobsError as error:
        log.warning("The queue could not be opened; its jobs come up again: %s", error)
