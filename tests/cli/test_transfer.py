"""`transfer`: between all stores, and after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
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


async def all_of(store: Any) -> list[Job]:
    """Read all jobs, oldest first."""
    page = await store.list(Selection(), limit=10_000)
    return list(await store.get([job.id for job in reversed(page.jobs)]))


async def delete(store: Store, *, ids: Sequence[Any]) -> None:
    await store.delete(ids)


@pytest.fixture
def other(url: str, tmp_path: Path) -> str:
    """Return the URL of a second store, of SQLite."""
    assert url
    return f"sqlite:///{tmp_path}/other.db"


@pytest.fixture
def jobs(made: Made) -> list[Job]:
    """Make jobs of all statuses, with keys and results."""
    return [
        made(
            status,
            user_id="ann" if number % 2 else None,
            idempotency_key=f"key {number} {status}" if number % 3 else None,
            fingerprint="f" if number % 3 else None,
            result=b'{"file":"%d"}' % number,
        )
        for number in range(12)
        for status in JobStatus
        if status is not JobStatus.PROCESSING
    ]


def test_a_transfer_there_and_back_keeps_everything(
    asyncjobs: Shell, url: str, other: str, fill: Fill, jobs: list[Job], do: Do[Any]
) -> None:
    fill(other, jobs)
    there = asyncjobs("transfer", "--json", "--from", other, "--to", url)
    assert there.exit_code == 0, there.stderr
    shown = json.loads(there.stdout)
    assert (shown["jobs"], shown["copied"], shown["unreadable"]) == (len(jobs), len(jobs), [])
    assert do(url, all_of) == do(other, all_of) == jobs
    do(other, partial(delete, ids=[job.id for job in jobs]))
    back = asyncjobs("transfer", "--json", "--from", url, "--to", other)
    assert json.loads(back.stdout)["checksum"] == shown["checksum"]
    assert do(other, all_of) == jobs


def test_transferred_jobs_are_found_by_filters_and_keys(
    asyncjobs: Shell, url: str, other: str, fill: Fill, jobs: list[Job], do: Do[Any]
) -> None:
    fill(other, jobs)
    asyncjobs("transfer", "--from", other, "--to", url)
    which = Selection(type="export", status=JobStatus.COMPLETED)
    expected = [job.id for job in jobs if job.status is JobStatus.COMPLETED]
    found = do(url, lambda store: store.list(which, limit=100))
    assert [job.id for job in reversed(found.jobs)] == expected
    keyed = [job for job in jobs if job.idempotency_key]
    twins = [job.model_copy(update={"id": f"{job.id[:-1]}x"}) for job in keyed]
    assert [job.id for job in do(url, lambda store: store.insert(twins))] == [
        job.id for job in keyed
    ]


def test_a_dry_run_copies_nothing(
    asyncjobs: Shell, url: str, other: str, fill: Fill, jobs: list[Job], do: Do[Any]
) -> None:
    fill(other, jobs)
    result = asyncjobs("transfer", "--dry-run", "--json", "--from", other, "--to", url)
    assert json.loads(result.stdout) == {
        "jobs": len(jobs),
        "present": 0,
        "running": 0,
        "unreadable": [],
    }
    assert do(url, all_of) == []


def test_the_same_command_resumes_a_killed_transfer(
    asyncjobs: Shell, url: str, other: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    jobs = [made(payload_json=b'"%s"' % (b"x" * 5_000)) for _ in range(400)]
    fill(other, jobs)
    words = ("transfer", "--from", other, "--to", url)
    with subprocess.Popen([sys.executable, "-m", "asyncjobs", *words]) as transferring:
        while len(do(url, some_of).jobs) < 16:
            assert transferring.poll() in (None, 0)
        transferring.send_signal(signal.SIGKILL)
    result = asyncjobs("transfer", "--json", "--from", other, "--to", url)
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["jobs"]) == (0, 400)
    assert shown["copied"] < 400
    assert [job.id for job in do(url, all_of)] == [job.id for job in jobs]


async def some_of(store: Any) -> Any:
    return await store.list(Selection(), limit=16)


def test_running_jobs_prevent_a_transfer_without_the_option(
    asyncjobs: Shell, url: str, other: str, fill: Fill, made: Made, do: Do[Any]
) -> None:
    job = made(JobStatus.PROCESSING)
    fill(url, [job])
    refused = asyncjobs("transfer", "--from", url, "--to", other)
    assert (refused.exit_code, "jobs run in the source (1)" in refused.stderr) == (1, True)
    assert do(other, all_of) == []
    result = asyncjobs("transfer", "--running", "--from", url, "--to", other)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Both stores have the same jobs: 1 (1 copied, 0 updated")
    assert do(other, all_of) == [job]


def test_a_store_is_not_transferred_to_itself(asyncjobs: Shell, url: str) -> None:
    assert asyncjobs("transfer", "--from", url, "--to", url).exit_code == 2


def test_a_missing_source_file_is_an_error(asyncjobs: Shell, file: str) -> None:
    result = asyncjobs("transfer", "--from", file, "--to", f"{file}2")
    assert (result.exit_code, "the file does not exist" in result.stderr) == (3, True)


@pytest.mark.parametrize("ends", [("--from", "--to"), ("--to", "--from")])
def test_a_memory_store_cannot_be_transferred(
    asyncjobs: Shell, url: str, fill: Fill, ends: tuple[str, str]
) -> None:
    fill(url, [])
    result = asyncjobs("transfer", ends[0], "memory://", ends[1], url)
    assert (result.exit_code, "belongs to one process" in result.stderr) == (2, True)
