"""`files` and `purge`: the files of jobs are listed, saved and deleted."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.core.job import JobId
from tests.cli.conftest import Shell

APPLICATION = """
from asyncjobs import AsyncJobs
jobs = AsyncJobs("sqlite:///{folder}/jobs.db", files="{folder}/files")
"""
QUEUE = ("--jobs", "files_application:jobs")


@pytest.fixture
def job_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[JobId]:
    """Return a job with a file, of an application in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files_application.py").write_text(APPLICATION.format(folder=tmp_path))
    jobs = AsyncJobs(f"sqlite:///{tmp_path}/jobs.db", files=tmp_path / "files")

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("export.csv", b"1,2\n" * 300)

    async def run() -> JobId:
        async with jobs:
            handle = await jobs.enqueue(export)
            await handle.wait()
            return handle.id

    yield anyio.run(run)
    sys.modules.pop("files_application", None)


def store(tmp_path: Path) -> tuple[str, str]:
    return ("--store", f"sqlite:///{tmp_path}/jobs.db")


def test_files_are_listed(asyncjobs: Shell, job_id: str, tmp_path: Path) -> None:
    assert asyncjobs("files", job_id, *store(tmp_path)).stdout.split() == ["1,200", "export.csv"]
    found = json.loads(asyncjobs("files", job_id, "--json", *QUEUE).stdout)
    assert found == {"files": [{"name": "export.csv", "size": 1200, "mediaType": "text/csv"}]}


def test_a_file_is_saved(asyncjobs: Shell, job_id: str, tmp_path: Path) -> None:
    assert asyncjobs("files", job_id, "export.csv", *QUEUE).stdout == "Saved export.csv.\n"
    assert asyncjobs("files", job_id, "export.csv", "-o", "other", *QUEUE).exit_code == 0
    assert (tmp_path / "export.csv").read_bytes() == (tmp_path / "other").read_bytes()
    assert not [*tmp_path.glob("*.part")]


def test_an_unknown_file_and_an_unknown_storage_are_named(
    asyncjobs: Shell, job_id: str, tmp_path: Path
) -> None:
    missing = asyncjobs("files", job_id, "other.csv", *QUEUE)
    assert (missing.exit_code, "'other.csv'" in missing.stderr) == (4, True)
    alone = asyncjobs("files", job_id, "export.csv", *store(tmp_path))
    assert (alone.exit_code, "no storage for files" in alone.stderr) == (2, True)
    assert not [*tmp_path.glob("*.csv*")]
    assert asyncjobs("files", *QUEUE).exit_code == 2


def test_purge_deletes_files_only_if_it_knows_where_they_are(
    asyncjobs: Shell, job_id: str, tmp_path: Path
) -> None:
    left = asyncjobs("purge", "--yes", *store(tmp_path))
    assert left.stdout == "0 jobs deleted.\n"
    assert "1 job with files left" in left.stderr
    assert (tmp_path / "files" / job_id).exists()
    assert asyncjobs("purge", "--yes", *QUEUE).stdout == "1 job deleted.\n"
    assert not (tmp_path / "files" / job_id).exists()


def test_a_sweep_deletes_the_files_of_jobs_that_are_gone(
    asyncjobs: Shell, job_id: str, tmp_path: Path
) -> None:
    assert "0 jobs" in asyncjobs("files", "--sweep", *QUEUE).stdout
    (tmp_path / "jobs.db").unlink()
    assert asyncjobs("migrate", *QUEUE).exit_code == 0
    swept = asyncjobs("files", "--sweep", "--json", *QUEUE)
    assert json.loads(swept.stdout) == {"swept": [job_id]}
    assert not (tmp_path / "files" / job_id).exists()
