"""Every watcher gets every change, from any process, with one read per change."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobId, JobStatus, new_job_id
from asyncjobs.errors import StoreUnavailable, UnknownJob, UnreadableJob
from asyncjobs.protocols import Change, ChangeNotices
from asyncjobs.records.change_feed import ChangeFeed, Watch
from asyncjobs.records.waiting import Signal
from asyncjobs.testing import FaultyStore, sample_job
from asyncjobs.testing.samples import NOW
from tests.queues import simulated
from tests.waiting import until

pytestmark = pytest.mark.anyio

NEVER = 3600.0


class Shelf:
    """Readable jobs, with a record of the reads."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.reads: list[list[JobId]] = []
        self.away = False

    async def read(self, ids: Sequence[JobId]) -> Sequence[Job | None]:
        self.reads.append(list(ids))
        if self.away:
            raise StoreUnavailable("shelf", "it is away")
        return [self.jobs.get(job_id) for job_id in ids]

    def put(self, job: Job) -> Job:
        self.jobs[job.id] = job
        return job


class Notices:
    """A store that notifies of changes."""

    powers = frozenset({ChangeNotices})

    def __init__(self, *batches: Sequence[JobId]) -> None:
        self.batches = batches
        self.broken = False

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        for batch in self.batches:
            yield batch
        if self.broken:
            raise StoreUnavailable("notices", "it broke off")
        await anyio.sleep_forever()


async def test_a_signal_given_early_is_kept_and_given_once() -> None:
    signal = Signal()
    signal.set()
    with anyio.fail_after(60):
        await signal.wait()
    await signal.wait(timeout=0.01)


async def test_a_watcher_gets_the_current_and_each_later_state() -> None:
    job = sample_job()
    shelf, feed = Shelf(job), ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, shelf.read)
    assert await anext(watch) == job
    started = lifecycle.start(job, NOW, None)
    feed.announce(started)
    assert await anext(watch) == started
    done = lifecycle.complete(started, NOW, token=None, result=b"1")
    feed.announce(done)
    assert [one async for one in watch] == [done]
    assert len(shelf.reads) == 1


async def test_a_slow_watcher_gets_the_newest_state_only() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, Shelf(job).read)
    await anext(watch)
    newest = job
    for _ in range(100):
        newest = newest.model_copy(update={"version": newest.version + 1})
        feed.announce(newest)
    feed.announce(job)
    assert await anext(watch) == newest


class Busy:
    """A store that other processes write to all the time."""

    powers = frozenset({ChangeNotices})

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        while True:
            yield ()
            await anyio.sleep(0.03)


def test_reading_changes_of_others_takes_half_of_the_time_at_most() -> None:
    async def run() -> None:
        async def read_slowly(ids: Sequence[JobId]) -> Sequence[Job | None]:
            await anyio.sleep(1)
            return await shelf.read(ids)

        job = sample_job()
        shelf, feed = Shelf(job), ChangeFeed(poll=NEVER)
        watch = feed.watch(job.id, shelf.read)
        await anext(watch)
        with anyio.move_on_after(20.5):
            await feed.run(read_slowly, Busy())
        assert len(shelf.reads) == 1 + 10

    simulated(run)


async def test_watching_an_unknown_job_raises_and_leaves_no_listener() -> None:
    feed = ChangeFeed(poll=NEVER)
    with pytest.raises(UnknownJob):
        await anext(feed.watch(new_job_id(), Shelf().read))
    assert feed.listeners == 0


async def test_a_watch_that_is_left_early_leaves_no_listener() -> None:
    job, other = sample_job(), sample_job()
    shelf, feed = Shelf(job, other), ChangeFeed(poll=0)
    watch = await begun(feed.watch(other.id, shelf.read))
    async for _ in feed.watch(job.id, shelf.read):
        break
    assert feed.listeners == 1
    shelf.reads.clear()
    await refreshed(feed, shelf)
    assert shelf.reads == [[other.id]]
    await watch.aclose()


@pytest.mark.parametrize("doing", ["announce", "listen", "look", "count", "close"])
async def test_garbage_collection_is_safe_at_any_moment(doing: str) -> None:
    for after in range(1, 12):
        jobs = [sample_job() for _ in range(30)]
        shelf, feed = Shelf(*jobs), ChangeFeed(poll=0)
        lost = [
            cycle(await begun(feed.watch(job.id, shelf.read))) for job in [*jobs, *jobs[:1] * 30]
        ]
        watch = await begun(feed.watch(jobs[0].id, shelf.read))
        with collecting(lost, after):
            match doing:
                case "announce":
                    feed.announce(jobs[0])
                case "listen":
                    await begun(feed.watch(jobs[1].id, shelf.read))
                case "look":
                    await refreshed(feed, shelf)
                case "count":
                    assert feed.listeners
                case _:
                    feed.close()
        assert feed.listeners == 1
        feed.announce(started := lifecycle.start(jobs[0], NOW, None))
        assert await watch.within(60) == started


