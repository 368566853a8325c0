"""`cancel`, `retry` and `purge`: their effects and their limits."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from asyncjobs import JobStatus
from asyncjobs.protocols import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncjobs import Job
    from asyncjobs.protocols import Store
    from tests.cli.conftest import Do, Fill, Made, Shell


pytestmark = pytest.mark.every_store(without="memory")


async def find(store: Store, *, ids: Sequence[Any]) -> list[Job | None]:
    return list(await store.get(ids))


async def statuses(store: Any) -> list[str]:
    page = await store.list(Selection(), limit=1000)
    return sorted(job.status for job in page.jobs)


def test_cancel_cancels_waiting_jobs_and_asks_running_ones(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    waiting, running = made(), made(JobStatus.PROCESSING)
    ended = made(JobStatus.COMPLETED)
    fill(url, [waiting, running, ended])
    result = asyncjobs("cancel", "--store", url, waiting.id, running.id, ended.id)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            f"{waiting.id} is cancelled",
            f"{running.id} was asked to stop",
            f"{ended.id} is completed",
        ],
    )
    one, two, three = do(url, partial(find, ids=[waiting.id, running.id, ended.id]))
    assert (one.status, two.status, three) == ("cancelled", "processing", ended)
    assert two.cancel_requested_at is not None


def test_an_unknown_job_does_not_stop_the_others(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made()
    fill(url, [job])
    result = asyncjobs("cancel", "--json", "--store", url, "job_x", job.id)
    assert (result.exit_code, result.stderr) == (4, "Error: No job has the id 'job_x'.\n")
    [shown] = json.loads(result.stdout)["jobs"]
    assert (shown["jobId"], shown["status"]) == (job.id, "cancelled")


def test_retry_makes_a_new_job_that_names_the_old_one(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    old = made(JobStatus.FAILED, user_id="ann", idempotency_key="k", fingerprint="f", queue="high")
    fill(url, [old])
    result = asyncjobs("retry", "--json", "--store", url, old.id)
    [shown] = json.loads(result.stdout)["jobs"]
    assert (result.exit_code, shown["retryOf"]) == (0, old.id)
    [new, kept] = do(url, partial(find, ids=[shown["jobId"], old.id]))
    assert kept == old
    assert (new.status, new.retry_of, new.payload_json) == ("pending", old.id, old.payload_json)
    assert (new.user_id, new.queue, new.lane) == ("ann", "high", "high")
    again = json.loads(asyncjobs("retry", "--json", "--store", url, old.id).stdout)
    assert [job["jobId"] for job in again["jobs"]] == [new.id]
    assert asyncjobs("cancel", "--store", url, new.id).exit_code == 0
    result = asyncjobs("retry", "--store", url, old.id)
    assert result.stdout == f"{new.id} retries {old.id}, and is cancelled already\n"


def test_retry_refuses_a_job_that_has_not_ended(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    job = made(JobStatus.PROCESSING)
    fill(url, [job])
    result = asyncjobs("retry", "--store", url, job.id)
    assert result.exit_code == 1
    sentence = f"Job {job.id} is processing and cannot be run again: it has not ended."
    assert result.stderr == f"Error: {sentence}\n"
    assert do(url, statuses) == ["processing"]


def retried(asyncjobs: Shell, url: str, *words: str) -> list[str]:
    result = asyncjobs("retry", "--failed", "--yes", "--json", "--store", url, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    return [job["retryOf"] for job in json.loads(result.stdout)["jobs"]]


def test_retry_failed_retries_failed_jobs_newest_first(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    others = [made(status) for status in JobStatus if status is not JobStatus.FAILED]
    exports = [made(JobStatus.FAILED, user_id=user) for user in ("ann", "bob", "ann")]
    mail = made(JobStatus.FAILED, type="mail", user_id="ann")
    fill(url, [*others[:2], *exports, *others[2:], mail])
    assert retried(asyncjobs, url, "--type", "export", "--user", "bob") == [exports[1].id]
    assert retried(asyncjobs, url, "--type", "export") == [exports[2].id, exports[0].id]
    result = asyncjobs("retry", "--failed", "--yes", "--store", url)
    assert (result.exit_code, result.stderr) == (0, "1 job retried.\n")
    assert result.stdout.endswith(f" retries {mail.id}\n")
    assert do(url, statuses).count("failed") == 4


def test_a_failed_job_is_retried_once_but_its_failed_retry_is_retried(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    old = made(JobStatus.FAILED)
    again = made(JobStatus.FAILED, retry_of=old.id)
    fill(url, [old, again])
    assert retried(asyncjobs, url) == [again.id]
    assert retried(asyncjobs, url) == []
    result = asyncjobs("retry", "--failed", "--store", url)
    assert (result.exit_code, result.stderr) == (0, "No failed jobs to retry.\n")
    assert len(do(url, statuses)) == 3


def test_retry_failed_reads_all_pages(asyncjobs: Shell, url: str, fill: Fill, made: Made) -> None:
    failed = [made(JobStatus.FAILED) for _ in range(502)]
    fill(url, failed)
    assert retried(asyncjobs, url) == [job.id for job in reversed(failed)]


def test_retry_failed_without_terminal_or_yes_retries_nothing(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    fill(url, [made(JobStatus.FAILED), made(JobStatus.FAILED)])
    result = asyncjobs("retry", "--failed", "--store", url, input="y\n")
    assert (result.exit_code, "Retry 2 jobs?" in result.stderr) == (2, True)
    assert "--yes" in result.stderr
    assert do(url, statuses) == ["failed"] * 2


@pytest.mark.parametrize(
    "words", [[], ["job_x", "--failed"], ["job_x", "--type", "mail"], ["job_x", "--user", "ann"]]
)
def test_retry_takes_either_ids_or_filters(asyncjobs: Shell, url: str, words: list[str]) -> None:
    result = asyncjobs("retry", "--store", url, *words)
    assert (result.exit_code, "--failed" in result.stderr) == (2, True)


def test_purge_never_deletes_jobs_that_have_not_ended(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    fill(url, [made(status) for status in JobStatus for _ in range(2)])
    dry = asyncjobs("purge", "--dry-run", "--store", url)
    assert (dry.exit_code, dry.stdout) == (0, "6 jobs would be deleted.\n")
    document = asyncjobs("purge", "--dry-run", "--json", "--store", url).stdout
    assert json.loads(document) == {"found": 6, "deleted": 0}
    assert len(do(url, statuses)) == 10
    real = asyncjobs("purge", "--yes", "--json", "--store", url)
    assert (real.exit_code, json.loads(real.stdout)) == (0, {"found": 6, "deleted": 6})
    assert do(url, statuses) == ["pending"] * 2 + ["processing"] * 2


def test_purge_selects_by_status_type_owner_and_age(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    day = timedelta(days=1)
    chosen = made(JobStatus.FAILED, 3 * day, type="mail", user_id="ann")
    others = [
        made(JobStatus.COMPLETED, 3 * day, type="mail", user_id="ann"),
        made(JobStatus.FAILED, 3 * day, type="export", user_id="ann"),
        made(JobStatus.FAILED, 3 * day, type="mail", user_id="bob"),
        made(JobStatus.FAILED, day, type="mail", user_id="ann"),
    ]
    fill(url, [chosen, *others])
    filters = ("--status", "failed", "--type", "mail", "--user", "ann", "--older-than", "2d")
    result = asyncjobs("purge", "--yes", "--store", url, *filters)
    assert result.stdout == "1 job deleted.\n"
    [gone, *kept] = do(url, partial(find, ids=[chosen.id, *(job.id for job in others)]))
    assert (gone, kept) == (None, others)


def test_purge_reads_all_pages(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    fill(url, [made(JobStatus.CANCELLED) for _ in range(1201)])
    assert asyncjobs("purge", "--yes", "--store", url).stdout == "1201 jobs deleted.\n"
    assert do(url, statuses) == []


def test_purge_without_terminal_or_yes_deletes_nothing(
    asyncjobs: Shell, url: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    fill(url, [made(JobStatus.COMPLETED)])
    result = asyncjobs("purge", "--store", url, input="y\n")
    assert (result.exit_code, "--yes" in result.stderr) == (2, True)
    assert do(url, statuses) == ["completed"]


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_an_unfinished_status_cannot_be_purged(asyncjobs: Shell, url: str, status: str) -> None:
    result = asyncjobs("purge", "--yes", "--store", url, "--status", status)
    assert (result.exit_code, "Invalid value for '--status'" in result.stderr) == (2, True)


@pytest.mark.parametrize("age", ["soon", "7", "-1d", "1w", "", "9999999d"])
def test_a_malformed_duration_is_refused(asyncjobs: Shell, url: str, age: str) -> None:
    result = asyncjobs("purge", "--store", url, "--older-than", age)
    assert (result.exit_code, "30s, 15m, 12h or 7d" in result.stderr) == (2, True)
