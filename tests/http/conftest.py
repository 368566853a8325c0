"""Jobs in every status, and queues that are mounted or followed, on each store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from asyncjobs import (
    Job,
    JobError,
    JobStatus,
    Progress,
)
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Detail, Lease
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.mounts import Mount
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW
from tests.http.followers import Place, place_of
from tests.http.mounted import Made, mounted

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


@pytest.fixture
def made(new_store: Callable[[], Any]) -> Made:
    """Return a function that mounts a queue on a store of the test."""

    def build(mount: Mount | None = None, store: Any = None) -> Endpoints:
        return mounted(store or new_store(), mount)

    return build


@pytest.fixture
def place(store: Any) -> Callable[..., Place]:
    """Return a function that makes a place on the test's store."""
    return partial(place_of, store)
