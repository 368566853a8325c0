"""Durations of jobs are learned from ended jobs, in the background."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
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
from asyncjobs.runtime.estimates import Estimates, durations, most_take
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import LoopClock, sample_job
from asyncjobs.testing.samples import NOW
from tests.queues import simulated

SECOND = timedelta(seconds=1)


def took(seconds: float, type: str = "export") -> Job:
    """Make a job that completed after this many seconds of work."""
    changes = {
        "status": JobStatus.COMPLETED,
        "started_at": NOW,
        "completed_at": NOW + timedelta(seconds=seconds),
    }
    return sample_job(type=type).model_copy(update=changes)


class Past:
    """The past jobs to learn from, with a record of the reads."""

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
    """Run work beside the learning loop, in simulated time."""

    async def run() -> None:
        past, feed = Past(*jobs), ChangeFeed(poll=3600)
        estimates = Estimates(past.latest, feed)
        async with anyio.create_task_group() as tasks:
            await anyio.sleep(1)
            tasks.start_soon(estimates.run)
            await work(past, feed, estimates)
            tasks.cancel_scope.cancel()

    simulated(run)


def expected(seconds: Iterable[float], prior: float | None = None) -> float | None:
    """Return the estimate in seconds after jobs with these durations."""
    given = None if prior is None else timedelta(seconds=prior)
    found = most_take(durations([took(one) for one in seconds]), given)
    return None if found is None else found.total_seconds()


def test_without_jobs_there_is_no_estimate() -> None:
    assert expected([]) is None


def test_jobs_that_never_began_or_never_ended_are_not_counted() -> None:
    begun = took(5).model_copy(update={"completed_at": None})
    never = took(5).model_copy(update={"started_at": None})
    assert durations([sample_job(), begun, never]) == []
    assert durations([sample_job(), begun, never, took(7)]) == [7 * SECOND]


@pytest.mark.parametrize(
    ("seconds", "estimate"),
    [([3], 3), ([1, 2], 2), ([5, 1, 2, 3, 4], 5), ([*range(1, 11)], 9), ([1] * 9 + [900], 1)],
)
def test_four_in_five_jobs_are_done_within_the_estimate(
    seconds: list[float], estimate: float
) -> None:
    assert expected(seconds) == estimate


@pytest.mark.parametrize(
    ("seconds", "estimate"),
    [
        ([], 30),
        ([0.008], 30),  # a single trivial job, such as a smoke test
        ([0.008] * 20, 30),
        ([0.008] * 21, 1),
        ([600], 30),
        ([600] * 2, 600),  # an estimate that is too short is soon outweighed
    ],
)
def test_the_estimate_of_the_handler_counts_as_five_jobs(
    seconds: list[float], estimate: float
) -> None:
    assert expected(seconds, 30) == estimate


@pytest.mark.parametrize(
    ("seconds", "estimate"),
    [(0, 1), (0.008, 1), (1.2, 2), (9.9, 10), (89.2, 90), (99.1, 100), (123, 130), (3601, 3700)],
)
def test_a_learned_duration_is_rounded_up_to_two_digits(seconds: float, estimate: float) -> None:
    assert expected([seconds]) == estimate


def test_the_estimate_of_the_handler_is_not_rounded() -> None:
    assert expected([], 12.5) == 12.5
    assert expected([], 0) == 0


def test_different_clocks_cause_no_negative_durations() -> None:
    assert durations([took(-5)]) == [timedelta(0)]


@given(
    st.lists(st.integers(-10, 10_000), max_size=60),
    st.none() | st.integers(0, 10_000),
    st.integers(),
)
def test_an_estimate_covers_most_jobs_and_is_not_too_long(
    seconds: list[int], prior: int | None, seed: int
) -> None:
    found = expected(seconds, prior)
    shuffled = random.Random(seed).sample(seconds, len(seconds))  # noqa: S311  # no secret
    assert found == expected(shuffled, prior)
    counted = [max(0, one) for one in seconds] + ([] if prior is None else [prior] * 5)
    if not counted:
        assert found is None
        return
    assert found is not None
    assert sum(one <= found for one in counted) >= 0.8 * len(counted)
    # Rounding adds at most a tenth, or up to one second.
    assert any(one <= found <= max(one * 1.1, 1) for one in counted)


def test_the_first_call_returns_none_and_a_later_one_the_estimate() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        assert estimates.of("export", None) is None
        assert past.asked == []
        await anyio.sleep(0.1)
        assert estimates.of("export", None) == 7 * SECOND
        assert past.asked == [(Selection(type="export", status=JobStatus.COMPLETED), 50)]

    learning(work, took(7))


def test_repeated_calls_cost_one_read() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        for _number in range(280):
            estimates.of("export", None)
            await anyio.sleep(0.1)
        assert len(past.asked) == 1

    learning(work, took(7))


def test_an_old_estimate_is_returned_while_it_is_refreshed() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export", None)
        await anyio.sleep(1)
        past.jobs = [took(9)]
        await anyio.sleep(40)
        assert len(past.asked) == 1  # no request, no read
        assert estimates.of("export", None) == 7 * SECOND
        await anyio.sleep(1.5)
        assert estimates.of("export", None) == 9 * SECOND
        assert len(past.asked) == 2

    learning(work, took(7))


def test_a_completion_in_this_process_is_learned_from_without_delay() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export", None)
        await anyio.sleep(2)
        past.jobs = [took(9)]
        feed.announce(took(9))
        assert estimates.of("export", None) == 7 * SECOND
        await anyio.sleep(1.5)
        assert estimates.of("export", None) == 9 * SECOND

    learning(work, took(7))


def test_frequent_completions_cause_one_read_a_second() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        for _number in range(500):
            feed.announce(took(1))
            estimates.of("export", None)
            await anyio.sleep(0.01)
        assert 4 <= len(past.asked) <= 6

    learning(work, took(1))


def test_only_completions_of_the_type_refresh_its_estimate() -> None:
    async def work(past: Past, feed: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export", None)
        await anyio.sleep(2)
        feed.announce(sample_job())
        feed.announce(took(5).model_copy(update={"status": JobStatus.FAILED}))
        feed.announce(took(5, "import"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.run, past.read, Noticed())
            estimates.of("export", None)
            await anyio.sleep(2)
            tasks.cancel_scope.cancel()
        assert len(past.asked) == 1

    learning(work, took(7))


def test_types_are_learned_apart() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        assert [estimates.of(kind, None) for kind in ("export", "import", "x")] == [None] * 3
        await anyio.sleep(0.1)
        known = [estimates.of(kind, None) for kind in ("export", "import", "x")]
        assert known == [7 * SECOND, 3 * SECOND, None]
        assert len(past.asked) == 3

    learning(work, took(7), took(3, "import"))


@pytest.mark.parametrize(
    "fault", [StoreUnavailable("past", "it is away"), ConfigurationError("it cannot list")]
)
def test_an_error_of_the_store_keeps_the_known_estimate(fault: Exception) -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export", None)
        await anyio.sleep(40)
        past.fault = fault
        for _number in range(20):
            assert estimates.of("export", None) == 7 * SECOND
            await anyio.sleep(1)
        assert len(past.asked) == 2  # no repeated requests
        past.fault, past.jobs = None, [took(9)]
        await anyio.sleep(20)
        estimates.of("export", None)
        await anyio.sleep(1.5)
        assert estimates.of("export", None) == 9 * SECOND

    learning(work, took(7))


def test_deleted_jobs_no_longer_count_in_the_estimate() -> None:
    async def work(past: Past, _: ChangeFeed, estimates: Estimates) -> None:
        estimates.of("export", None)
        await anyio.sleep(40)
        past.jobs = []
        estimates.of("export", None)
        await anyio.sleep(1.5)
        assert estimates.of("export", None) is None

    learning(work, took(7))


class Mute(MemoryStore):
    """A store that declares no power."""

    powers = frozenset()


def test_the_handlers_estimate_is_used_until_jobs_have_ended() -> None:
    async def run() -> None:
        jobs = AsyncJobs(MemoryStore(), clock=LoopClock())

        @jobs.handler("nap", estimate=60)
        async def nap(seconds: float, _: JobContext) -> None:
            await anyio.sleep(seconds)

        async def naps(seconds: float, number: int) -> list[Job]:
            accepted = [(await jobs.enqueue(nap, seconds)).job for _ in range(number)]
            for job in accepted:
                await jobs.wait(job.id)
            jobs.expected_duration(nap)
            await anyio.sleep(3)
            return accepted

        async with jobs:
            await anyio.sleep(1)
            [first] = await naps(0.008, 1)
            assert first.estimated_duration == 60 * SECOND
            [second] = await naps(699.5, 1)
            assert second.estimated_duration == 60 * SECOND
            assert jobs.expected_duration(nap) == jobs.expected_duration(first) == 60 * SECOND
            await naps(699.5, 3)
            third = (await jobs.enqueue(nap, 1)).job
            known = [jobs.expected_duration(one) for one in (nap, first, third)]
            assert known == [700 * SECOND] * 3
            assert third.estimated_duration == known[0]

    simulated(run)


def test_without_lists_the_handlers_estimate_is_used() -> None:
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
