"""What stores with optional powers must do: listing, and a clock of their own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import InvalidQuery
from asyncjobs.protocols import HOLD, Change, Selection
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

    async def test_jobs_in_front_in_the_same_lane_are_counted(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(3)]
        other = sample_job(queue="other")
        async with store:
            await store.insert([jobs[0], other, *jobs[1:]])
            counts = [await before(store, job) for job in jobs]
            alone = await before(store, other)
        assert counts == [0, 1, 2]
        assert alone == 0

    async def test_jobs_are_counted_in_the_order_in_which_they_are_taken(self, store: Any) -> None:
        ages = [0, 2, 1, 2, 0]
        jobs = [sample_job(created_at=NOW - timedelta(hours=hours)) for hours in ages]
        async with store:
            await store.insert(jobs)
            assert [await before(store, job) for job in jobs] == [3, 0, 2, 1, 4]

    async def test_what_runs_or_is_delayed_or_deleted_does_not_wait_before(
        self, store: Any
    ) -> None:
        running, gone, last = (sample_job() for _ in range(3))
        delayed = lifecycle.submit(sample_submission(), run_at=NOW + HOLD + timedelta(seconds=1))
        async with store:
            await store.insert([running, delayed, gone, last])
            await store.replace([Change(begun(running), running.revision)])
            await store.delete([gone.id])
            assert await before(store, last) == 0
            assert [await before(store, job) for job in (running, gone)] == [0, 0]

    async def test_jobs_that_are_held_come_before_the_rest(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(5)]
        async with store:
            await store.insert(jobs)
            await store.take([LANE], now=NOW, until=NOW + HOLD, limit=1)
            await store.take([LANE], now=NOW, until=NOW + HOLD / 2, limit=2)
            assert [await before(store, job) for job in jobs] == [2, 0, 1, 3, 4]

    async def test_counting_stops_in_time(self, store: Any) -> None:
        jobs = [sample_job() for _ in range(9)]
        async with store:
            await store.insert(jobs)
            await store.take([LANE], now=NOW, until=LATER, limit=4)
            for job in (jobs[3], jobs[8]):
                assert await before(store, job, most=3) == 3

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


async def before(store: Any, job: Job, most: int = MANY) -> int:
    """Count what begins before a job, as seen at `NOW`."""
    count: int = await store.count_before(job, until=NOW + HOLD, most=most)
    return count


def narrow(job: Job) -> Job:
    """Leave out what a list leaves out."""
    return job.changed(payload_json=b"", result_json=None, errors_json=None)


def fits(job: Job, which: Selection) -> bool:
    """Tell whether a job is meant by a selection."""
    return (
        which.user_id in (None, job.user_id)
        and which.type in (None, job.type)
        and which.status in (None, job.status)
    )


@pytest.mark.anyio
class StoreClockConformance:
    """The contract of `asyncjobs.protocols.StoreClock`; override the fixture `store`."""

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
