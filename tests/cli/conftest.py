"""Fixtures of the command tests: stores with jobs, and a shell to run commands."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from click.testing import CliRunner, Result

from asyncjobs import Job, JobError, JobStatus, Progress
from asyncjobs.cli.app import commands
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Detail, Lease, new_job_id
from asyncjobs.protocols import Finding, Store
from asyncjobs.stores import store_from_url
from asyncjobs.testing import sample_job

T = TypeVar("T")
Shell = Callable[..., Result]
Do = Callable[[str, Callable[[Any], Awaitable[T]]], T]
Fill = Callable[[str, Sequence[Job]], None]
Made = Callable[..., Job]


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """Return the URL of an empty store, of each kind."""
    return new_url()


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return the URL of an SQLite file that does not exist."""
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def asyncjobs(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run a command without a terminal and without a store in the environment."""
    monkeypatch.delenv("ASYNCJOBS_STORE", raising=False)
    monkeypatch.delenv("ASYNCJOBS_JOBS", raising=False)

    def run(*words: str, **options: Any) -> Result:
        result = CliRunner().invoke(commands, words, **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def checked(asyncjobs: Shell, url: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Check a store; return the exit code and the findings with their advice, by subject."""
    result = asyncjobs("check", "--json", "--store", url)
    findings = [Finding(**found) for found in json.loads(result.stdout)["findings"]]
    return result.exit_code, {it.subject: (it.found, it.advice) for it in findings}


@pytest.fixture
def do() -> Do[Any]:
    """Open a store as another process does."""

    def with_store(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
        async def opened() -> T:
            async with store_from_url(url) as store:
                return await work(store)

        return anyio.run(opened)

    return with_store


@pytest.fixture
def fill(do: Do[Any]) -> Fill:
    def insert(url: str, jobs: Sequence[Job]) -> None:
        do(url, partial(insert_into, jobs=jobs))

    return insert


async def insert_into(store: Store, jobs: Sequence[Job]) -> None:
    assert [job.id for job in await store.insert(jobs)] == [job.id for job in jobs]


@pytest.fixture
def made() -> Made:
    """Return a job of a status that was submitted and started `ago`."""

    def make(
        status: JobStatus = JobStatus.PENDING,
        ago: timedelta = timedelta(0),
        result: bytes = b"null",
        **submission: Any,
    ) -> Job:
        now = datetime.now(UTC) - ago
        limits = {"created_at": now, "deadline": now + ago + timedelta(days=1), "retention": None}
        waiting = sample_job(**{"id": new_job_id(), **limits, **submission})
        lease = Lease(worker="host:1", token="t", until=now + ago + timedelta(hours=1))
        running = lifecycle.start(waiting, now, lease)
        match status:
            case JobStatus.PENDING:
                return waiting
            case JobStatus.PROCESSING:
                detail = Detail(message="packing", current=2, total=5)
                return lifecycle.report(running, Progress(percent=40, detail=detail), token="t")
            case JobStatus.COMPLETED:
                return lifecycle.complete(running, now, token="t", result=result)
            case JobStatus.FAILED:
                error = JobError(code="bad", message="No such file.")
                return lifecycle.fail(running, now, token="t", error=error)
            case JobStatus.CANCELLED:
                return lifecycle.cancel(waiting, now)

    return make
