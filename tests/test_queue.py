"""The queue's public methods, used as in an application."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    JobContext,
    JobStatus,
    Settings,
)
from asyncjobs.core.job import Job, JobId, new_job_id
from asyncjobs.errors import (
    ConfigurationError,
    IdempotencyConflict,
    IllegalMove,
    InvalidPayload,
    InvalidResult,
    JobUnsuccessful,
    LostLease,
    NotOpen,
    StoreUnavailable,
    UnknownJob,
)
from asyncjobs.protocols import Selection, Transactions
from asyncjobs.testing import Faults, FaultyStore, ManualClock
from tests.queues import IDLE, Make, running, settled

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Order(BaseModel):
    amount: int = Field(gt=0)


async def test_a_job_runs_and_its_result_is_kept(jobs: AsyncJobs) -> None:
    @jobs.handler("double")
    async def double(order: Order, _job: JobContext) -> Order:
        return Order(amount=2 * order.amount)

    async with jobs:
        job = (await jobs.enqueue(double, Order(amount=21))).job
        done = await jobs.wait(job.id)
        assert (done.status, done.result) == (JobStatus.COMPLETED, {"amount": 42})
        assert double.result_of(done) == Order(amount=42)
        assert await jobs.get(job.id) == done


async def test_an_invalid_payload_creates_no_job(jobs: AsyncJobs, beside: Any) -> None:
    @jobs.handler("order")
    async def order(_order: Order, _job: JobContext) -> None: ...

    async with jobs:
        with pytest.raises(InvalidPayload) as refused:
            await jobs.enqueue("order", {"amount": -1})
        assert refused.value.issues[0].field == "amount"
        with pytest.raises(InvalidPayload):
            await jobs.enqueue("order", {"amount": "many"})
    assert not (await beside.list(Selection(), limit=9)).jobs


async def test_a_closed_queue_raises_not_open(jobs: AsyncJobs) -> None:
    with pytest.raises(NotOpen, match="async with"):
        await jobs.get(new_job_id())


async def test_a_queue_cannot_be_opened_twice_but_can_be_reopened(jobs: AsyncJobs) -> None:
    async with jobs:
        assert jobs.is_open
        with pytest.raises(ConfigurationError, match="already open"):
            await jobs.__aenter__()
    with pytest.raises(NotOpen):
        await jobs.get(new_job_id())
    async with jobs:
        assert await jobs.get(new_job_id()) is None


class SlowToClose(FaultyStore):
    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.closing, self.go_on = anyio.Event(), anyio.Event()

    async def __aexit__(self, *error: object) -> bool | None:
        self.closing.set()
        await self.go_on.wait()
        return await self.store.__aexit__(None, None, None)


async def test_a_wait_raises_not_open_while_the_queue_closes(make: Make, store: Any) -> None:
    slow = SlowToClose(store)
    jobs = make(store=slow)
    kind = jobs.external("import", payload=str, result=int)

    async def wait_in_vain() -> None:
        await slow.closing.wait()
        for wait in (jobs.wait, jobs.next_change):
            with pytest.raises(NotOpen):
                await wait(job.id)
        slow.go_on.set()

    async with anyio.create_task_group() as tasks, jobs:
        job = await jobs.enqueue(kind, "a.csv")
        tasks.start_soon(wait_in_vain)


async def test_closing_a_queue_that_is_not_open_is_an_error(jobs: AsyncJobs) -> None:
    with pytest.raises(NotOpen):
        await jobs.__aexit__(None, None, None)


@pytest.mark.own_store
async def test_a_queue_in_a_forked_child_is_not_open_and_can_be_opened(
    jobs: AsyncJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with jobs:
        copied = copy.copy(jobs)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            with pytest.raises(NotOpen):
                await copied.get(new_job_id())
            async with copied:
                assert await copied.get(new_job_id()) is None
        assert jobs.is_open


async def test_an_exception_in_the_block_is_raised_unchanged(jobs: AsyncJobs) -> None:
    with pytest.raises(KeyError):
        async with jobs:
            raise KeyError


# options


async def test_a_delayed_job_waits_and_its_deadline_counts_from_run_at(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock)

    @jobs.handler("later")
    async def later(_none: None, job: JobContext) -> int:
        return job.attempt

    async with jobs:
        options = EnqueueOptions(run_at=timedelta(hours=1), deadline=60)
        job = (await jobs.enqueue(later, None, options=options)).job
        assert job.run_at == job.due_at == job.created_at + timedelta(hours=1)
        assert job.deadline == job.run_at + timedelta(seconds=60)
        clock.advance(timedelta(hours=1))
        done = await settled(jobs, job.id)
    assert done.started_at == job.run_at


# idempotency


async def test_the_same_key_and_payload_return_the_same_job(jobs: AsyncJobs) -> None:
    runs: list[int] = []

    @jobs.handler("order")
    async def order(given: Order, _job: JobContext) -> None:
        runs.append(given.amount)

    async with jobs:
        first = (await jobs.enqueue(order, Order(amount=1), idempotency_key="k")).job
        await jobs.wait(first.id)
        again = (await jobs.enqueue(order, Order(amount=1), idempotency_key="k")).job
        assert (again.id, again.status) == (first.id, JobStatus.COMPLETED)
        with pytest.raises(IdempotencyConflict) as conflict:
            await jobs.enqueue(order, Order(amount=2), idempotency_key="k")
        assert (conflict.value.key, conflict.value.job_id) == ("k", first.id)
    assert runs == [1]


class Rivalled(FaultyStore):
    """Another process uses a key first that has become free."""

    @property
    def powers(self) -> frozenset[type]:
        return super().powers | {Transactions}

    rival: Job | None = None

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        deleted = await super().delete(ids)
        if self.rival is not None:
            await self.insert([self.rival])
        return deleted

    async def insert_within(self, _connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self.insert(jobs)


@pytest.mark.parametrize("connection", [None, object()], ids=["alone", "within"])
async def test_a_key_is_free_again_when_its_job_is_forgotten(
    make: Make, store: Any, connection: object | None
) -> None:
    clock = ManualClock()
    jobs = make(store=Rivalled(store), clock=clock, settings=IDLE)
    kind = jobs.external("t", payload=int, result=int)
    async with jobs:
        old = (await jobs.enqueue(kind, 1, idempotency_key="k")).job
        await jobs.complete(old.id, 1)
        clock.advance(timedelta(hours=24))
        new = (await jobs.enqueue(kind, 2, idempotency_key="k", connection=connection)).job
        assert (new.id != old.id, new.payload) == (True, 2)
        assert await jobs.get(new.id) == new


@pytest.mark.parametrize("connection", [None, object()], ids=["alone", "within"])
async def test_two_submissions_under_a_freed_key_create_one_job(
    make: Make, store: Any, connection: object | None
) -> None:
    clock, rivalled = ManualClock(), Rivalled(store)
    jobs = make(store=rivalled, clock=clock, settings=IDLE)
    kind = jobs.external("t", payload=int, result=int)
    async with jobs:
        old = (await jobs.enqueue(kind, 1, idempotency_key="k")).job
        await jobs.complete(old.id, 1)
        clock.advance(timedelta(hours=24))
        rivalled.rival = old.model_copy(
            update={"id": new_job_id(), "deadline": clock.now() + timedelta(hours=1)}
        )
        found = (await jobs.enqueue(kind, 1, idempotency_key="k", connection=connection)).job
        assert found.id == rivalled.rival.id


async def test_a_submission_repeated_after_a_lost_answer_starts_at_once(
    make: Make, store: Any
) -> None:
    """The first submission reserved a slot here and never used it."""
    faulty = FaultyStore(store)
    jobs = make(store=faulty, settings=Settings(redelivery=timedelta(hours=1)))

    @jobs.handler("order")
    async def order(_number: int, _job: JobContext) -> str:
        return "done"

    async with jobs:
        faulty.faults = Faults(after=1, only=["insert"], most=1)
        with pytest.raises(StoreUnavailable):
            await jobs.enqueue(order, 7, idempotency_key="k")
        job = (await jobs.enqueue(order, 7, idempotency_key="k")).job
        assert (await jobs.wait(job.id, timeout=30)).result == "done"


async def test_a_replayed_submission_returns_the_present_state(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, settings=IDLE)
    kind = jobs.external("t", payload=int, result=int)
    async with jobs:
        await jobs.enqueue(kind, 1, idempotency_key="k")
        clock.advance(timedelta(hours=24))
        assert (await jobs.enqueue(kind, 1, idempotency_key="k")).job.status is JobStatus.FAILED


# external jobs


async def test_an_external_job_is_started_by_its_first_report(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=Order, result=Order)
    async with jobs:
        job = (await jobs.enqueue(kind, Order(amount=3))).job
        reported = await jobs.update_progress(job.id, 30, "rendering")
        assert (reported.status, reported.progress) == (JobStatus.PROCESSING, 30)
        assert reported.detail is not None
        assert reported.detail.message == "rendering"
        again = await jobs.update_progress(job.id, 60)
        assert (again.progress, again.attempt) == (60, 1)
        done = await jobs.complete(job.id, Order(amount=9))
        assert kind.result_of(done) == Order(amount=9)


async def test_an_external_job_may_end_without_a_report(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        one, two = (await jobs.enqueue(kind, 1)).job, (await jobs.enqueue(kind, 2)).job
        assert (await jobs.complete(one.id, 1)).status is JobStatus.COMPLETED
        failed = await jobs.fail(two.id, "No more paper.", code="paper")
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("paper", "No more paper.")
        with pytest.raises(JobUnsuccessful, match=r"failed: No more paper") as raised:
            kind.result_of(failed)
        assert raised.value.job == failed


async def test_an_ended_job_cannot_end_again(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        done = await jobs.complete(job.id, 1)
        for again in (jobs.complete(job.id, 2), jobs.fail(job.id, "no"), jobs.stop(job.id)):
            with pytest.raises(IllegalMove):
                await again
        assert await jobs.get(job.id) == done


async def test_an_invalid_result_changes_nothing(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        with pytest.raises(InvalidResult):
            await jobs.complete(job.id, "many")
        assert await jobs.get(job.id) == job


async def test_stop_cancels_an_external_job_after_a_stop_request(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        await jobs.update_progress(job.id, 10)
        asked = await jobs.cancel(job.id)
        assert (asked.status, asked.cancel_requested_at is None) == (JobStatus.PROCESSING, False)
        assert (await jobs.stop(job.id)).status is JobStatus.CANCELLED


async def test_two_concurrent_first_reports_are_both_stored(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        async with anyio.create_task_group() as tasks:
            for percent in range(10):
                tasks.start_soon(jobs.update_progress, job.id, percent)
        found = await jobs.find(job.id)
    assert (found.attempt, found.version) == (1, 12)


async def test_a_job_held_by_a_worker_cannot_be_reported_externally(jobs: AsyncJobs) -> None:
    @jobs.handler("slow")
    async def slow(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    async with jobs:
        job = await running(jobs, slow)
        with pytest.raises(LostLease):
            await jobs.complete(job.id, None)
        await jobs.cancel(job.id)


async def test_every_method_raises_unknown_job_for_an_unknown_id(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = new_job_id()
    async with jobs:
        assert await jobs.get(nobody) is None
        for verb in (
            jobs.find(nobody),
            jobs.update_progress(nobody, 1),
            jobs.complete(nobody),
            jobs.fail(nobody, "no"),
            jobs.cancel(nobody),
            jobs.stop(nobody),
            jobs.wait(nobody),
            anext(jobs.subscribe(nobody)),
        ):
            with pytest.raises(UnknownJob):
                await verb
        await jobs.run(nobody)
    [told] = [vars(one) for one in caplog.records if "unknown job" in one.getMessage()]
    assert told["job_id"] == nobody


# wait and subscribe


async def test_a_subscriber_sees_growing_versions_up_to_the_end(jobs: AsyncJobs) -> None:
    kind = jobs.external("render", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        seen: list[Job] = []

        async def follow() -> None:
            async for update in jobs.subscribe(job.id):
                seen.append(update)  # noqa: PERF401  # keeps what was seen before a failure

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            for percent in (10, 50, 90):
                await jobs.update_progress(job.id, percent)
            await jobs.complete(job.id, 1)
    versions = [update.version for update in seen]
    assert versions == sorted(set(versions))
    assert seen[-1].status is JobStatus.COMPLETED


async def test_next_change_waits_for_the_next_visible_change(jobs: AsyncJobs) -> None:
    kind = jobs.external("t", payload=int, result=int)
    async with jobs:
        job = (await jobs.enqueue(kind, 1)).job
        assert await jobs.next_change(job.id, timeout=0.01) == job
        assert await jobs.next_change(job.id, after=0, timeout=60) == job
        changes: list[Job] = []

        async def wait() -> None:
            changes.append(await jobs.next_change(job.id, timeout=60))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await jobs.update_progress(job.id, 40)
        assert changes[0].version == 2
        done = await jobs.complete(job.id, 1)
        assert await jobs.next_change(job.id, after=done.version) == done
