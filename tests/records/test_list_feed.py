"""Lists that are kept current: what watchers get, and what it costs."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobId, JobStatus, Selection, Settings
from asyncjobs.errors import ConfigurationError, InvalidQuery, StoreUnavailable
from asyncjobs.protocols import Page
from asyncjobs.records.list_feed import ListWatch
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore
from tests.queues import IDLE, QUICK, Make
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

TAG = "customer:42"
OF_ANN = Selection(user_id="ann", tag=TAG)
OF_ANN_WITHOUT_MEMBERS = Selection(user_id="ann", members=False)


class Counting(MemoryStore):
    """Counts how often jobs of a tag or without members are listed; estimates list a type's."""

    reads = 0

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        self.reads += which.tag is not None or not which.members
        return await super().list(which, limit=limit, after=after)


def declared(jobs: AsyncJobs) -> AsyncJobs:
    jobs.external("outside", payload=int, result=int)
    return jobs


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return declared(make())


async def add(jobs: AsyncJobs, *tags: str, owner: str | None = "ann") -> JobId:
    options = EnqueueOptions(tags=tags or (TAG,))
    return (await jobs.enqueue("outside", 1, user_id=owner, options=options)).id


async def soon(watch: ListWatch) -> Page:
    with anyio.fail_after(PATIENCE_SECONDS):
        return await anext(watch)


async def ids(watch: ListWatch) -> list[JobId]:
    return [job.id for job in (await soon(watch)).jobs]


async def until_seen(watch: ListWatch, wanted: Sequence[JobId]) -> None:
    """Return when the watched list has these jobs."""
    with anyio.fail_after(PATIENCE_SECONDS):
        async for page in watch:
            if [job.id for job in page.jobs] == [*wanted]:
                return


async def test_a_watch_yields_the_list_then_its_newest_state_at_each_change(
    jobs: AsyncJobs,
) -> None:
    async with jobs:
        first = await add(jobs)
        watch = jobs.subscribe_list(OF_ANN)
        assert await ids(watch) == [first]
        await add(jobs, "other")
        await add(jobs, owner="bob")
        second = await add(jobs)
        assert await ids(watch) == [second, first]
        await jobs.update_progress(first, 30)
        # The job begins by its first report, which may be seen on its own.
        while (await soon(watch)).jobs[1].progress != 30:
            pass


async def test_jobs_of_another_process_appear_and_change(make: Make) -> None:
    here, there = declared(make()), declared(make())
    async with here, there:
        watch = here.subscribe_list(OF_ANN)
        assert await ids(watch) == []
        job_id = await add(there)
        assert await ids(watch) == [job_id]
        await there.complete(job_id, 1)
        page = await soon(watch)
        while not page.jobs[0].status.terminal:
            page = await soon(watch)
        assert page.jobs[0].progress == 100


async def test_deleted_jobs_leave_the_list(jobs: AsyncJobs, beside: Any) -> None:
    async with jobs:
        first, second = await add(jobs), await add(jobs)
        watch = jobs.subscribe_list(OF_ANN)
        assert await ids(watch) == [second, first]
        await beside.delete([first])
        await until_seen(watch, [second])


async def test_a_list_has_the_newest_jobs_up_to_its_limit(jobs: AsyncJobs) -> None:
    async with jobs:
        first, second = await add(jobs), await add(jobs)
        watch = jobs.subscribe_list(OF_ANN, limit=2)
        assert await ids(watch) == [second, first]
        third = await add(jobs)
        await until_seen(watch, [third, second])


async def test_a_selection_without_a_tag_and_by_status(jobs: AsyncJobs) -> None:
    async with jobs:
        watch = jobs.subscribe_list(Selection(status=JobStatus.PENDING))
        job_id = await add(jobs, owner=None)
        await until_seen(watch, [job_id])
        await jobs.update_progress(job_id, 1)
        await until_seen(watch, [])


async def test_watches_of_one_list_share_its_reads() -> None:
    store = Counting()
    jobs = declared(AsyncJobs(store, settings=IDLE))
    async with jobs:
        watches = [jobs.subscribe_list(OF_ANN) for _ in range(5)]
        for watch in watches:
            assert await ids(watch) == []
        before = store.reads
        job_id = await add(jobs)
        for watch in watches:
            assert await ids(watch) == [job_id]
        assert store.reads == before + 1


