"""What every store must do: inherit a class, give it one fixture, run pytest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobStatus, new_job_id
from asyncjobs.errors import InvalidQuery
from asyncjobs.protocols import Change, Selection, Store
from asyncjobs.testing.samples import (
    LANE,
    LATER,
    NOW,
    begun,
    ended,
    full_job,
    ids,
    sample_job,
    sample_submission,
)


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


class TakingRules:
    """The rules of take."""

    async def test_take_picks_what_is_due_longest_first(self, store: Store) -> None:
        jobs = [sample_job(created_at=NOW + timedelta(seconds=n)) for n in (5, 1, 9, 3)]
        now = NOW + timedelta(seconds=6)
        async with store:
            await store.insert(jobs)
            taken = await store.take([LANE], now=now, until=LATER, limit=10)
        assert ids(taken) == ids([jobs[1], jobs[3], jobs[0]])

    async def test_a_job_is_due_at_its_very_moment_and_not_before(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            just_before = NOW - timedelta(microseconds=1)
            assert list(await store.take([LANE], now=just_before, until=LATER, limit=1)) == []
            assert ids(await store.take([LANE], now=NOW, until=LATER, limit=1)) == [job.id]

    async def test_jobs_due_at_one_moment_are_taken_in_the_order_they_came(
        self, store: Store
    ) -> None:
        jobs = [sample_job() for _ in range(20)]
        async with store:
            await store.insert(jobs[:12])
            await store.insert(jobs[12:])
            taken = await store.take([LANE], now=NOW, until=LATER, limit=15)
        assert ids(taken) == ids(jobs[:15])

    async def test_take_moves_the_due_moment_and_nothing_else(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            expected = job.model_copy(update={"due_at": LATER})
            assert list(await store.take([LANE], now=NOW, until=LATER, limit=1)) == [expected]
            assert list(await store.get([job.id])) == [expected]

    async def test_a_taken_job_comes_up_again_at_the_new_moment(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            await store.take([LANE], now=NOW, until=LATER, limit=1)
            before = LATER - timedelta(microseconds=1)
            assert list(await store.take([LANE], now=before, until=LATER, limit=1)) == []
            assert ids(await store.take([LANE], now=LATER, until=LATER, limit=1)) == [job.id]

    async def test_one_call_takes_a_job_once_whatever_the_new_moment(self, store: Store) -> None:
        jobs = [sample_job(), sample_job()]
        async with store:
            await store.insert(jobs)
            assert ids(await store.take([LANE, LANE], now=NOW, until=NOW, limit=9)) == ids(jobs)

    async def test_a_taken_job_can_be_replaced_by_what_was_read_before(self, store: Store) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            await store.take([LANE], now=NOW, until=LATER, limit=1)
            assert list(await store.replace([Change(begun(job), job.revision)])) == [True]

    async def test_take_keeps_to_its_lanes_and_its_limit(self, store: Store) -> None:
        default = [sample_job() for _ in range(3)]
        high = [sample_job(queue="high", created_at=NOW - timedelta(seconds=1))]
        other = [sample_job(queue="other")]
        async with store:
            await store.insert([*default, *high, *other])
            taken = await store.take([LANE, "high"], now=NOW, until=LATER, limit=3)
            rest = await store.take([LANE, "high"], now=NOW, until=LATER, limit=3)
        assert ids(taken) == ids([*high, *default[:2]])
        assert ids(rest) == ids(default[2:])

    async def test_a_job_is_taken_where_its_newest_state_puts_it(self, store: Store) -> None:
        job = sample_job()
        started = begun(job)
        async with store:
            await store.insert([job])
            await store.replace([Change(started, job.revision)])
            assert list(await store.take([LANE], now=LATER, until=LATER, limit=1)) == []
            lapse = NOW + timedelta(seconds=30)
            assert ids(await store.take([MAINTENANCE_LANE], now=lapse, until=LATER, limit=1)) == [
                job.id
            ]

    async def test_what_is_due_never_is_never_taken(self, store: Store) -> None:
        job = sample_job(retention=None)
        async with store:
            await store.insert([job])
            done = await ended(store, job, b"1")
            assert done.due_at is None
            long_after = NOW + timedelta(days=36500)
            lanes = [LANE, MAINTENANCE_LANE]
            assert list(await store.take(lanes, now=long_after, until=long_after, limit=9)) == []

    async def test_racing_takers_never_get_the_same_job(self, store: Store) -> None:
        jobs = [sample_job() for _ in range(60)]
        taken: list[Job] = []

        async def take() -> None:
            taken.extend(await store.take([LANE], now=NOW, until=LATER, limit=4))

        async with store:
            await store.insert(jobs)
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(take)
        assert sorted(ids(taken)) == sorted(ids(jobs))


@pytest.mark.anyio
class StoreConformance(StoringRules, TakingRules):
    """The contract of `asyncjobs.protocols.Store`, as tests.

    Override the fixture `store`: it returns a new, empty, unopened store for each test.
    """

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("Override the fixture `store`.")


MANY = 100


@pytest.mark.anyio
class ListingConformance:
    """The contract of `asyncjobs.protocols.Listing`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_a_list_shows_the_latest_first_without_payloads_and_results(
        self, store: Any
    ) -> None:
        jobs = [sample_job(), full_job(), sample_job(created_at=NOW - timedelta(days=1))]
        async with store:
            await store.insert(jobs)
            page = await store.list(Selection(), limit=MANY)
        assert list(page.jobs) == [narrow(job) for job in reversed(jobs)]
        assert page.next is None

    async def test_a_list_shows_jobs_as_they_stand(self, store: Any) -> None:
        job = sample_job()
        async with store:
            await store.insert([job])
            done = await ended(store, job, b"1")
            page = await store.list(Selection(status=JobStatus.COMPLETED), limit=MANY)
            none = await store.list(Selection(status=JobStatus.PENDING), limit=MANY)
        assert list(page.jobs) == [narrow(done)]
        assert list(none.jobs) == []

    async def test_a_selection_keeps_to_owner_type_and_status(self, store: Any) -> None:
        owners, types = [None, "", "ann", "bob"], ["export", "import"]
        jobs = [
            sample_job(user_id=owner, type=kind) for owner in owners for kind in types for _ in "12"
        ]
        async with store:
            await store.insert(jobs)
            jobs[5] = begun(jobs[5])
            await store.replace([Change(jobs[5], 1)])
            for owner in owners:
                for kind in (None, *types):
                    for status in (None, JobStatus.PENDING, JobStatus.PROCESSING):
                        which = Selection(owner, kind, status)
                        page = await store.list(which, limit=MANY)
                        expected = [job for job in reversed(jobs) if fits(job, which)]
                        assert ids(page.jobs) == ids(expected), which

    async def test_pages_follow_one_another_without_gap_or_repetition(self, store: Any) -> None:
        jobs = [sample_job(user_id="ann") for _ in range(7)]
        which = Selection(user_id="ann")
        async with store:
            await store.insert(jobs)
            seen: list[str] = []
            sizes: list[int] = []
            after = None
            while True:
                page = await store.list(which, limit=3, after=after)
                seen += ids(page.jobs)
                sizes.append(len(page.jobs))
                # Neither shifts the pages that follow; one of each would hide that they do.
                await store.insert([sample_job(user_id="ann") for _ in "12"])
                await store.delete([page.jobs[0].id])
                if page.next is None:
                    break
                after = page.next
        assert seen == ids(list(reversed(jobs)))
        assert sizes == [3, 3, 1]

    async def test_a_page_that_ends_the_list_names_no_next(self, store: Any) -> None:
        async with store:
            await store.insert([sample_job(), sample_job()])
            assert (await store.list(Selection(), limit=2)).next is None
            assert (await store.list(Selection(), limit=1)).next is not None

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "1 OR 1", "é", "9" * 400, "\x00"])
    async def test_what_is_no_cursor_is_refused(self, store: Any, cursor: str) -> None:
        async with store:
            with pytest.raises(InvalidQuery):
                await store.list(Selection(), limit=1, after=cursor)

    async def test_a_deleted_job_is_in_no_list(self, store: Any) -> None:
        job = sample_job(user_id="ann")
        async with store:
            await store.insert([job])
            await store.delete([job.id])
            assert list((await store.list(Selection(user_id="ann"), limit=1)).jobs) == []

    async def test_jobs_that_came_before_in_the_same_lane_are_counted(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(3)]
        other = sample_job(queue="other")
        async with store:
            await store.insert([jobs[0], other, *jobs[1:]])
            counts = [await store.count_before(job, until=NOW, most=MANY) for job in jobs]
            alone = await store.count_before(other, until=NOW, most=MANY)
        assert counts == [0, 1, 2]
        assert alone == 0

    async def test_what_runs_or_is_delayed_or_deleted_does_not_wait_before(
        self, store: Any
    ) -> None:
        running, gone, last = (sample_job() for _ in range(3))
        delayed = lifecycle.submit(sample_submission(), run_at=LATER)
        async with store:
            await store.insert([running, delayed, gone, last])
            await store.replace([Change(begun(running), running.revision)])
            await store.delete([gone.id])
            assert await store.count_before(last, until=NOW, most=MANY) == 0
            assert await store.count_before(last, until=LATER, most=MANY) == 1

    async def test_counting_stops_in_time(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(9)]
        async with store:
            await store.insert(jobs)
            assert await store.count_before(jobs[-1], until=NOW, most=5) == 5

    async def test_the_earliest_moment_of_each_lane_is_told(self, store: Any) -> None:
        first, second = (sample_job(created_at=NOW - timedelta(hours=hours)) for hours in (2, 1))
        other = sample_job(queue="other")
        lanes = ["other", "empty", "default"]
        async with store:
            await store.insert([second, first, other])
            assert list(await store.first_due(lanes)) == [other.due_at, None, first.due_at]
            assert list(await store.first_due([])) == []

    async def test_the_moment_follows_the_jobs(self, store: Any) -> None:
        first, second = (sample_job(created_at=NOW - timedelta(hours=hours)) for hours in (2, 1))
        lanes = [first.lane]
        async with store:
            await store.insert([first, second])
            await store.take(lanes, now=NOW, until=LATER, limit=1)
            assert list(await store.first_due(lanes)) == [second.due_at]
            await store.replace([Change(begun(second), second.revision)])
            assert list(await store.first_due(lanes)) == [LATER]
            await store.delete([first.id])
            assert list(await store.first_due(lanes)) == [None]


def narrow(job: Job) -> Job:
    """Leave out what a list leaves out."""
    return job.model_copy(update={"payload_json": b"", "result_json": None})


def fits(job: Job, which: Selection) -> bool:
    """Tell whether a job is meant by a selection."""
    return (
        which.user_id in (None, job.user_id)
        and which.type in (None, job.type)
        and which.status in (None, job.status)
    )


@pytest.mark.anyio
class StoreClockConformance:
    """The contract of `asyncjobs.protocols.Clocked`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_the_store_s_time_is_aware_and_in_utc(self, store: Any) -> None:
        async with store:
            assert (await store.now()).utcoffset() == timedelta(0)

    async def test_the_store_s_time_goes_on(self, store: Any) -> None:
        async with store:
            times = [await store.now() for _ in range(50)]
        assert times == sorted(times)
        assert times[0] < times[-1]
