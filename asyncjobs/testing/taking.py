"""What a store must do when workers and maintenance take what is due."""

from __future__ import annotations

from datetime import timedelta

import anyio

from asyncjobs.core.job import MAINTENANCE_LANE, Job
from asyncjobs.protocols import Change, Store
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ended, ids, sample_job


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