async def refreshed(feed: ChangeFeed, shelf: Shelf) -> None:
    """Let the feed read all watched jobs once."""
    with anyio.CancelScope() as scope:

        async def read(ids: Sequence[JobId]) -> Sequence[Job | None]:
            scope.cancel()
            return await shelf.read(ids)

        await feed.run(read, object())


async def begun(watch: Watch) -> Watch:
    await anext(watch)
    return watch


def cycle(watch: Watch) -> list[object]:
    """Return an object that only the garbage collector finds to be unused."""
    ring: list[object] = [watch]
    ring.append(ring)
    return ring


@contextmanager
def collecting(lost: list[list[object]], after: int) -> Generator[None]:
    """Collect these objects once the block has allocated `after` objects, and not earlier."""
    usual = gc.get_threshold()
    gc.disable()
    gc.collect(0)  # it starts counting anew, and looks once at objects it has seen
    lost.clear()
    gc.set_threshold(after, 0)
    gc.enable()
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.collect()


async def test_a_watch_can_be_closed() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, Shelf(job).read)
    await anext(watch)
    await watch.aclose()
    await watch.aclose()
    assert [one async for one in watch] == []
    assert feed.listeners == 0


async def test_closing_the_feed_ends_every_watch() -> None:
    jobs = [sample_job(), sample_job()]
    feed = ChangeFeed(poll=NEVER)
    watches = [feed.watch(job.id, Shelf(*jobs).read) for job in jobs]
    for watch in watches:
        await anext(watch)
    feed.close()
    for watch in watches:
        assert [one async for one in watch] == []


async def test_changes_of_others_are_found_by_polling() -> None:
    job, gone = sample_job(), sample_job()
    shelf, feed = Shelf(job, gone), ChangeFeed(poll=0.01)
    async with anyio.create_task_group() as tasks:
        watch, lost = feed.watch(job.id, shelf.read), feed.watch(gone.id, shelf.read)
        assert [await anext(watch), await anext(lost)] == [job, gone]
        tasks.start_soon(feed.run, shelf.read, object())
        started = shelf.put(lifecycle.start(job, NOW, None))
        del shelf.jobs[gone.id]
        with anyio.fail_after(60):
            assert await anext(watch) == started
            assert [one async for one in lost] == []
        tasks.cancel_scope.cancel()


async def test_a_change_is_read_once_for_any_number_of_watchers() -> None:
    job = sample_job()
    started = lifecycle.start(job, NOW, None)
    shelf, feed = Shelf(job), ChangeFeed(poll=NEVER)
    watches = [feed.watch(job.id, shelf.read) for _ in range(50)]
    for watch in watches:
        await anext(watch)
    shelf.put(started)
    shelf.reads.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, shelf.read, Notices([job.id]))
        with anyio.fail_after(60):
            assert [await anext(watch) for watch in watches] == [started] * 50
        tasks.cancel_scope.cancel()
    assert shelf.reads == [[job.id]]


@pytest.mark.every_store
async def test_a_change_in_the_store_reaches_all_watchers_with_one_read(
    store: Any, beside: Any
) -> None:
    job, counted = sample_job(), FaultyStore(store)
    started = lifecycle.start(job, NOW, None)
    tells = ChangeNotices in store.powers
    feed = ChangeFeed(poll=NEVER if tells else 0.01)
    await beside.insert([job])
    async with counted, anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, counted.get, counted)
        watches = [feed.watch(job.id, counted.get) for _ in range(50)]
        assert [await anext(watch) for watch in watches] == [job] * 50
        assert list(await beside.replace([Change(started, job.revision)])) == [True]
        with anyio.fail_after(60):
            assert [await anext(watch) for watch in watches] == [started] * 50
        tasks.cancel_scope.cancel()
    reads = sum(call.method == "get" for call in counted.calls)
    assert reads <= 50 + 3 or not tells  # one more at the beginning, and a repeated notice


async def test_notices_of_other_jobs_cost_no_read() -> None:
    job = sample_job()
    shelf, feed = Shelf(job), ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, shelf.read)
    await anext(watch)
    shelf.reads.clear()
    hints: list[Job | None] = []
    feed.on_any(hints.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, shelf.read, Notices([new_job_id()]))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (shelf.reads, hints) == ([], [None])
    feed.announce(job)
    assert hints == [None, job]


async def test_one_unreadable_row_does_not_hide_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = sample_job(), sample_job()
    shelf, feed = Shelf(bad, good), ChangeFeed(poll=0.01)

    async def read(ids: Sequence[JobId]) -> Sequence[Job | None]:
        if shelf.away and bad.id in ids:
            raise UnreadableJob(bad.id)
        return [shelf.jobs.get(job_id) for job_id in ids]

    watches = [feed.watch(job.id, read) for job in (bad, good)]
    for watch in watches:
        await anext(watch)
    shelf.away = True
    started = shelf.put(lifecycle.start(good, NOW, None))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, read, object())
        with anyio.fail_after(60):
            assert await anext(watches[1]) == started
        tasks.cancel_scope.cancel()
    assert bad.id in caplog.text


