"""How long jobs take is learned from those that ended, without anybody waiting for it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus
from asyncjobs.core.job import JobId
from asyncjobs.errors import ConfigurationError, StoreUnavailable, UnusableConnection
from asyncjobs.protocols import ChangeNotices, Page, Selection
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.runtime.estimates import Estimates, most_take
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import LoopClock, sample_job
from asyncjobs.testing.samples import NOW
from tests.queues import simulated

SECOND = timedelta(seconds=1)


def took(seconds: float, type: str = "export") -> Job:
    """Make a job that was completed after so many seconds of work."""
    changes = {
        "status": JobStatus.COMPLETED,
        "started_at": NOW,
        "completed_at": NOW + timedelta(seconds=seconds),
    }
    return sample_job(type=type).model_copy(update=changes)


class Past:
    """The jobs there are to learn from, with what it costs."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.asked: list[tuple[Selection, int]] = []
        self.fault: Exception | None = None

    async def latest(self, which: Selection, limit: int) -> Page:
        self.asked.append((which, limit))
        if self.fault is not None:
            raise self.fault
        return Page([job for job in self.jobs if job.type == which.type][:limit])

    async def read(self, ids: Sequence[JobId]) -> Sequence[Job | None]:
        return [None] * len(ids)


class Noticed:
    """A store in which another process has changed something."""

    powers = frozenset({ChangeNotices})

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        yield ()
        await anyio.sleep_forever()


Work = Callable[["Past", ChangeFeed, Estimates], Awaitable[None]]


def learning(work: Work, *jobs: Job) -> None:
    """Run work beside the loop that learns, in simulated time."""

    async def run() -> None:
        past, feed = Past(*jobs), ChangeFeed(poll=3600)
        estimates = Estimates(past.latest, feed)
        async with anyio.create_task_group() as tasks:
            await anyio.sleep(1)
            tasks.start_soon(estimates.run)
            await work(past, feed, estimates)
            tasks.cancel_scope.cancel()

    simulated(run)


def test_nothing_is_known_of_no_jobs() -> None:
    assert most_take([]) is None


def test_jobs_that_never_began_or_never_ended_tell_nothing() -> None:
    begun = took(5).model_copy(update={"completed_at": None})
    never = took(5).model_copy(update={"started_at": None})
    assert most_take([sample_job(), begun, never]) is None
    assert most_take([sample_job(), begun, never, took(7)]) == 7 * SECOND


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([3], 3), ([1, 2], 2), ([5, 1, 2, 3, 4], 5), ([*range(1, 11)], 9), ([1] * 9 + [900], 1)],
)
def test_four_in_five_jobs_are_done_within_the_estimate(
    seconds: list[float], expected: float
) -> None:
    assert most_take([took(one) for one in seconds]) == expected * SECOND


def test_clocks_that_differ_make_no_negative_durations() -> None:
    assert most_take([took(-5)]) == timedelta(0)


@given(st.lists(st.integers(-10, 10_000), min_size=1, max_size=60), st.integers())
def test_an_estimate_is_a_duration_that_was_seen_and_most_were_no_longer(
    seconds: list[int], seed: int
) -> None:
    jobs = [took(one) for one in seconds]
    found = most_take(jobs)
    random.Random(seed).shuffle(jobs)  # noqa: S311  # an order, no secret
    assert found == most_take(jobs)
    assert found is not None
    durations = [max(0, one) for one in seconds]
    assert found.total_seconds() in durations
    assert sum(one <= found.total_seconds() for one in durations) >= 0.8 * len(durations)


def test_the_first_who_asks_does_not_wait_and_the_next_one_knows() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        assert estimates.of("export") is None
        assert past.asked == []
        await anyio.sleep(0.1)
        assert estimates.of("export") == 7 * SECOND
        assert past.asked == [(Selection(type="export", status=JobStatus.COMPLETED), 50)]

    learning(work, took(7))


def test_who_asks_again_and_again_costs_one_look() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        for _number in range(280):
            estimates.of("export")
            await anyio.sleep(0.1)
        assert len(past.asked) == 1

    learning(work, took(7))


def test_what_is_old_is_served_and_learned_anew() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export")
        await anyio.sleep(1)
        past.jobs = [took(9)]
        await anyio.sleep(40)
        assert len(past.asked) == 1  # nobody asks, nobody looks
        assert estimates.of("export") == 7 * SECOND
        await anyio.sleep(1.5)
        assert estimates.of("export") == 9 * SECOND
        assert len(past.asked) == 2

    learning(work, took(7))


