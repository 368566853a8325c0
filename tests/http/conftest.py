"""Jobs in every state, for the rules of HTTP; and when requests are held for news of one."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    Job,
    JobError,
    JobStatus,
    Progress,
)
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Detail, Lease, new_job_id
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW

FENCE = "the-token"
LATER = NOW + timedelta(seconds=3)


def _jobs() -> dict[JobStatus, Job]:
    waiting = sample_job(estimated_duration=timedelta(seconds=30))

    lease = Lease(worker="host:1", token=FENCE, until=LATER)
    half = Progress(percent=50, detail=Detail(message="writing", current=1, total=2, unit="rows"))
    running = lifecycle.report(lifecycle.start(waiting, NOW, lease), half, token=FENCE)
    error = JobError(code="disk_full", message="The disk is full.")
    return {
        JobStatus.PENDING: waiting,
        JobStatus.PROCESSING: running,
        JobStatus.COMPLETED: lifecycle.complete(running, LATER, token=FENCE, result=b'{"rows":2}'),
        JobStatus.FAILED: lifecycle.fail(running, LATER, token=FENCE, error=error),
        JobStatus.CANCELLED: lifecycle.cancel(waiting, LATER),
    }


@pytest.fixture
def job_of_each_status() -> dict[JobStatus, Job]:
    return _jobs()


@pytest.fixture(params=JobStatus)
def job(request: pytest.FixtureRequest) -> Job:
    return _jobs()[request.param]


async def followed(jobs: AsyncJobs, by: int = 1) -> None:
    """Return when so many follow a job, and have read how it stands."""
    with anyio.fail_after(60):
        while jobs.watchers < by:  # noqa: ASYNC110  # nobody tells of it
            await anyio.sleep(0.005)
        await jobs.get(new_job_id())  # reads are answered in the order in which they are asked for
