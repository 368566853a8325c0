"""`batch`, and batches in `list`, `cancel` and `retry`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncjobs import AsyncJobs, JobFailed, JobStatus
from tests.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from asyncjobs import Job
    from tests.cli.conftest import Fill, Made, Shell

pytestmark = pytest.mark.every_store(without="memory")


def batch_of(url: str, *numbers: int, run: bool = True) -> Job:
    """Submit a batch whose handler fails for 3, and wait for its end if it runs."""
    jobs = AsyncJobs(url, dispatcher="local" if run else "worker")

    @jobs.handler("check")
    async def check(number: int) -> None:
        if number == 3:
            raise JobFailed("Row 3 is bad.")

    async def submit() -> Job:
        async with jobs:
            batch = await jobs.enqueue_batch(check, numbers, title="Rows")
            return await batch.wait(timeout=PATIENCE_SECONDS) if run else batch.job

    return anyio.run(submit)


def cancelled_batch_of(url: str, *numbers: int) -> Job:
    """Cancel a batch when those of its jobs with a 3 have failed, and those with a 0 wait."""
    jobs = AsyncJobs(url, dispatcher="local")

    @jobs.handler("check")
    async def check(number: int) -> None:
        if number == 3:
            raise JobFailed("Row 3 is bad.")
        await anyio.sleep_forever()

    async def submit() -> Job:
        async with jobs:
            batch = await jobs.enqueue_batch(check, numbers)

            async def have_failed() -> bool:
                failed = [job async for job in batch.jobs(status=JobStatus.FAILED)]
                return len(failed) == numbers.count(3)

            await until(have_failed)
            await batch.cancel()
            return await batch.wait(timeout=PATIENCE_SECONDS)

    return anyio.run(submit)


def test_a_batch_is_shown_by_its_numbers_and_failures(asyncjobs: Shell, url: str) -> None:
    batch = batch_of(url, 1, 2, 3)
    result = asyncjobs("batch", "--store", url, batch.id)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [
        line
        for line in lines
        if line[:1] in (["total"], ["completed"], ["failed"]) and line[1:2] and line[1].isdigit()
    ] == [["total", "3"], ["completed", "2"], ["failed", "1"]]
    assert "Row 3 is bad." in result.stdout
    shown = json.loads(asyncjobs("batch", "--json", "--store", url, batch.id).stdout)
    assert (shown["jobId"], shown["batch"]["total"]) == (batch.id, 3)


def test_another_job_is_no_batch(asyncjobs: Shell, url: str, fill: Fill, made: Made) -> None:
    job = made()
    fill(url, [job])
    result = asyncjobs("batch", "--store", url, job.id)
    assert (result.exit_code, "it is not one" in result.stderr) == (1, True)
    assert asyncjobs("batch", "--store", url, "job_x").exit_code == 4


def test_the_jobs_of_a_batch_are_listed(asyncjobs: Shell, url: str) -> None:
    batch, _ = batch_of(url, 1, 3), batch_of(url, 1)
    listed = asyncjobs("list", "--json", "--store", url, "--batch", batch.id, "--failed")
    [job] = json.loads(listed.stdout)["jobs"]
    assert (job["type"], job["error"]) == ("check", "Row 3 is bad.")
    everything = asyncjobs("list", "--json", "--store", url, "--batch", batch.id)
    assert len(json.loads(everything.stdout)["jobs"]) == 2


def test_a_list_may_leave_out_the_jobs_of_batches(asyncjobs: Shell, url: str) -> None:
    batch = batch_of(url, 1, 2)
    shown = json.loads(asyncjobs("list", "--json", "--store", url).stdout)["jobs"]
    assert [job.get("batchId") for job in shown if job["jobId"] != batch.id] == [batch.id] * 2
    shown = json.loads(asyncjobs("list", "--json", "--no-members", "--store", url).stdout)["jobs"]
    assert [(job["jobId"], "batchId" in job) for job in shown] == [(batch.id, False)]
    both = asyncjobs("list", "--store", url, "--batch", batch.id, "--no-members")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)


def test_retry_makes_a_batch_of_the_failed_jobs(asyncjobs: Shell, url: str) -> None:
    batch = batch_of(url, 1, 2, 3)
    # Not the failed job beside its batch, which would run twice.
    result = asyncjobs("retry", "--json", "--store", url, "--failed", "--yes")
    [shown] = json.loads(result.stdout)["jobs"]
    assert (shown["retryOf"], shown["type"]) == (batch.id, "asyncjobs.batch")
    new = json.loads(asyncjobs("batch", "--json", "--store", url, shown["jobId"]).stdout)
    assert new["batch"]["total"] == 1


def _retry_failed(asyncjobs: Shell, url: str, *words: str) -> list[tuple[str, str]]:
    result = asyncjobs("retry", "--json", "--store", url, "--failed", "--yes", *words)
    assert result.exit_code == 0
    return [(job["type"], job["retryOf"]) for job in json.loads(result.stdout)["jobs"]]


def _failed_in(asyncjobs: Shell, url: str, batch: Job) -> list[tuple[str, str]]:
    words = ("list", "--json", "--store", url, "--batch", batch.id, "--failed")
    return [(job["type"], job["jobId"]) for job in json.loads(asyncjobs(*words).stdout)["jobs"]]


def test_jobs_of_a_batch_that_were_retried_alone_are_not_retried_with_it(
    asyncjobs: Shell, url: str
) -> None:
    batch = batch_of(url, 1, 3, 3)
    failed = _failed_in(asyncjobs, url, batch)
    assert len(failed) == 2
    assert asyncjobs("retry", "--store", url, failed[0][1]).exit_code == 0
    # The batch would run both again.
    assert _retry_failed(asyncjobs, url) == failed[1:]
    assert _retry_failed(asyncjobs, url) == []


def test_the_jobs_of_a_retried_batch_are_not_retried_alone(asyncjobs: Shell, url: str) -> None:
    batch = batch_of(url, 1, 3)
    assert _retry_failed(asyncjobs, url) == [("asyncjobs.batch", batch.id)]
    assert _retry_failed(asyncjobs, url) == []
    assert _retry_failed(asyncjobs, url, "--type", "check") == []


def test_failed_jobs_of_a_batch_that_did_not_fail_are_retried(asyncjobs: Shell, url: str) -> None:
    batch = cancelled_batch_of(url, 3, 3, 0)
    failed = _failed_in(asyncjobs, url, batch)
    assert (batch.status, len(failed)) == ("cancelled", 2)
    assert _retry_failed(asyncjobs, url) == failed
    assert _retry_failed(asyncjobs, url) == []


def test_cancel_asks_a_batch_to_stop(asyncjobs: Shell, url: str) -> None:
    batch = batch_of(url, 1, 2, run=False)
    result = asyncjobs("cancel", "--store", url, batch.id)
    assert (result.exit_code, result.stdout) == (0, f"{batch.id} was asked to stop\n")
