"""What a store must do when it adds, reads, changes and forgets jobs."""

from __future__ import annotations

import anyio

from asyncjobs.core import lifecycle
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobStatus, new_job_id
from asyncjobs.protocols import Change, Store
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ended, full_job, ids, sample_job


class StoringRules:
    """The rules of insert, get, replace and delete, and of opening again."""

    # insert

    async def test_a_job_comes_back_as_it_went_in(self, store: Store) -> None:
        job = full_job()
        async with store:
            assert await store.insert([job]) == [job]
            assert await store.get([job.id]) == [job]

    async def test_insert_keeps_the_stored_job_of_the_same_id(self, store: Store) -> None:
        job = sample_job()
        twin = job.model_copy(update={"payload_json": b'"other"'})
        async with store:
            await store.insert([job])
            assert await store.insert([twin]) == [job]
            assert await store.get([job.id]) == [job]

    async def test_an_idempotency_key_is_good_for_one_job(self, store: Store) -> None:
        first = sample_job(user_id="ann", idempotency_key="k")
        second = sample_job(user_id="ann", idempotency_key="k")
        async with store:
            await store.insert([first])
            assert await store.insert([second]) == [first]
            assert await store.get([second.id]) == [None]

    async def test_of_two_jobs_with_one_key_in_one_call_the_first_wins(self, store: Store) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store:
            assert await store.insert([first, second]) == [first, first]

    async def test_keys_are_apart_by_owner_and_type(self, store: Store) -> None:
        jobs = [
            sample_job(idempotency_key="k"),
            sample_job(idempotency_key="k", user_id=""),
            sample_job(idempotency_key="k", user_id="ann"),
            sample_job(idempotency_key="k", user_id="ann", type="import"),
            sample_job(idempotency_key="k2", user_id="ann"),
            sample_job(user_id="ann"),
            sample_job(user_id="ann"),
        ]
        async with store:
            assert await store.insert(jobs) == jobs

    async def test_a_key_names_the_job_as_it_stands(self, store: Store) -> None:
        first = sample_job(idempotency_key="k")
        started = begun(first)
        async with store:
            await store.insert([first])
            await store.replace([Change(started, first.revision)])
            assert await store.insert([sample_job(idempotency_key="k")]) == [started]

    async def test_of_concurrent_submissions_with_one_key_one_is_stored(self, store: Store) -> None:
        jobs = [sample_job(idempotency_key="k") for _ in range(20)]
        stored: list[Job] = []

        async def submit(job: Job) -> None:
            stored.extend(await store.insert([job]))

        async with store:
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(submit, job)
            found = await store.get([job.id for job in jobs])
        assert len({job.id for job in stored}) == 1
        assert [job for job in found if job is not None] == stored[:1]

    # get

    async def test_get_answers_in_the_order_of_the_question(self, store: Store) -> None:
        one, two = sample_job(), sample_job()
        unknown = new_job_id()
        async with store:
            await store.insert([one, two])
            asked = [two.id, unknown, one.id, two.id]
            assert list(await store.get(asked)) == [two, None, one, two]

    async def test_nothing_asked_is_nothing_answered(self, store: Store) -> None:
        async with store:
            assert list(await store.insert([])) == []
            assert list(await store.get([])) == []
            assert list(await store.replace([])) == []
            assert list(await store.take([], now=LATER, until=LATER, limit=5)) == []
            await store.delete([])

    async def test_large_payloads_and_results_come_back_whole(self, store: Store) -> None:
        job = sample_job(payload_json=b'"' + b"p" * 1024 * 1024 + b'"')
        result = b'"' + b"r" * 8 * 1024 * 1024 + b'"'
        async with store:
            await store.insert([job])
            done = await ended(store, job, result)
            assert await store.get([job.id]) == [done]

    async def test_what_was_handed_out_does_not_change(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            [seen] = await store.get([job.id])
            await store.replace([Change(begun(job), job.revision)])
            await store.take([MAINTENANCE_LANE], now=LATER, until=LATER, limit=1)
        assert seen == job
        assert job.status is JobStatus.PENDING

    # replace

    async def test_replace_writes_where_the_revision_is_the_expected_one(
        self, store: Store
    ) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            assert list(await store.replace([Change(started, job.revision)])) == [True]
            assert await store.get([job.id]) == [started]

    async def test_a_change_writes_the_state_and_leaves_what_was_submitted(
        self, store: Store
    ) -> None:
        job = sample_job()
        started = begun(job)
        narrow = started.model_copy(update={"payload_json": b"", "type": "other"})
        async with store:
            await store.insert([job])
            assert list(await store.replace([Change(narrow, job.revision)])) == [True]
            assert list(await store.get([job.id])) == [started]

    async def test_a_stale_change_is_refused_and_changes_nothing(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            await store.replace([Change(started, job.revision)])
            cancelled = lifecycle.cancel(job, LATER)
            assert list(await store.replace([Change(cancelled, job.revision)])) == [False]
            assert await store.get([job.id]) == [started]

    async def test_an_unknown_job_cannot_be_replaced(self, store: Store) -> None:
        job = sample_job()
        async with store:
            assert list(await store.replace([Change(begun(job), job.revision)])) == [False]
            assert await store.get([job.id]) == [None]

    async def test_a_refused_change_does_not_touch_the_others(self, store: Store) -> None:
        stale, good = sample_job(), sample_job()
        async with store:
            await store.insert([stale, good])
            changes = [Change(begun(stale), 7), Change(begun(good), good.revision)]
            assert list(await store.replace(changes)) == [False, True]
            assert await store.get([stale.id, good.id]) == [stale, begun(good)]

    async def test_changes_of_one_call_to_one_job_apply_in_order(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        done = lifecycle.complete(started, LATER, token="t", result=b"1")
        async with store:
            await store.insert([job])
            changes = [Change(started, job.revision), Change(done, started.revision)]
            assert list(await store.replace([*changes, changes[1]])) == [True, True, False]
            assert await store.get([job.id]) == [done]

    async def test_of_racing_changes_one_wins(self, store: Store) -> None:
        job = sample_job()
        wins: list[Job] = []

        async def start(number: int) -> None:
            mine = begun(job, token=f"token-{number}")
            [won] = await store.replace([Change(mine, job.revision)])
            wins.extend([mine] * won)

        async with store:
            await store.insert([job])
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(start, number)
            assert len(wins) == 1
            assert list(await store.get([job.id])) == wins

    # delete

    async def test_a_deleted_job_is_forgotten(self, store: Store) -> None:
        gone, kept = sample_job(idempotency_key="k"), sample_job()
        async with store:
            await store.insert([gone, kept])
            await ended(store, gone, b'"wide"')
            await store.delete([gone.id, new_job_id()])
            assert list(await store.get([gone.id, kept.id])) == [None, kept]
            assert ids(await store.take([LANE, MAINTENANCE_LANE], now=NOW, until=NOW, limit=9)) == [
                kept.id
            ]

    async def test_deleting_frees_the_idempotency_key(self, store: Store) -> None:
        first, second = sample_job(idempotency_key="k"), sample_job(idempotency_key="k")
        async with store:
            await store.insert([first])
            await store.delete([first.id])
            assert await store.insert([second]) == [second]
            assert await store.get([first.id, second.id]) == [None, second]

    async def test_a_new_job_has_nothing_of_a_deleted_one(self, store: Store) -> None:
        old, new = sample_job(), sample_job()
        async with store:
            await store.insert([old])
            await ended(store, old, b'"old"')
            await store.delete([old.id])
            await store.insert([new])
            assert await store.get([new.id]) == [new]

    # open and close

    async def test_closing_and_opening_again_loses_nothing(self, store: Store) -> None:
        waiting, keyed = sample_job(), sample_job(idempotency_key="k")
        async with store:
            await store.insert([waiting, keyed])
            done = await ended(store, keyed, b'{"n":1}')
        async with store:
            assert await store.get([waiting.id, keyed.id]) == [waiting, done]
            assert await store.insert([sample_job(idempotency_key="k")]) == [done]
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=9)) == [waiting.id]
