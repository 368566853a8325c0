"""Reads return the present state of jobs: overdue jobs are repaired, in lists, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from asyncjobs import (
    AsyncJobs,
    Job,
    JobContext,
    JobStatus,
    Policy,
    Settings,
)
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Delivery, JobId, Lease, new_job_id, suspects_lane
from asyncjobs.core.output import Append, StreamKind
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.protocols import Change, Selection, Store
from asyncjobs.records.repository import JobWrite, delete_jobs
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import FaultyStore, ManualClock, sample_job
from asyncjobs.testing.samples import NOW, sample_error, sample_submission
from asyncjobs.testing.samples import begun as begun_sample

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

# Only the reader may find an overdue job.
ASLEEP = Settings(poll_interval=timedelta(hours=1), sweep_interval=timedelta(hours=1))

NOTHING: dict[str, Any] = {}

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def jobs(store: Store, clock: ManualClock) -> AsyncJobs:
    made = AsyncJobs(
        store,
        clock=clock,
        settings=ASLEEP,
        policy=Policy(retention=timedelta(hours=1)),
        dispatcher=LocalDispatcher(concurrency=1),
    )
    made.external("order", payload=dict[str, Any], result=dict[str, Any])
    made.external("import", payload=dict[str, Any], result=dict[str, Any])
    return made


def waiting(clock: ManualClock, **submission: Any) -> Job:
    """Make a job that waits for a worker of another process."""
    return sample_job(queue="elsewhere", created_at=clock.now(), **submission)


async def begun(store: Any, job: Job, clock: ManualClock) -> Job:
    """Let a worker of another process start a job and then disappear."""
    lease = Lease(worker="lost", token="t", until=clock.now() + MINUTE)
    started = lifecycle.start(job, clock.now(), lease)
    await store.replace([Change(started, job.revision)])
    return started


def ids(found: Any) -> list[JobId]:
    return [job.id for job in found.jobs]


async def test_a_page_has_50_jobs_by_default(jobs: AsyncJobs) -> None:
    async with jobs:
        for _ in range(51):
            await jobs.enqueue("order", NOTHING)
        page = await jobs.list(Selection())
    assert len(page.jobs) == 50
    assert page.next is not None


async def test_a_list_only_reads_the_jobs_that_it_repairs_one_by_one(
    store: Store, clock: ManualClock
) -> None:
    counted = FaultyStore(store)
    jobs = AsyncJobs(counted, clock=clock, settings=ASLEEP, dispatcher="worker")
    async with jobs:
        late, in_time = waiting(clock, deadline=clock.now() + MINUTE), waiting(clock)
        await store.insert([late, in_time])
        clock.advance(MINUTE)
        found = await jobs.list(Selection())
    assert set(ids(found)) == {late.id, in_time.id}
    read = {job_id for call in counted.calls if call.method == "get" for job_id in call.ids}
    assert read == {late.id}


async def test_the_age_of_a_queue_is_that_of_its_oldest_due_job(
    store: Store, clock: ManualClock
) -> None:
    jobs = AsyncJobs(store, clock=clock, settings=ASLEEP, dispatcher="worker")

    @jobs.handler("export", policy=Policy(queue="elsewhere"))
    async def export(_payload: object, _job: JobContext) -> None: ...

    async with jobs:
        assert await jobs.oldest_waiting() == {"elsewhere": timedelta(0)}
        await store.insert([waiting(clock).changed(due_at=clock.now() + MINUTE)])
        assert await jobs.oldest_waiting() == {"elsewhere": timedelta(0)}
        await store.insert([waiting(clock)])
        clock.advance(MINUTE / 2)
        assert await jobs.oldest_waiting() == {"elsewhere": MINUTE / 2}
        clock.advance(MINUTE)
        suspect = suspects_lane("elsewhere")
        await store.insert([waiting(clock).changed(lane=suspect, due_at=clock.now() - DAY)])
        assert await jobs.oldest_waiting() == {"elsewhere": DAY}


async def test_a_job_whose_deadline_has_passed_is_listed_as_failed(
    jobs: AsyncJobs, clock: ManualClock
) -> None:
    async with jobs:
        job = await jobs.enqueue("order", NOTHING)
        clock.advance(2 * DAY)
        [listed] = (await jobs.list(Selection())).jobs
        found = await jobs.find(job.id)
    assert (listed.id, listed.status) == (job.id, JobStatus.FAILED)
    assert listed.error == lifecycle.DEADLINE_EXCEEDED
    assert (found.status, found.version) == (JobStatus.FAILED, listed.version)


async def test_a_job_whose_worker_is_lost_is_listed_as_waiting_again(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        job = waiting(clock)
        await store.insert([job])
        await begun(store, job, clock)
        clock.advance(2 * MINUTE)
        [listed] = (await jobs.list(Selection())).jobs
    assert (listed.status, listed.losses, listed.lease) == (JobStatus.PENDING, 1, None)


async def test_a_job_repaired_by_a_list_keeps_its_payload(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        job = waiting(clock)
        await store.insert([job])
        await begun(store, job, clock)
        clock.advance(2 * MINUTE)
        await jobs.list(Selection())
        assert (await jobs.find(job.id)).payload_json == job.payload_json


async def test_followers_of_a_job_repaired_by_a_list_get_all_of_it(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        job = waiting(clock)
        await store.insert([job])
        await begun(store, job, clock)
        updates = jobs.subscribe(job.id)
        await anext(updates)
        clock.advance(2 * MINUTE)
        await jobs.list(Selection())
        again = await anext(updates)
    assert again.status is JobStatus.PENDING
    assert again.payload_json == job.payload_json


async def test_a_repaired_job_is_only_listed_under_its_new_status(
    jobs: AsyncJobs, clock: ManualClock
) -> None:
    async with jobs:
        await jobs.enqueue("order", NOTHING)
        clock.advance(2 * DAY)
        assert ids(await jobs.list(Selection(status=JobStatus.PENDING))) == []
        assert len(ids(await jobs.list(Selection(status=JobStatus.FAILED)))) == 1


async def test_a_job_whose_retention_has_ended_is_in_no_list(
    jobs: AsyncJobs, clock: ManualClock
) -> None:
    async with jobs:
        old, young = [await jobs.enqueue("order", NOTHING) for _ in range(2)]
        await jobs.complete(old.id, {})
        clock.advance(timedelta(hours=2))
        await jobs.complete(young.id, {})
        page = await jobs.list(Selection(status=JobStatus.COMPLETED), limit=1)
        rest = await jobs.list(Selection(status=JobStatus.COMPLETED), limit=1, after=page.next)
    assert ids(page) == [young.id]
    # An empty page may lead to another one or be the last; a deleted job is on none.
    assert ids(rest) == []


async def test_position_counts_the_jobs_before_a_job(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        queued = [waiting(clock) for _ in range(3)]
        await store.insert(queued)
        assert [await jobs.position(job) for job in queued] == [1, 2, 3]
        await begun(store, queued[0], clock)
        assert [await jobs.position(job) for job in queued[1:]] == [1, 2]


Made = Callable[[ManualClock], Job]


def delayed(clock: ManualClock) -> Job:
    submission = waiting(clock)
    return submission.model_copy(update={"run_at": clock.now() + MINUTE})


def external(clock: ManualClock) -> Job:
    return waiting(clock, delivery=Delivery.EXTERNAL)


def pushed(clock: ManualClock) -> Job:
    return waiting(clock, delivery=Delivery.PUSH)


def running(clock: ManualClock) -> Job:
    lease = Lease(worker="w", token="t", until=clock.now() + MINUTE)
    return lifecycle.start(waiting(clock), clock.now(), lease)


def finished(clock: ManualClock) -> Job:
    return lifecycle.cancel(waiting(clock), clock.now())


@pytest.mark.parametrize("make", [delayed, external, pushed, running, finished])
async def test_a_job_that_waits_for_another_engine_has_no_position(
    make: Made, jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        job = make(clock)
        await store.insert([job])
        assert await jobs.position(job) is None


async def test_delayed_jobs_do_not_count_in_a_position(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    submission = sample_submission(queue="elsewhere", created_at=clock.now())
    later = lifecycle.submit(submission, run_at=clock.now() + timedelta(hours=1))
    async with jobs:
        job = waiting(clock)
        await store.insert([later, job])
        assert await jobs.position(job) == 1


async def test_jobs_reserved_by_another_process_come_first_in_positions(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        first, second = waiting(clock), waiting(clock)
        held = first.model_copy(update={"due_at": clock.now() + timedelta(seconds=30)})
        await store.insert([held, second])
        assert await jobs.position(second) == 2


async def test_a_position_over_a_thousand_is_not_counted(
    jobs: AsyncJobs, store: Any, clock: ManualClock
) -> None:
    async with jobs:
        queued = [waiting(clock) for _ in range(1001)]
        await store.insert(queued)
        assert await jobs.position(queued[999]) == 1000
        assert await jobs.position(queued[1000]) is None


def test_a_write_only_contains_wide_data_that_has_changed() -> None:
    lease = Lease(worker="host:1", token="t", until=NOW + MINUTE)
    started = lifecycle.start(sample_job(), NOW, lease)
    noted = lifecycle.note_error(started, sample_error(1))
    extended = lifecycle.extend(noted, NOW, token="t", until=NOW + MINUTE)
    again = lifecycle.note_error(noted, sample_error(2))
    done = lifecycle.complete(noted, NOW, token="t", result=b"7")
    for before, after, errors, result in (
        (started, noted, noted.errors_json, None),
        (noted, extended, None, None),
        (noted, again, again.errors_json, None),
        (noted, done, None, b"7"),
        (done, done.changed(revision=9), None, None),
    ):
        change = JobWrite(before, after).change()
        assert (change.job.errors_json, change.job.result_json) == (errors, result)
        assert change.expected_revision == before.revision
        assert before.updated(change.job) == after


@pytest.mark.own_store
async def test_jobs_with_much_output_are_deleted_in_several_calls() -> None:
    calls: list[list[JobId]] = []

    class Noting(MemoryStore):
        async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
            calls.append([*ids])
            return await super().delete(ids)

    async with Noting() as store:
        jobs = [begun_sample(sample_job()) for _ in range(5)]
        await store.insert(jobs)
        for job, size in zip(jobs, (1, 9, 9, 20, 0), strict=True):
            data = b"x" * (size * 1024 * 1024)
            await store.append([Append(job.id, "log", StreamKind.BYTES, 1, 1, data, 10, 10**9)])
        wanted = [job.id for job in jobs]
        assert await delete_jobs(store, [*wanted, new_job_id()]) == [True] * 5 + [False]
        assert list(await store.get(wanted)) == [None] * 5
    assert [len(call) for call in calls] == [2, 1, 1, 2]