async def test_polling_continues_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    job = sample_job()
    shelf, feed = Shelf(job), ChangeFeed(poll=0.01)
    watch = feed.watch(job.id, shelf.read)
    await anext(watch)
    shelf.away = True
    notices = Notices([])
    notices.broken = True
    shelf.reads.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, shelf.read, notices)
        await until(lambda: len(shelf.reads) > 1)
        shelf.away = False
        shelf.put(lifecycle.cancel(job, NOW))
        with anyio.fail_after(60):
            assert (await anext(watch)).status is JobStatus.CANCELLED
        tasks.cancel_scope.cancel()
    assert "could not be read" in caplog.text
    assert "were interrupted" in caplog.text


async def test_within_returns_a_known_state_at_once_or_none_after_its_timeout() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, Shelf(job).read)
    assert await watch.within(60) == job
    assert await watch.within(0.001) is None
    started = lifecycle.start(job, NOW, None)
    feed.announce(started)
    assert await watch.within(60) == started


async def test_a_timeout_of_within_loses_no_later_change() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, Shelf(job).read)
    await anext(watch)
    for version in range(2, 30):
        assert await watch.within(0) is None
        feed.announce(job.model_copy(update={"version": version}))
        newest = await watch.within(60)
        assert newest is not None
        assert newest.version == version


async def test_a_wait_ends_when_the_job_has_ended() -> None:
    job = lifecycle.cancel(sample_job(), NOW)
    watch = ChangeFeed(poll=NEVER).watch(job.id, Shelf(job).read)
    assert await watch.within(60) == job
    with pytest.raises(StopAsyncIteration):
        await watch.within(60)


async def test_finishing_a_watch_ends_its_pending_waits() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    watch = feed.watch(job.id, Shelf(job).read)
    await anext(watch)
    async with anyio.create_task_group() as tasks:

        async def follow() -> None:
            with anyio.fail_after(60):
                assert [one async for one in watch] == []

        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        watch.finish()
    assert feed.listeners == 0


async def test_a_finished_watch_still_yields_the_known_state() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    unbegun, begun = (feed.watch(job.id, Shelf(job).read) for _ in range(2))
    assert await anext(begun) == job
    started = lifecycle.start(job, NOW, None)
    feed.announce(started)
    for watch in (unbegun, begun):
        watch.finish()
        watch.finish()
    with anyio.fail_after(60):
        assert [one async for one in unbegun] == [job]
        assert [one async for one in begun] == [started]
    assert feed.listeners == 0


async def test_finishing_one_watch_does_not_end_others() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    one, other = (feed.watch(job.id, Shelf(job).read) for _ in range(2))
    for watch in (one, other):
        await anext(watch)
    one.finish()
    started = lifecycle.start(job, NOW, None)
    feed.announce(started)
    assert await other.within(5) == started


async def test_a_watch_of_a_closed_feed_ends_before_it_begins() -> None:
    job = sample_job()
    feed, shelf = ChangeFeed(poll=NEVER), Shelf(job)
    feed.close()
    assert [one async for one in feed.watch(job.id, shelf.read)] == []
    assert shelf.reads == []


async def test_a_listener_is_called_for_its_job_until_it_is_removed() -> None:
    job = sample_job()
    feed = ChangeFeed(poll=NEVER)
    heard: list[Job | None] = []
    with feed.listening(job.id, heard.append):
        feed.announce(job)
        feed.announce(sample_job())
    feed.announce(job)
    assert heard == [job]
    feed.unlisten(job.id, heard.append)
    assert feed.listeners == 0


async def test_notices_that_end_are_requested_again() -> None:
    job = sample_job()
    shelf, feed = Shelf(job), ChangeFeed(poll=0.01)

    class Brief:
        """A store whose notices end without an error."""

        powers = frozenset({ChangeNotices})

        def __init__(self) -> None:
            self.asked = 0
            self.again = anyio.Event()

        async def changes(self) -> AsyncIterator[Sequence[JobId]]:
            self.asked += 1
            if self.asked == 2:
                self.again.set()
            yield []

    notices = Brief()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, shelf.read, notices)
        with anyio.fail_after(60):
            await notices.again.wait()
        tasks.cancel_scope.cancel()


async def test_a_single_unreadable_row_is_logged_and_read_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = sample_job()
    feed = ChangeFeed(poll=0.01)
    reads = 0

    async def read(ids: Sequence[JobId]) -> Sequence[Job | None]:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise UnreadableJob(job.id)
        return [lifecycle.start(job, NOW, None) if reads > 2 else job for _ in ids]

    watch = feed.watch(job.id, read)
    await anext(watch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, read, object())
        with anyio.fail_after(60):
            assert (await anext(watch)).status is JobStatus.PROCESSING
        tasks.cancel_scope.cancel()
    assert job.id in caplog.text
