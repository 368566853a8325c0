"""Batches: many jobs that are submitted, followed, cancelled and retried under one id."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    Batch,
    BatchHandle,
    EnqueueOptions,
    JobContext,
    JobFailed,
    JobStatus,
    LocalDispatcher,
    Policy,
    Selection,
    Transition,
    handler,
)
from asyncjobs.core import batches
from asyncjobs.core.job import Job
from asyncjobs.errors import (
    ConfigurationError,
    IdempotencyConflict,
    IllegalMove,
    InvalidIdempotencyKey,
    InvalidPayload,
    StoreUnavailable,
    UnknownJob,
    UnknownType,
)
from asyncjobs.protocols import Tallies
from asyncjobs.testing import Faults, FaultyStore, ManualClock, run_jobs_async
from tests.queues import IDLE, Make, settled
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]


def register(jobs: AsyncJobs, **options: Any) -> Any:
    """Register a handler that fails for numbers that end with 3."""

    @jobs.handler("check", **options)
    async def check(number: int, _job: JobContext) -> int:
        if number % 10 == 3:
            raise JobFailed(f"{number} was bad.", code="bad")
        return number

    return check


async def ended(jobs: AsyncJobs, batch: BatchHandle) -> Job:
    return await settled(jobs, batch.id)


async def members(batch: BatchHandle, status: JobStatus | None = None) -> list[Job]:
    return [job async for job in batch.jobs(status=status)]


def numbers(job: Job) -> dict[str, int]:
    """Return how many jobs of a batch have which status, without zeros."""
    assert job.counts is not None
    found = {status.value: getattr(job.counts, status) for status in JobStatus}
    return {"total": job.counts.total} | {name: number for name, number in found.items() if number}


async def test_a_batch_completes_when_all_of_its_jobs_have(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        options = EnqueueOptions(tags=("a",), metadata={"month": 3})
        batch = await jobs.enqueue_batch(
            check, range(10, 13), title="March", user_id="ann", options=options
        )
        assert batch.job.status is JobStatus.PROCESSING
        done = await ended(jobs, batch)
        assert (done.status, done.progress, done.title) == ("completed", 100, "March")
        assert (done.user_id, done.tags, done.metadata) == ("ann", ("a",), {"month": 3})
        assert numbers(done) == {"total": 3, "completed": 3}
        assert await batch.result(timeout=PATIENCE_SECONDS) == {"total": 3, "completed": 3}
        found = [await jobs.find(job.id) for job in await members(batch)]
        assert {str(job.result) for job in found} == {"10", "11", "12"}
        assert {(job.batch, job.user_id, job.title, job.tags) for job in found} == {
            (batch.id, "ann", None, ())
        }
        assert await jobs.batch(batch.id) != batch
        assert (await jobs.batch(batch.id)).job.counts == done.counts


async def test_a_batch_with_a_failed_job_fails_and_names_it(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, range(40))
        done = await ended(jobs, batch)
        assert (done.status, done.progress) == ("failed", 100)
        assert numbers(done) == {"total": 40, "completed": 36, "failed": 4}
        assert done.error is not None
        assert (done.error.code, done.error.message) == ("batch_failed", "4 of 40 jobs failed.")
        assert done.counts is not None
        failed = await members(batch, JobStatus.FAILED)
        assert {(one.job_id, one.code) for one in done.counts.failures} == {
            (job.id, "bad") for job in failed
        }


async def test_a_batch_names_the_jobs_that_failed_first(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, settings=IDLE, dispatcher="worker")
    check = register(jobs)
    async with jobs:
        await jobs.sweep()
        batch = await jobs.enqueue_batch(check, [3] * 40)
        order = [batches.member_id(batch.id, index) for index in (31, 4, 15, 9, 26, 5, 35, 8)]
        for job_id in order:
            clock.advance(timedelta(seconds=1))
            await jobs.run(job_id)
        await jobs.sweep()
        counts = (await jobs.find(batch.id)).counts
        assert counts is not None
        assert [one.job_id for one in counts.failures] == order[:5]


async def test_an_empty_batch_is_completed_at_once(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [], idempotency_key="k")
        assert (batch.job.status, batch.job.result) == ("completed", {"total": 0, "completed": 0})
        again = await jobs.enqueue_batch(check, [], idempotency_key="k")
        assert again.id == batch.id

        @jobs.handler("other")
        async def other(number: int) -> None:
            del number

        with pytest.raises(IdempotencyConflict):
            await jobs.enqueue_batch(other, [], idempotency_key="k")
        with pytest.raises(IllegalMove, match="it has ended"):
            await batch.add(check, [1])


async def test_one_invalid_payload_is_named_and_nothing_is_stored(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        with pytest.raises(InvalidPayload) as refused:
            await jobs.enqueue_batch("check", [1, "two", 3])
        [issue] = refused.value.issues
        assert issue.field == "1"
        with pytest.raises(InvalidPayload, match="at most 100,000"):
            await jobs.enqueue_batch(check, [1] * 100_001)
        with pytest.raises(UnknownType):
            await jobs.enqueue_batch("unknown", [1])
        options = EnqueueOptions(callback_url="https://hooks.example.com")
        with pytest.raises(ConfigurationError, match="callbacks"):
            await jobs.enqueue_batch(check, [1], options=options)
        assert (await jobs.list(Selection())).jobs == []


async def test_a_batch_refuses_arguments_of_wrong_types_and_reserved_keys(
    jobs: AsyncJobs,
) -> None:
    check = register(jobs)
    wrong: Any
    async with jobs:
        for wrong in (5, "12", {1: 2}):
            with pytest.raises(TypeError, match="an iterable of payloads"):
                await jobs.enqueue_batch(check, wrong)
            with pytest.raises(TypeError, match="an iterable of payloads"):
                Batch(wrong)
        wrong = {"title": "x"}
        for enqueue in (jobs.enqueue, jobs.enqueue_many, jobs.enqueue_batch):
            refused: Any = partial(enqueue, check, [1], options=wrong)
            with pytest.raises(TypeError, match="must be EnqueueOptions, got dict"):
                await refused()
        with pytest.raises(InvalidIdempotencyKey, match="reserved"):
            await jobs.enqueue_batch(check, [1], idempotency_key="asyncjobs.schedule")
        assert (await jobs.list(Selection())).jobs == []


async def test_a_store_that_does_not_count_refuses_batches(make: Make, new_store: Any) -> None:
    store = FaultyStore(new_store())
    inner: Any = store.store
    inner.powers = inner.powers - {Tallies}
    jobs = make(store=store)
    check = register(jobs)
    async with jobs:
        with pytest.raises(ConfigurationError, match="cannot count jobs"):
            await jobs.enqueue_batch(check, [1])
        await jobs.sweep()


async def test_other_jobs_are_no_batches(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        job = await jobs.enqueue(check, 1)
        with pytest.raises(IllegalMove, match="it is not one"):
            await jobs.batch(job.id)
        with pytest.raises(IllegalMove, match="it is not one"):
            await jobs.add_to_batch(job.id, check, [1])
        with pytest.raises(UnknownJob):
            await jobs.batch(batches.member_id(job.id, 0))


async def test_a_key_returns_the_batch_that_exists(make: Make) -> None:
    jobs = make(dispatcher="worker")
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [1, 2], user_id="ann", idempotency_key="k")
        again = await jobs.enqueue_batch(check, [1, 2], user_id="ann", idempotency_key="k")
        other = await jobs.enqueue_batch(check, [1, 2], user_id="bob", idempotency_key="k")
        assert again.id == batch.id != other.id
        for payloads in ([1], [1, 3], [2, 1], [1, 2, 3]):
            with pytest.raises(IdempotencyConflict):
                await jobs.enqueue_batch(check, payloads, user_id="ann", idempotency_key="k")
        assert len(await members(batch)) == 2


async def test_a_key_is_free_again_when_the_retention_of_its_batch_has_ended(make: Make) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, settings=IDLE, policy=Policy(retention=60))
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [], idempotency_key="k")
        clock.advance(timedelta(seconds=61))
        again = await jobs.enqueue_batch(check, [1], idempotency_key="k")
        assert again.id != batch.id
        assert (await jobs.find(again.id)).status is JobStatus.PROCESSING
        assert len(await members(again)) == 1


async def test_payloads_with_sets_are_compared_by_value(make: Make) -> None:
    jobs = make(dispatcher="worker")

    @jobs.handler("sets")
    async def sets(names: set[str], _job: JobContext) -> None:
        del names

    async with jobs:
        batch = await jobs.enqueue_batch(sets, [{"a", "b"}, {"c"}], idempotency_key="k")
        stored = await jobs.find(batches.member_id(batch.id, 0))
        other_order: Any = json.loads(stored.payload_json)[::-1]
        # Lists keep their order, and are the same sets.
        again = await jobs.enqueue_batch("sets", [other_order, ["c"]], idempotency_key="k")
        assert again.id == batch.id


class BreakingStore(FaultyStore):
    """Fails once, after `intact` calls of `insert`; never if that is None.

    The call that fails is made before if `loses_answer`.
    """

    intact: int | None = None
    loses_answer = False

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        if self.intact == 0:
            self.intact = None
            if self.loses_answer:
                await super().insert(jobs)
            raise StoreUnavailable("the store", "it broke")
        if self.intact is not None:
            self.intact -= 1
        return await super().insert(jobs)


@pytest.mark.parametrize("loses_answer", [False, True])
async def test_a_repeated_submission_stores_what_the_first_one_did_not(
    make: Make, new_store: Any, *, loses_answer: bool
) -> None:
    store = BreakingStore(new_store())
    store.loses_answer = loses_answer
    jobs = make(store=store, dispatcher="worker", settings=IDLE)
    check = register(jobs)
    async with jobs:
        store.intact = 2
        with pytest.raises(StoreUnavailable):
            await jobs.enqueue_batch(check, range(1200), idempotency_key="k")
        [batch] = (await jobs.list(Selection(type="asyncjobs.batch"))).jobs
        before = await members(await jobs.batch(batch.id))
        assert len(before) == (1000 if loses_answer else 500)
        again = await jobs.enqueue_batch(check, range(1200), idempotency_key="k")
        assert again.id == batch.id
        assert len({job.id for job in await members(again)}) == 1200


async def test_sets_of_an_interrupted_submission_are_compared_by_value(
    make: Make, new_store: Any
) -> None:
    store = BreakingStore(new_store())
    jobs = make(store=store, dispatcher="worker", settings=IDLE)

    @jobs.handler("names")
    async def names(given: set[str], _job: JobContext) -> None:
        del given

    async with jobs:
        # Lists keep their order, and are the same sets.
        first: list[Any] = [[f"a{one}", f"b{one}"] for one in range(510)]
        second: list[Any] = [payload[::-1] for payload in first]
        for stored in (0, 500):
            submit = partial(jobs.enqueue_batch, "names", idempotency_key=f"k{stored}")
            store.intact = 1 + stored // 500
            with pytest.raises(StoreUnavailable):
                await submit(first)
            with pytest.raises(IdempotencyConflict):
                await submit([*second[:-1], ["c"]])
            batch = await submit(second)
            assert len(await members(batch)) == 510


async def test_a_repeated_submission_does_not_store_deleted_jobs_again(
    make: Make, new_store: Any
) -> None:
    store = BreakingStore(new_store())
    jobs = make(store=store, dispatcher="worker", settings=IDLE)
    check = register(jobs)
    async with jobs:
        store.intact = 2
        with pytest.raises(StoreUnavailable):
            await jobs.enqueue_batch(check, range(510), idempotency_key="k")
        [batch] = (await jobs.list(Selection(type="asyncjobs.batch"))).jobs
        ended = [batches.member_id(batch.id, index) for index in (3, 77, 499)]
        for job_id in ended:
            await jobs.cancel(job_id)
        await store.delete(ended)
        again = await jobs.enqueue_batch(check, range(510), idempotency_key="k")
        found = {job.id for job in await members(again)}
        assert (again.id, len(found), found & {*ended}) == (batch.id, 507, set())
        await jobs.sweep()
        counted = {"total": 510, "pending": 507, "cancelled": 3}
        assert numbers(await jobs.find(batch.id)) == counted


async def test_an_open_batch_accepts_more_jobs_of_any_handler(jobs: AsyncJobs) -> None:
    check = register(jobs)

    @jobs.handler("other")
    async def other(text: str, _job: JobContext) -> str:
        return text

    async with jobs:
        later = EnqueueOptions(run_at=timedelta(hours=1))
        batch = await jobs.enqueue_batch(check, [1], user_id="ann", options=later)
        grown = await batch.add(other, ["a", "b"])
        assert numbers(grown) | {"total": 3} == numbers(grown)
        await batch.add("check", [2])
        await until(lambda: _counted(jobs, batch, completed=3))
        assert (await batch.add(check, [])).id == batch.id
        with pytest.raises(InvalidPayload):
            await batch.add("check", ["x"])
        found = await members(batch)
        assert Counter(job.type for job in found) == {"check": 2, "other": 2}
        assert {job.user_id for job in found} == {"ann"}
        assert max(job.deadline for job in found) <= batch.job.deadline
        assert (await jobs.find(batch.id)).status is JobStatus.PROCESSING
        await batch.cancel()
        with pytest.raises(IllegalMove, match=r"asked to stop|ended"):
            await batch.add(check, [1])
        done = await ended(jobs, batch)
        assert numbers(done) == {"total": 4, "completed": 3, "cancelled": 1}


async def _is_at(jobs: AsyncJobs, batch: BatchHandle, percent: int) -> bool:
    return (await jobs.find(batch.id)).progress == percent


async def _counted(jobs: AsyncJobs, batch: BatchHandle, **wanted: int) -> bool:
    found = numbers(await jobs.find(batch.id))
    return {name: found.get(name, 0) for name in wanted} == wanted


async def test_cancelling_a_batch_cancels_all_of_its_jobs(jobs: AsyncJobs) -> None:
    @jobs.handler("wait")
    async def wait(_number: int, job: JobContext) -> None:
        await anyio.sleep(PATIENCE_SECONDS)
        del job

    async with jobs:
        batch = await jobs.enqueue_batch(wait, range(700))
        await until(lambda: _running(jobs))
        asked = await batch.cancel()
        assert asked.status is JobStatus.PROCESSING
        done = await ended(jobs, batch)
        assert done.status is JobStatus.CANCELLED
        assert numbers(done) == {"total": 700, "cancelled": 700}
        assert (await batch.cancel()).status is JobStatus.CANCELLED


def _running(jobs: AsyncJobs) -> bool:
    return len(jobs.running) > 0


async def test_the_failed_and_cancelled_jobs_of_a_batch_run_again(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, range(30), title="Thirty", user_id="ann")
        done = await ended(jobs, batch)
        again = await batch.retry_failed()
        assert again.id != batch.id
        assert (again.job.retry_of, again.job.title, again.job.user_id) == (
            batch.id,
            "Thirty",
            "ann",
        )
        result = await ended(jobs, again)
        assert numbers(result) == {"total": 3, "failed": 3}
        old = {job.id: job for job in await members(batch, JobStatus.FAILED)}
        new = await members(again)
        assert {job.retry_of for job in new} == old.keys()
        for job in new:
            first = await jobs.find(job.retry_of or job.id)
            assert (await jobs.find(job.id)).payload == first.payload
            assert (job.batch, job.retention) == (again.id, first.retention)
        assert await jobs.find(batch.id) == done
        third = await jobs.retry(again.id)
        assert isinstance(third, BatchHandle)


async def test_a_batch_is_retried_once_however_many_calls_there_are(make: Make) -> None:
    one, other = make(), make()
    runs: Counter[int] = Counter()

    @handler("fail")
    async def fail(number: int) -> None:
        runs[number] += 1
        raise JobFailed(f"{number} was bad.")

    one.include(fail)
    other.include(fail)
    async with one, other:
        batch = await one.enqueue_batch(fail, range(600), user_id="ann")
        await ended(one, batch)
        made: list[BatchHandle] = []

        async def retry(jobs: AsyncJobs) -> None:
            made.append(await (await jobs.batch(batch.id)).retry_failed())

        async with anyio.create_task_group() as tasks:
            for jobs in (one, other, one):
                tasks.start_soon(retry, jobs)
        assert len({again.id for again in made}) == 1
        done = await ended(one, made[0])
        assert numbers(done) == {"total": 600, "failed": 600}
        assert len({job.retry_of for job in await members(made[0])}) == 600
        late = await batch.retry_failed()
        assert (late.job.id, late.job.counts) == (done.id, done.counts)
        assert runs == dict.fromkeys(range(600), 2)
        assert (await late.retry_failed()).id not in {batch.id, late.id}


async def _cancelled(jobs: AsyncJobs, check: Any, number: int) -> BatchHandle:
    """Return a batch whose jobs were all cancelled before they began."""
    later = EnqueueOptions(run_at=timedelta(hours=1))
    batch = await jobs.enqueue_batch(check, range(number), options=later)
    await batch.cancel()
    await jobs.sweep()
    await jobs.sweep()
    assert (await jobs.find(batch.id)).status is JobStatus.CANCELLED
    return batch


@pytest.mark.parametrize("stored", [0, 500])
async def test_a_repeated_retry_stores_what_the_first_one_did_not(
    make: Make, new_store: Any, stored: int
) -> None:
    store = BreakingStore(new_store())
    jobs = make(store=store, dispatcher="worker", settings=IDLE)
    check = register(jobs)
    async with jobs:
        batch = await _cancelled(jobs, check, 510)
        store.intact = 1 + stored // 500
        with pytest.raises(StoreUnavailable):
            await batch.retry_failed()
        [first] = [job for job in await _batches(jobs) if job.retry_of == batch.id]
        half = [job async for job in jobs.jobs_of_batch(first.id)]
        assert len(half) == stored
        # What has ended and was deleted does not run again; what is gone cannot.
        deleted = [job.id for job in half[-3:]]
        for job_id in deleted:
            await jobs.cancel(job_id)
        await store.delete([*deleted, *(job.retry_of or job.id for job in half[:2])])
        again = await batch.retry_failed()
        assert (again.id, len(await _batches(jobs))) == (first.id, 2)
        retried = {job.retry_of for job in await members(again)}
        assert len(retried) == 510 - len(deleted)
        await jobs.sweep()
        counted = numbers(await jobs.find(again.id))
        assert (counted["total"], counted["pending"]) == (510, 510 - len(deleted))


async def _batches(jobs: AsyncJobs) -> Sequence[Job]:
    return (await jobs.list(Selection(type="asyncjobs.batch"))).jobs


async def test_jobs_whose_retry_was_given_up_midway_are_retried_as_another_batch(
    make: Make, new_store: Any
) -> None:
    clock = ManualClock()
    store = BreakingStore(new_store())
    jobs = make(store=store, clock=clock, dispatcher="worker", settings=IDLE)
    check = register(jobs)
    async with jobs:
        batch = await _cancelled(jobs, check, 510)
        store.intact = 2
        with pytest.raises(StoreUnavailable):
            await batch.retry_failed()
        [first] = [job for job in await _batches(jobs) if job.retry_of == batch.id]
        for job in [job async for job in jobs.jobs_of_batch(first.id)]:
            await jobs.cancel(job.id)
        await jobs.sweep()
        clock.advance(timedelta(hours=2))  # when the batch is due again
        await jobs.sweep()
        given_up = await jobs.find(first.id)
        assert given_up.error is not None
        assert given_up.error.code == "batch_incomplete"
        rest = await batch.retry_failed()
        assert rest.id != first.id
        assert (await batch.retry_failed()).id == rest.id
        ids = [job.retry_of for one in (first, rest.job) for job in await _jobs_of(jobs, one)]
        assert (len(ids), len({*ids})) == (510, 510)


async def _jobs_of(jobs: AsyncJobs, batch: Job) -> Sequence[Job]:
    return [job async for job in jobs.jobs_of_batch(batch.id)]


async def test_a_batch_whose_retry_was_deleted_is_retried_again(make: Make) -> None:
    jobs = make(dispatcher="worker", settings=IDLE)
    check = register(jobs)
    async with jobs:
        batch = await _cancelled(jobs, check, 2)
        first = await batch.retry_failed()
        await first.cancel()
        await jobs.sweep()
        await jobs.sweep()
        await jobs.store.delete([job.id for job in (*await members(first), first.job)])
        again = await batch.retry_failed()
        assert again.id != first.id
        assert len(await members(again)) == 2


async def test_a_batch_is_found_for_its_owner_only(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [], user_id="ann")
        assert (await jobs.batch(batch.id, user_id="ann")).id == batch.id
        for user_id in ("bob", None):
            with pytest.raises(UnknownJob):
                await jobs.batch(batch.id, user_id=user_id)


async def test_only_an_ended_batch_with_unsuccessful_jobs_is_retried(make: Make) -> None:
    jobs = make()
    check = register(jobs)
    async with jobs:
        later = EnqueueOptions(run_at=timedelta(hours=1))
        waiting = await jobs.enqueue_batch(check, [1], options=later)
        with pytest.raises(IllegalMove, match="it has not ended"):
            await waiting.retry_failed()
        batch = await jobs.enqueue_batch(check, [1])
        await ended(jobs, batch)
        with pytest.raises(IllegalMove, match="none of its jobs failed or was cancelled"):
            await batch.retry_failed()


async def test_a_job_of_a_batch_is_retried_alone_outside_of_it(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [3])
        await ended(jobs, batch)
        [member] = await members(batch)
        new = await jobs.retry(member.id)
        assert (await settled(jobs, new.id)).batch is None
        assert len(await members(batch)) == 1


async def test_a_batch_takes_no_reports_and_does_not_run(jobs: AsyncJobs) -> None:
    check = register(jobs)
    async with jobs:
        later = EnqueueOptions(run_at=timedelta(hours=1))
        batch = await jobs.enqueue_batch(check, [1], options=later)
        for report in (
            partial(jobs.update_progress, batch.id, 50),
            partial(jobs.complete, batch.id, 1),
            partial(jobs.fail, batch.id, "no"),
            partial(jobs.stop, batch.id),
        ):
            with pytest.raises(IllegalMove, match="it stands for other jobs"):
                await report()
        assert await jobs.run(batch.id) is None
        assert (await jobs.find(batch.id)).status is JobStatus.PROCESSING


async def test_external_jobs_make_a_batch(jobs: AsyncJobs) -> None:
    kind = jobs.external("print", payload=str, result=str)
    async with jobs:
        batch = await jobs.enqueue_batch(kind, ["a", "b"])
        one, two = await members(batch)
        await jobs.update_progress(one.id, 50)
        await until(lambda: _counted(jobs, batch, processing=1))
        # The job begins by its first report, which may be counted before its progress.
        await until(lambda: _is_at(jobs, batch, 25))
        await jobs.complete(one.id, "done")
        await jobs.fail(two.id, "No paper.")
        assert numbers(await ended(jobs, batch)) == {"total": 2, "completed": 1, "failed": 1}


async def test_hooks_are_called_for_the_batch_and_for_each_job(jobs: AsyncJobs) -> None:
    check = register(jobs)
    seen: Counter[tuple[str, str]] = Counter()

    def note(transition: Transition) -> None:
        seen[transition.job.type, transition.event.value] += 1

    for event in ("enqueued", "started", "completed", "failed"):
        jobs.on(event, note)
    async with jobs:
        await ended(jobs, await jobs.enqueue_batch(check, [1, 2, 3]))
        await jobs.until_hooks_called()
    assert seen["asyncjobs.batch", "enqueued"] == seen["asyncjobs.batch", "failed"] == 1
    assert seen["asyncjobs.batch", "started"] == 0
    assert seen["check", "enqueued"] == seen["check", "started"] == 3
    assert (seen["check", "completed"], seen["check", "failed"]) == (2, 1)


async def test_another_process_ends_a_batch_whose_process_has_died(
    make: Make, new_store: Any
) -> None:
    clock = ManualClock()
    dying = make(clock=clock, settings=IDLE, dispatcher=LocalDispatcher())
    check = register(dying)
    async with dying:
        await dying.sweep()
        batch = await dying.enqueue_batch(check, [1, 2])
        # Its loop looks at nothing before an hour has passed.
        await until(lambda: _all_ended(batch))
    clock.advance(timedelta(minutes=1))
    async with make(clock=clock) as other:
        assert numbers(await ended(other, batch)) == {"total": 2, "completed": 2}
    del new_store


async def _all_ended(batch: BatchHandle) -> bool:
    return all([job.status.terminal async for job in batch.jobs()])


async def test_a_batch_of_a_process_that_died_while_storing_it_fails(
    make: Make, new_store: Any
) -> None:
    clock = ManualClock()
    store = FaultyStore(new_store())
    jobs = make(store=store, clock=clock)
    check = register(jobs)
    async with jobs:
        later = EnqueueOptions(run_at=timedelta(hours=1))
        batch = await jobs.enqueue_batch(check, [1], options=later)
        store.faults = Faults(before=1, only=("insert",))
        with pytest.raises(StoreUnavailable):
            await batch.add(check, [2])
        store.faults = Faults()
        await jobs.cancel(batches.member_id(batch.id, 0))
        await until(lambda: _counted(jobs, batch, cancelled=1, total=2))
        clock.advance(batches.PATIENCE + timedelta(seconds=1))
        done = await ended(jobs, batch)
    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "batch_incomplete")


async def test_the_jobs_of_a_batch_fail_at_its_deadline_and_the_batch_with_them(
    make: Make,
) -> None:
    clock = ManualClock()
    jobs = make(clock=clock, dispatcher="worker", policy=Policy(deadline=60))
    check = register(jobs)
    async with jobs:
        batch = await jobs.enqueue_batch(check, [1, 2])
        clock.advance(timedelta(seconds=30))
        await batch.add(check, [4])
        assert {job.deadline for job in await members(batch)} == {batch.job.deadline}
        clock.advance(timedelta(seconds=40))
        with pytest.raises(IllegalMove, match="its deadline has passed"):
            await batch.add(check, [5])
        await members(batch)  # listing repairs what is overdue
        done = await ended(jobs, batch)
    assert numbers(done) == {"total": 3, "failed": 3}


async def test_run_jobs_runs_a_batch_to_its_end(jobs: AsyncJobs, new_store: Any) -> None:
    check = register(jobs)
    with jobs.using(new_store()):
        async with jobs:
            batch = await jobs.enqueue_batch(check, [1, 2, 4])
            ran = await run_jobs_async(jobs)
            assert {job.type for job in ran} == {"check"}
            done = await jobs.find(batch.id)
            assert (done.status, numbers(done)) == ("completed", {"total": 3, "completed": 3})
            later = EnqueueOptions(run_at=timedelta(hours=1))
            waiting = await jobs.enqueue_batch(check, [1, 2], options=later)
            await waiting.cancel()
            await run_jobs_async(jobs)
            assert (await jobs.find(waiting.id)).status is JobStatus.CANCELLED


async def test_following_a_batch_costs_the_same_whatever_its_size(
    make: Make, new_store: Any
) -> None:
    costs = [await _cost(make, new_store, size) for size in (10, 2_000)]
    assert costs[0] == costs[1]


async def _cost(make: Make, new_store: Any, size: int) -> Counter[str]:
    """Return the store's calls for a look at a batch and a read of its status.

    With each call comes how many jobs it named. Looks for due jobs happen at any time.
    """
    store = FaultyStore(new_store())
    jobs = make(store=store, settings=IDLE, dispatcher="worker")
    check = register(jobs)
    async with jobs:
        await jobs.sweep()
        batch = await jobs.enqueue_batch(check, range(size))
        await jobs.sweep()
        before = len(store.calls)
        await jobs.cancel(batches.member_id(batch.id, 0))
        await jobs.sweep()
        done = await jobs.find(batch.id)
        assert numbers(done) == {"total": size, "pending": size - 1, "cancelled": 1}
        calls = store.calls[before:]
    return Counter(f"{call.method} {len(call.ids)}" for call in calls if call.method != "take")


@pytest.mark.thorough
async def test_a_batch_of_ten_thousand_jobs_is_cancelled(make: Make) -> None:
    jobs = make()
    check = register(jobs)
    async with jobs:
        later = EnqueueOptions(run_at=timedelta(hours=1))
        batch = await jobs.enqueue_batch(check, range(10_000), options=later)
        await batch.cancel()
        assert numbers(await ended(jobs, batch)) == {"total": 10_000, "cancelled": 10_000}


def test_batches_without_an_event_loop(make: Make) -> None:
    jobs = make()
    check = register(jobs)
    with jobs.sync:
        batch = jobs.sync.enqueue_batch(check, [1, 3], title="Two", user_id="ann")
        assert repr(batch) == f"<SyncBatchHandle {batch.id}>"
        assert batch.add(check, [5]).counts is not None
        assert len([*batch.jobs()]) == 3
        assert [*batch.jobs(status=JobStatus.FAILED)] == []
        assert jobs.sync.batch(batch.id).id == batch.id
        batch.cancel()
        assert batch.wait(timeout=PATIENCE_SECONDS).status is JobStatus.CANCELLED
        again = batch.retry_failed()
        assert again.job.retry_of == batch.id
        assert jobs.sync.retry(batch.id).id == again.id == batch.retry_failed().id
        assert jobs.sync.batch(batch.id, user_id="ann").id == batch.id
        with pytest.raises(UnknownJob):
            jobs.sync.find(batch.id, user_id="bob")
