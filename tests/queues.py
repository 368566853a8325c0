"""Queues with short intervals: the fixtures `make` and `jobs`, and waiting for one of their jobs.

The lease is longer than the pauses of a busy machine. A test marked `every_store` that uses a
fixture runs on every store. `simulated` runs a test in simulated time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobStatus, Settings
from tests.waiting import PATIENCE_SECONDS

QUICK = Settings(
    lease=timedelta(seconds=2),
    redelivery=timedelta(seconds=0.6),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    progress_interval=timedelta(seconds=0.01),
    grace=timedelta(seconds=0.2),
)

#: Nothing happens by itself: no polling, and no sweep except the first.
IDLE = Settings(
    poll_interval=timedelta(hours=1), sweep_interval=timedelta(hours=1), grace=timedelta(0)
)

Make = Callable[..., AsyncJobs]


@pytest.fixture
def make(new_store: Callable[[], Any]) -> Make:
    """Make queues on the test's store; they share it, as processes do."""

    def build(**arguments: Any) -> AsyncJobs:
        given: dict[str, Any] = {"store": new_store(), "settings": QUICK, **arguments}
        return AsyncJobs(**given)

    return build


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return make()


async def finished(jobs: AsyncJobs, handler: Any, payload: Any = None, **options: Any) -> Job:
    """Enqueue a job and return it when it has ended."""
    handle = await jobs.enqueue(handler, payload, options=EnqueueOptions(**options))
    return await settled(jobs, handle.id)


async def settled(jobs: AsyncJobs, job_id: Any) -> Job:
    """Return the job when it has ended."""
    done = await jobs.wait(job_id, timeout=PATIENCE_SECONDS)
    assert done.status.terminal, done
    return done


async def running(jobs: AsyncJobs, handler: Any, payload: Any = None) -> Job:
    """Enqueue a job and return it when it has started."""
    handle = await jobs.enqueue(handler, payload)
    with anyio.fail_after(PATIENCE_SECONDS):
        async for job in handle:
            if job.status is JobStatus.PROCESSING:
                return job
    raise AssertionError("the job never began")


def simulated(work: Callable[[], Awaitable[object]]) -> None:
    """Run a test on trio with a clock that jumps to the next moment for which a task waits."""
    clock = MockClock(autojump_threshold=0)
    trio.run(work, clock=clock)  # `anyio.run` before 4.14 ignores the clock