async def test_writes_of_other_lists_cause_no_reads() -> None:
    store = Counting()
    jobs = declared(AsyncJobs(store, settings=IDLE))
    async with jobs:
        watch = jobs.subscribe_list(OF_ANN)
        await ids(watch)
        before = store.reads
        other = await add(jobs, "other")
        await jobs.complete(other, 1)
        job_id = await add(jobs)
        assert await ids(watch) == [job_id]
        assert store.reads == before + 1


async def test_changes_of_members_concern_no_list_that_leaves_them_out() -> None:
    store = Counting()
    jobs = declared(AsyncJobs(store, settings=IDLE))
    async with jobs:
        batch = await jobs.enqueue_batch("outside", [1, 2], user_id="ann")
        members = [job.id async for job in batch.jobs()]
        watch = jobs.subscribe_list(OF_ANN_WITHOUT_MEMBERS)
        everything = jobs.subscribe_list(Selection(user_id="ann"))
        assert await ids(watch) == [batch.id]
        assert await ids(everything) == [*members, batch.id]
        before = store.reads
        await jobs.update_progress(members[0], 50)
        page = await soon(everything)
        while page.jobs[0].progress != 50:
            page = await soon(everything)
        assert store.reads == before
        alone = await add(jobs)
        await until_seen(watch, [alone, batch.id])


async def test_without_watches_nothing_is_read() -> None:
    store = Counting()
    settings = Settings(poll_interval=0.01, sweep_interval=timedelta(hours=1))
    jobs = declared(AsyncJobs(store, settings=settings))
    async with jobs:
        kept, dropped = jobs.subscribe_list(OF_ANN), jobs.subscribe_list(OF_ANN)
        await ids(kept)
        await ids(dropped)
        assert jobs.watchers == 2
        await kept.aclose()
        del dropped
        gc.collect()
        await until(lambda: jobs.watchers == 0)
        await add(jobs)
        await anyio.wait_all_tasks_blocked()
        before = store.reads
        watch = jobs.subscribe_list(OF_ANN)
        await ids(watch)
        assert store.reads == before + 1


async def test_an_outage_is_survived(make: Make, new_store: Any) -> None:
    store = FaultyStore(new_store())
    jobs, there = declared(make(store=store)), declared(make())
    async with jobs, there:
        watch = jobs.subscribe_list(OF_ANN)
        assert await ids(watch) == []
        store.faults = Faults(before=1.0, only=frozenset({"list"}))
        job_id = await add(there)
        seen = len(store.calls)
        await until(lambda: "list" in [call.method for call in store.calls[seen:]])
        with pytest.raises(StoreUnavailable):
            await anext(jobs.subscribe_list(OF_ANN))
        store.faults = Faults()
        assert await ids(watch) == [job_id]


async def test_a_watch_ends_when_it_is_finished_or_the_queue_closes(jobs: AsyncJobs) -> None:
    async with jobs:
        finished, closed, late = (jobs.subscribe_list(OF_ANN) for _ in range(3))
        assert await ids(finished) == await ids(closed) == []
        finished.finish()
        assert [page async for page in finished] == []
    assert [page async for page in closed] == []
    assert [page async for page in late] == []


async def test_a_malformed_tag_and_a_store_without_tags_are_refused(jobs: AsyncJobs) -> None:
    async with jobs:
        with pytest.raises(InvalidQuery, match="'tag' cannot be used: a tag must not"):
            await jobs.list(Selection(tag=" x"))
        with pytest.raises(InvalidQuery):
            await anext(jobs.subscribe_list(Selection(tag="a\nb")))


async def test_a_store_that_does_not_find_tags_is_refused() -> None:
    class Untagged(MemoryStore):
        filters = frozenset({"user_id"})

    async with AsyncJobs(Untagged(), settings=QUICK) as jobs:
        with pytest.raises(ConfigurationError, match="tag"):
            await anext(jobs.subscribe_list(OF_ANN))
