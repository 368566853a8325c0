"""The `JobContext` that handlers receive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import JobCancelled, JobContext
from asyncjobs.core.job import Detail
from asyncjobs.execution.context import Gauge, progress_of
from asyncjobs.testing import sample_job


def reported(gauge: Gauge) -> tuple[int, Detail | None]:
    assert gauge.latest is not None
    progress = progress_of(gauge.latest)
    return progress.percent, progress.detail


@pytest.fixture
def gauge() -> Gauge:
    return Gauge()


@pytest.fixture
def job(gauge: Gauge) -> JobContext:
    return JobContext(sample_job(user_id="ann"), gauge)


def test_the_context_has_the_values_of_the_job(job: JobContext) -> None:
    known = sample_job()
    assert job.id.startswith("job_")
    assert (job.type, job.user_id, job.payload) == ("export", "ann", {"format": "csv"})
    assert (job.trace_id, job.attempt, job.fence) == (known.trace_id, 0, 0)
    assert job.deadline == known.deadline
    assert not job.cancelled


def test_progress_reports_a_percentage_and_its_detail(job: JobContext, gauge: Gauge) -> None:
    job.progress(12.9)
    assert reported(gauge) == (12, None)
    job.progress(50, "half", current=1, total=2, unit="cups")
    assert reported(gauge) == (50, Detail(message="half", current=1, total=2, unit="cups"))


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
def test_progress_out_of_range_is_refused(job: JobContext, percent: float) -> None:
    with pytest.raises(ValueError, match="percentage"):
        job.progress(percent)


@pytest.mark.parametrize("count", [1.5, 2**63, "3"])
def test_counts_that_are_not_whole_numbers_are_refused(job: JobContext, count: Any) -> None:
    with pytest.raises(TypeError, match="integers"):
        job.progress(1, current=count)
    with pytest.raises(TypeError, match="integers"):
        job.progress(1, total=count)


@pytest.mark.parametrize("percent", [0, 100])
def test_progress_accepts_0_and_100(job: JobContext, gauge: Gauge, percent: int) -> None:
    job.progress(percent)
    assert reported(gauge) == (percent, None)


def test_texts_over_their_limits_are_truncated(job: JobContext, gauge: Gauge) -> None:
    for extra in (0, 1):
        job.progress(1, "m" * (1000 + extra), current=1, unit="u" * (100 + extra))
        _, detail = reported(gauge)
        assert detail is not None
        assert detail.message == ("m" * 994 + " [cut]" if extra else "m" * 1000)
        assert detail.unit == ("u" * 94 + " [cut]" if extra else "u" * 100)


def test_every_call_of_a_stopping_handler_raises_job_cancelled(
    job: JobContext, gauge: Gauge
) -> None:
    gauge.stopping = True
    assert job.cancelled
    with pytest.raises(JobCancelled):
        job.check()
    with pytest.raises(JobCancelled):
        job.progress(1)
    with pytest.raises(JobCancelled):
        next(iter(job.track([1])))
    assert not issubclass(JobCancelled, Exception)


def test_track_counts_the_processed_items(job: JobContext, gauge: Gauge) -> None:
    seen = [reported(gauge)[0] for _ in job.track("abcd")]
    assert seen == [0, 25, 50, 75]
    assert reported(gauge) == (100, Detail(current=4, total=4))


def test_track_accepts_a_total_a_message_and_a_unit(job: JobContext, gauge: Gauge) -> None:
    for _ in job.track(iter("ab"), total=4, unit="rows", message="writing"):
        pass
    assert reported(gauge) == (50, Detail(message="writing", current=2, total=4, unit="rows"))


@pytest.mark.parametrize(("total", "percent"), [(None, 0), (2, 100), (0, 0)])
def test_track_yields_all_items_with_a_wrong_or_missing_total(
    job: JobContext, gauge: Gauge, total: int | None, percent: int
) -> None:
    for _ in job.track(iter("abc"), total=total):
        pass
    assert reported(gauge)[0] == percent


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@pytest.mark.anyio
async def test_track_works_in_async_for_over_both_kinds_of_iterables(
    job: JobContext, gauge: Gauge
) -> None:
    assert [number async for number in job.track(numbers(), total=3)] == [0, 1, 2]
    assert [number async for number in job.track(range(3))] == [0, 1, 2]
    assert reported(gauge) == (100, Detail(current=3, total=3))


def test_track_refuses_a_plain_loop_over_asynchronous_items(job: JobContext) -> None:
    with pytest.raises(TypeError, match="async for"):
        next(iter(job.track(numbers())))


@pytest.mark.anyio
async def test_an_async_loop_over_plain_items_lets_other_tasks_run(job: JobContext) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    def busy() -> Iterator[int]:
        while turns < 5:
            yield turns

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            async for _ in job.track(busy()):
                pass
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_loop_of_reports_can_be_cancelled(job: JobContext) -> None:
    with anyio.move_on_after(0.05) as scope:
        while True:
            await job.progress(1)
    assert scope.cancelled_caught
