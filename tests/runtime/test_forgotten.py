"""The event `forgotten`: sent once for each deleted job, with the job's last state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, Event, Job, JobContext, JobFailed, Policy, Transition
from asyncjobs.core import lifecycle
from asyncjobs.core.job import JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.testing import FaultyStore, ManualClock, sample_job
from tests.queues import IDLE, Make, settled
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

HOUR = timedelta(hours=1)
#: Sweeps all the time, by a clock that only the test moves.
SWEEPING = replace(IDLE, sweep_interval=timedelta(seconds=0.01))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def new_queue(make: Make, clock: ManualClock) -> Callable[[], AsyncJobs]:
    """Make queues that share their jobs, keep them for an hour and sweep all the time."""
    policy = Policy(retention=HOUR)

    def new() -> AsyncJobs:
        jobs = make(clock=clock, settings=SWEEPING, policy=policy, dispatcher=LocalDispatcher())

        @jobs.handler("export")
        async def export(month: str, _job: JobContext) -> str:
            if not month:
                raise JobFailed("There is no such month.")
            return f"{month}.csv"

        return jobs

    return new


@pytest.fixture
def jobs(new_queue: Callable[[], AsyncJobs]) -> AsyncJobs:
    return new_queue()


def forgotten_of(jobs: AsyncJobs) -> list[Transition]:
    """Return a list to which each event `forgotten` is added."""
    seen: list[Transition] = []
    jobs.on("forgotten", seen.append)
    return seen


def ended(clock: ManualClock) -> Job:
    """Return a job that has just ended, and is kept for an hour."""
    job = sample_job(created_at=clock.now(), retention=HOUR)
    return lifecycle.cancel(job, clock.now())


async def test_a_job_is_forgotten_when_its_retention_ends(
    jobs: AsyncJobs, beside: Any, clock: ManualClock
) -> None:
    seen: list[tuple[Transition, Job | None]] = []

    @jobs.on("forgotten")
    async def look(transition: Transition) -> None:
        [stored] = await beside.get([transition.job.id])
        seen.append((transition, stored))

    async with jobs:
        job = await settled(jobs, (await jobs.enqueue("export", "may")).id)
        clock.advance(HOUR)
        await until(lambda: len(seen) == 1)
    [(transition, stored)] = seen
    assert (transition.event, transition.at, stored) == (Event.FORGOTTEN, clock.now(), None)
    assert transition.job.payload_json == b'"may"'
    assert transition.job.result_json == b'"may.csv"'
    assert (transition.job.id, transition.job.status) == (job.id, "completed")
    assert transition.before == transition.job
    assert not transition.worker_lost


async def test_one_of_several_processes_sends_the_event(
    new_queue: Callable[[], AsyncJobs], beside: Any, clock: ManualClock
) -> None:
    queues = [new_queue(), new_queue()]
    seen = [forgotten_of(jobs) for jobs in queues]
    expected = [ended(clock) for _ in range(30)]
    await beside.insert(expected)
    clock.advance(HOUR)
    async with queues[0], queues[1]:
        await until(lambda: sum(map(len, seen)) >= len(expected))
    ids = [transition.job.id for one in seen for transition in one]
    assert sorted(ids) == sorted(job.id for job in expected)


class PurgedInBetween(FaultyStore):
    """A store in which another process deletes the first job just before this one does."""

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        await self.store.delete(ids[:1])
        return await super().delete(ids)


async def test_a_job_deleted_by_another_process_sends_no_event_here(
    make: Make, store: Any, beside: Any, clock: ManualClock
) -> None:
    jobs = make(store=PurgedInBetween(store), clock=clock, settings=SWEEPING)
    seen = forgotten_of(jobs)
    first, second = ended(clock), ended(clock)
    await beside.insert([first, second])
    clock.advance(HOUR)
    async with jobs:
        await until(lambda: bool(seen))
    assert [transition.job.id for transition in seen] == [second.id]


async def test_reusing_an_idempotency_key_forgets_the_former_job(
    make: Make, clock: ManualClock
) -> None:
    jobs = make(clock=clock, settings=IDLE, policy=Policy(retention=HOUR))
    jobs.external("order", payload=str, result=str)
    told: list[tuple[Event, Any]] = []
    for event in (Event.ENQUEUED, Event.FORGOTTEN):
        jobs.on(event, lambda transition: told.append((transition.event, transition.job.id)))
    async with jobs:
        first = await jobs.enqueue("order", "pen", idempotency_key="k")
        await jobs.cancel(first.id)
        clock.advance(HOUR)
        second = await jobs.enqueue("order", "pen", idempotency_key="k")
    assert sorted(told) == sorted(
        [(Event.ENQUEUED, first.id), (Event.FORGOTTEN, first.id), (Event.ENQUEUED, second.id)]
    )


async def test_jobs_are_kept_while_a_slow_hook_is_behind(
    jobs: AsyncJobs, beside: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: set[Any] = set()
    free = anyio.Event()

    @jobs.on("forgotten")
    async def remove_files(transition: Transition) -> None:
        await free.wait()
        seen.add(transition.job.id)

    ids = [job.id for job in await beside.insert([ended(clock) for _ in range(1300)])]

    async def left() -> int:
        return sum(job is not None for job in await beside.get(ids))

    async def is_half_full() -> bool:
        return await left() == 800

    async def are_seen() -> bool:
        clock.advance(jobs.settings.redelivery)
        return len(seen) == len(ids)

    clock.advance(HOUR)
    async with jobs:
        await until(is_half_full)
        clock.advance(jobs.settings.redelivery)
        free.set()
        await until(are_seen)
        assert await left() == 0
    assert "behind" not in caplog.text


async def test_the_log_does_not_repeat_the_error_of_a_forgotten_job(
    jobs: AsyncJobs, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen = forgotten_of(jobs)
    with caplog.at_level(logging.INFO, "asyncjobs"):
        async with jobs:
            job = await settled(jobs, (await jobs.enqueue("export", "")).id)
            clock.advance(HOUR)
            await until(lambda: len(seen) == 1)
    [record] = [one for one in caplog.records if vars(one).get("job_event") == "forgotten"]
    assert record.getMessage() == f"Job {job.id} (export) was deleted, attempt 1"
