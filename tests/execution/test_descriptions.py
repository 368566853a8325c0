"""Titles and metadata that handlers set."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobFailed, JobStatus, Retry, Settings
from asyncjobs.execution.context import Gauge, News
from asyncjobs.testing import sample_job
from tests.queues import Make, finished, running, settled
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

NEVER_WRITTEN_BEFORE_THE_END = Settings(progress_interval=timedelta(hours=1), grace=0)


async def test_a_title_and_metadata_are_visible_while_the_job_runs(jobs: AsyncJobs) -> None:
    go_on = anyio.Event()

    @jobs.handler("slow")
    async def slow(_none: None, job: JobContext) -> None:
        job.set_title("Customers, 17 of 20")
        job.set_metadata({"file": "märz.csv", "rows": [17, 20]})
        await go_on.wait()

    async with jobs:
        begun = await running(jobs, slow)
        with anyio.fail_after(PATIENCE_SECONDS):
            async for seen in jobs.subscribe(begun.id):
                if seen.title is not None:
                    assert seen.version > begun.version
                    assert seen.metadata == {"file": "märz.csv", "rows": [17, 20]}
                    go_on.set()
        done = await jobs.find(begun.id)
    assert (done.title, done.progress) == ("Customers, 17 of 20", 100)


@pytest.mark.parametrize("error", [None, JobFailed("no"), KeyError("no")])
async def test_the_last_title_and_metadata_are_always_stored(
    make: Make, error: Exception | None
) -> None:
    jobs = make(settings=NEVER_WRITTEN_BEFORE_THE_END)

    @jobs.handler("quick")
    async def quick(_none: None, job: JobContext) -> None:
        for number in range(3):
            job.set_title(f"Part {number}")
            job.set_metadata({"part": number})
        if error is not None:
            raise error

    async with jobs:
        done = await finished(jobs, quick, title="Parts", metadata={"given": True})
    assert (done.title, done.metadata) == ("Part 2", {"part": 2})
    assert (done.given_title, done.progress) == ("Parts", 100 if error is None else 0)


async def test_a_retry_begins_with_what_was_last_written(jobs: AsyncJobs) -> None:
    seen: list[tuple[str | None, Any]] = []
    tags: set[tuple[str, ...]] = set()

    @jobs.handler("moody", retry=Retry(max_attempts=2, initial_delay=timedelta(0)))
    def moody(_none: None, job: JobContext) -> None:
        seen.append((job.title, job.metadata))
        tags.add(job.tags)
        if job.attempt == 1:
            job.set_title("Half")
            job.set_metadata({"done": 1})
            raise OSError
        job.set_metadata({})

    async with jobs:
        done = await finished(jobs, moody, title="All", tags=["a", "b"], metadata={"done": 0})
    assert tags == {("a", "b")}
    assert seen == [("All", {"done": 0}), ("Half", {"done": 1})]
    assert (done.title, done.metadata) == ("Half", {})


async def test_a_cancelled_job_has_what_its_handler_set_while_it_stopped(jobs: AsyncJobs) -> None:
    @jobs.handler("tidy")
    async def tidy(_none: None, job: JobContext) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            job.set_title("Stopped after 3 of 5")

    async with jobs:
        begun = await running(jobs, tidy)
        await jobs.cancel(begun.id)
        done = await settled(jobs, begun.id)
    assert (done.status, done.title) == (JobStatus.CANCELLED, "Stopped after 3 of 5")


async def test_a_handler_that_sets_the_same_again_causes_no_more_writes(jobs: AsyncJobs) -> None:
    @jobs.handler("steady")
    async def steady(_none: None, job: JobContext) -> None:
        for number in range(20):
            job.set_title(f"Steady {0 * number}")
            job.set_metadata({"same": 1})
            await anyio.sleep(0.01)

    async with jobs:
        done = await finished(jobs, steady)
    # Submission, start, one report and the end; the first two may be one write.
    assert done.version <= 4


async def test_the_context_has_the_current_values_and_its_own() -> None:
    job: JobContext[Any] = JobContext(
        sample_job(given_title="Given", given_metadata_json=b'{"a":1}')
    )
    assert (job.title, job.metadata) == ("Given", {"a": 1})
    job.metadata["b"] = 2  # a copy
    job.set_title("New")
    assert (job.title, job.metadata) == ("New", {"a": 1})
    job.set_metadata({})
    assert job.metadata == {}


@pytest.mark.parametrize(
    ("title", "error"),
    [
        (None, TypeError),
        (5, TypeError),
        ("", ValueError),
        (" padded", ValueError),
        ("a" * 201, ValueError),
        ("two\nlines", ValueError),
    ],
)
async def test_a_title_that_no_submission_may_have_is_refused(
    title: Any, error: type[Exception]
) -> None:
    gauge = Gauge()
    job: JobContext[Any] = JobContext(sample_job(given_title="Given"), gauge)
    with pytest.raises(error):
        job.set_title(title)
    assert (gauge.unwritten(), job.title) == (None, "Given")


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ([1], TypeError),
        ({1: 2}, TypeError),
        ({"a": object()}, ValueError),
        ({"a": float("nan")}, ValueError),
        ({"a": "b" * 20_000}, ValueError),
    ],
)
async def test_metadata_that_no_submission_may_have_are_refused(
    metadata: Any, error: type[Exception]
) -> None:
    gauge = Gauge()
    job: JobContext[Any] = JobContext(sample_job(given_metadata_json=b'{"a":1}'), gauge)
    with pytest.raises(error):
        job.set_metadata(metadata)
    assert (gauge.unwritten(), job.metadata) == (None, {"a": 1})


async def test_news_that_a_write_lost_are_unwritten_again() -> None:
    gauge = Gauge()
    assert gauge.unwritten() is None
    gauge.title = "Now"
    news = gauge.unwritten()
    assert news is not None
    assert news == News(title="Now")
    gauge.written = news
    assert gauge.unwritten() is None
    gauge.forget_written()
    assert gauge.unwritten() == news