def test_a_completion_in_this_process_is_learned_from_without_delay() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export")
        await anyio.sleep(2)
        past.jobs = [took(9)]
        feed.announce(took(9))
        assert estimates.of("export") == 7 * SECOND
        await anyio.sleep(1.5)
        assert estimates.of("export") == 9 * SECOND

    learning(work, took(7))


def test_where_jobs_end_all_the_time_one_look_a_second_is_enough() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        for _number in range(500):
            feed.announce(took(1))
            estimates.of("export")
            await anyio.sleep(0.01)
        assert 4 <= len(past.asked) <= 6

    learning(work, took(1))


def test_what_does_not_complete_a_job_of_that_type_teaches_nothing() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export")
        await anyio.sleep(2)
        feed.announce(sample_job())
        feed.announce(took(5).model_copy(update={"status": JobStatus.FAILED}))
        feed.announce(took(5, "import"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.run, past.read, Noticed())
            estimates.of("export")
            await anyio.sleep(2)
            tasks.cancel_scope.cancel()
        assert len(past.asked) == 1

    learning(work, took(7))


def test_types_are_learned_apart() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        assert [estimates.of(kind) for kind in ("export", "import", "x")] == [None] * 3
        await anyio.sleep(0.1)
        known = [estimates.of(kind) for kind in ("export", "import", "x")]
        assert known == [7 * SECOND, 3 * SECOND, None]
        assert len(past.asked) == 3

    learning(work, took(7), took(3, "import"))


@pytest.mark.parametrize(
    "fault", [StoreUnavailable("past", "it is away"), ConfigurationError("it cannot list")]
)
def test_a_store_that_is_away_or_cannot_list_leaves_what_is_known(fault: Exception) -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export")
        await anyio.sleep(40)
        past.fault = fault
        for _number in range(20):
            assert estimates.of("export") == 7 * SECOND
            await anyio.sleep(1)
        assert len(past.asked) == 2  # it is not asked again and again
        past.fault, past.jobs = None, [took(9)]
        await anyio.sleep(20)
        estimates.of("export")
        await anyio.sleep(1.5)
        assert estimates.of("export") == 9 * SECOND

    learning(work, took(7))


def test_jobs_that_are_gone_are_unlearned() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export")
        await anyio.sleep(40)
        past.jobs = []
        estimates.of("export")
        await anyio.sleep(1.5)
        assert estimates.of("export") is None

    learning(work, took(7))


class Mute(MemoryStore):
    """A store that declares no power."""

    powers = frozenset()


def test_a_queue_expects_what_was_estimated_until_it_has_seen_how_long_jobs_take() -> None:
    async def run() -> None:
        jobs = AsyncJobs(MemoryStore(), clock=LoopClock())

        @jobs.handler("nap", estimate=60)
        async def nap(seconds: float, _: JobContext) -> None:
            await anyio.sleep(seconds)

        async with jobs:
            await anyio.sleep(1)
            first = (await jobs.enqueue(nap, 8)).job
            assert first.estimated_duration == 60 * SECOND
            assert jobs.expected_duration(nap) == jobs.expected_duration(first) == 60 * SECOND
            await jobs.wait(first.id)
            jobs.expected_duration(nap)
            await anyio.sleep(3)
            second = (await jobs.enqueue(nap, 1)).job
            known = [jobs.expected_duration(one) for one in (nap, first, second)]
            assert [one and round(one.total_seconds()) for one in known] == [8, 8, 8]
            assert second.estimated_duration == known[0]

    simulated(run)


def test_with_a_store_that_cannot_list_the_estimate_stands() -> None:
    async def run() -> None:
        jobs = AsyncJobs(Mute(), clock=LoopClock())

        @jobs.handler("nap", estimate=60)
        async def nap(seconds: float, _: JobContext) -> None:
            await anyio.sleep(seconds)

        async with jobs:
            await anyio.sleep(1)
            job = (await jobs.enqueue(nap, 8)).job
            done = await jobs.wait(job.id)
            for _number in range(3):
                assert jobs.expected_duration(nap) == 60 * SECOND
                await anyio.sleep(40)
            assert done.status is JobStatus.COMPLETED
            assert await jobs.position(job) is None
            assert await jobs.oldest_waiting() == {}
            with pytest.raises(ConfigurationError, match="cannot list"):
                await jobs.list(Selection())
            with pytest.raises(UnusableConnection):
                await jobs.enqueue(nap, 8, connection=object())

    simulated(run)
