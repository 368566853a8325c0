"""Handlers in child processes: values pass between processes, and handlers can be killed."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncjobs import (
    AsyncJobs,
    AsyncJobsError,
    JobContext,
    JobError,
    JobFailed,
    JobLogFilter,
    JobStatus,
    JobType,
    Retry,
    Settings,
)
from asyncjobs.errors import (
    ConfigurationError,
    FieldIssue,
    InvalidPayload,
    InvalidResult,
    NotOpen,
    StoreUnavailable,
)
from asyncjobs.execution.subprocesses import ChildProcesses
from asyncjobs.files import FolderStorage
from tests.queues import finished
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

LONG = 60
HERE = Path(__file__).parent
QUICK = Settings(
    poll_interval=timedelta(seconds=0.05),
    progress_interval=timedelta(seconds=0.01),
    grace=timedelta(seconds=0.1),
)


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone  # on a second loop as many processes would start again


@pytest.fixture
def jobs(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., AsyncJobs], tmp_path: Path
) -> AsyncJobs:
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    kinds = import_module("handlers_in_processes").kinds
    made = make(settings=QUICK, files=tmp_path / "files")
    for kind in kinds.registry:
        made.registry.add(kind)
    return made


async def text_of(path: Path) -> str:
    """Wait for text that a handler writes."""
    await until(lambda: path.exists() and path.read_text())
    return path.read_text()


def lives(pid: str) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def is_gone(pid: str) -> None:
    await until(lambda: not lives(pid))


async def test_a_handler_runs_in_another_process_that_is_reused(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    caplog.handler.addFilter(JobLogFilter())
    async with jobs:
        first = await finished(jobs, "square", 12)
        second = await finished(jobs, "square", 5)
    assert isinstance(first.result, list)
    assert isinstance(second.result, list)
    assert (first.result[0], second.result[0]) == (144, 25)
    assert first.result[1] == second.result[1] != os.getpid()
    told = [(one.getMessage(), vars(one)["job_id"]) for one in caplog.records]
    assert [one for one in told if "squaring" in one[0]] == [
        ("squaring 12", first.id),
        ("squaring 5", second.id),
    ]
    assert not lives(str(first.result[1]))


async def test_an_asynchronous_handler_returns_its_value_from_another_process(
    jobs: AsyncJobs,
) -> None:
    async with jobs:
        assert (await finished(jobs, "square later", 12)).result == 144


async def test_progress_comes_from_another_process(jobs: AsyncJobs, tmp_path: Path) -> None:
    async with jobs:
        job = await jobs.enqueue("steps", {"folder": str(tmp_path)})
        with anyio.fail_after(LONG):
            async for seen in jobs.subscribe(job.id):
                if seen.detail is not None and (seen.detail.current or 0) > 1:
                    break
        await jobs.cancel(job.id)
        await jobs.wait(job.id, timeout=LONG)


async def test_titles_and_metadata_come_from_another_process(
    jobs: AsyncJobs, tmp_path: Path
) -> None:
    async with jobs:
        handle = await jobs.enqueue("named", str(tmp_path))
        with anyio.fail_after(LONG):
            async for seen in handle:
                if seen.title == "Begun" and seen.metadata == {"step": 1}:
                    (tmp_path / "go on").touch()
        done = await jobs.find(handle.id)
    assert done.result == ["Begun, and ended", 1]
    assert (done.title, done.metadata) == ("Begun, and ended", {"step": 2})


@pytest.mark.parametrize("name", ["steps", "asleep", "stubborn"])
async def test_the_process_has_stopped_when_its_job_is_cancelled(
    jobs: AsyncJobs, tmp_path: Path, name: str
) -> None:
    async with jobs:
        job = await jobs.enqueue(name, {"folder": str(tmp_path)})
        pid = await text_of(tmp_path / "began")
        await jobs.cancel(job.id)
        done = await jobs.wait(job.id, timeout=LONG)
        assert done.status is JobStatus.CANCELLED
        if name == "stubborn":
            assert not lives(pid)
            await is_gone((tmp_path / "other").read_text())
        assert (tmp_path / "ended").exists() == (name == "asleep")


async def test_a_handler_past_its_timeout_is_killed_with_its_children(
    jobs: AsyncJobs, tmp_path: Path
) -> None:
    async with jobs:
        done = await finished(jobs, "stubborn for a while", {"folder": str(tmp_path)})
        assert done.error is not None
        assert done.error.code == "timeout"
        if (tmp_path / "began").exists():  # it had the time to begin
            assert not lives((tmp_path / "began").read_text())
            await is_gone((tmp_path / "other").read_text())


async def test_job_failed_and_invalid_results_pass_between_processes(jobs: AsyncJobs) -> None:
    async with jobs:
        purpose, text = [await finished(jobs, "fails", how) for how in ("on purpose", "text")]
    assert purpose.error == JobError(code="no_order", message="No such order.")
    assert text.error is not None
    assert text.error.code == "invalid_result"
    assert (purpose.attempt, text.attempt) == (1, 1)


async def test_an_error_is_logged_with_its_traceback_and_hidden_from_clients(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    kind: JobType[Any, Any] = jobs.registry.find("fails")
    kind.policy = kind.policy.model_copy(update={"retry": Retry()})
    expected = {
        "by chance": 'raise LookupError("secret")',
        "unsendable": "Unsendable: 1 and 2",
        "exit": "SystemExit",
    }
    async with jobs:
        for how, logged in expected.items():
            done = await finished(jobs, "fails", how)
            assert done.error is not None
            assert done.error.code == "internal_error"
            assert "secret" not in done.error.message
            assert logged in caplog.text


async def test_a_process_that_dies_is_a_lost_worker_at_once(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    async with jobs:
        done = await finished(jobs, "fails", "by the kernel")
    assert done.error is not None
    assert (done.error.code, done.attempt, done.losses) == ("worker_lost", 3, 3)
    assert "exit code -9" in caplog.text


async def test_a_process_that_died_while_idle_costs_no_attempt(jobs: AsyncJobs) -> None:
    async with jobs:
        first = await finished(jobs, "square", 12)
        assert isinstance(first.result, list)
        pid = int(str(first.result[1]))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # at once
        second = await finished(jobs, "square", 5)
    assert second.status is JobStatus.COMPLETED
    assert second.attempt == 1


async def test_a_shutdown_kills_the_process_and_releases_the_job(
    jobs: AsyncJobs, make: Callable[..., AsyncJobs], tmp_path: Path
) -> None:
    async with make(dispatcher="worker") as reader:
        async with jobs:
            job = await jobs.enqueue("stubborn", {"folder": str(tmp_path)})
            pid = await text_of(tmp_path / "began")
        assert not lives(pid)
        back = await reader.find(job.id)
    assert (back.status, back.losses) == (JobStatus.PENDING, 0)


async def test_a_child_process_ends_when_its_parent_is_killed(
    tmp_path: Path, new_url: Callable[[], str]
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import anyio, sys
            from asyncjobs import AsyncJobs
            sys.path.insert(0, {str(HERE)!r})
            from handlers_in_processes import kinds

            async def main():
                jobs = AsyncJobs({new_url()!r})
                jobs.registry.add(kinds.registry.find("asleep"))
                async with jobs:
                    await jobs.enqueue("asleep", {{"folder": {str(tmp_path)!r}}})
                    await anyio.sleep_forever()

            if __name__ == "__main__":
                anyio.run(main)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])  # noqa: ASYNC220  # it lasts
    try:
        pid = await text_of(tmp_path / "began")
        assert lives(pid)
    finally:
        parent.kill()
        parent.wait()
    await is_gone(pid)


def test_a_handler_of_the_main_script_is_found(tmp_path: Path) -> None:
    script = tmp_path / "whole.py"
    script.write_text(
        textwrap.dedent(
            """
            import anyio, os
            from asyncjobs import AsyncJobs, JobContext

            jobs = AsyncJobs("memory://")

            @jobs.handler("double", run_in="process")
            def double(number: int, job: JobContext) -> tuple[int, bool]:
                return 2 * number, os.getppid() == int(os.environ["PARENT"])

            async def main():
                os.environ["PARENT"] = str(os.getpid())
                async with jobs:
                    job = await jobs.enqueue(double, 21)
                    print((await jobs.wait(job.id, timeout=60)).result)

            if __name__ == "__main__":
                anyio.run(main)
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[42, True]\n", "")


def test_no_process_starts_for_other_handlers_or_after_closing(
    jobs: AsyncJobs,
) -> None:
    @jobs.handler("here")
    def here(_number: int, _job: JobContext) -> None: ...

    processes = ChildProcesses()
    no_job: Any = None
    with pytest.raises(ConfigurationError, match="does not run in its own process"):
        processes.run(here, no_job, no_job, no_job, no_job)
    square = jobs.registry.handler("square")
    assert square is not None
    processes.close()
    with pytest.raises(NotOpen):
        processes.run(square, no_job, no_job, no_job, no_job)


def test_a_process_that_starts_while_the_queue_closes_is_killed(
    jobs: AsyncJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = ChildProcesses()
    pids: list[int] = []
    start_process = SpawnProcess.start

    def start(process: SpawnProcess) -> None:
        processes.close()
        start_process(process)
        pids.append(process.pid or 0)

    monkeypatch.setattr(SpawnProcess, "start", start)
    square = jobs.registry.handler("square")
    assert square is not None
    no_job: Any = None
    with pytest.raises(NotOpen):
        processes.run(square, no_job, no_job, no_job, no_job)
    [pid] = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "error",
    [
        JobFailed("No.", "no"),
        InvalidPayload([FieldIssue("a.b", "wrong")]),
        InvalidResult("kind", "too large"),
        StoreUnavailable("here", "away"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes_unchanged(error: AsyncJobsError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


async def test_concurrent_jobs_get_their_own_results(jobs: AsyncJobs) -> None:
    async with jobs:
        sent = [await jobs.enqueue("square", number) for number in range(4)]
        done = [await jobs.wait(job.id, timeout=LONG) for job in sent]
    results: Any = [job.result for job in done]
    assert [result[0] for result in results] == [0, 1, 4, 9]


async def test_a_handler_without_payload_and_job_runs_in_another_process(jobs: AsyncJobs) -> None:
    async with jobs:
        assert (await finished(jobs, "nothing")).result != os.getpid()


async def test_dependencies_are_made_and_overridden_in_the_other_process(
    jobs: AsyncJobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = import_module("handlers_in_processes")
    jobs.include(module)
    async with jobs:
        assert (await finished(jobs, module.declared, str(tmp_path))).result == "real open"
        assert (tmp_path / "real").read_text() == "declared closed"
        jobs.dependency_overrides[module.place] = module.other_place
        assert (await finished(jobs, module.declared, str(tmp_path))).result == "fake open"
        assert (tmp_path / "fake").read_text() == "declared closed"
        jobs.dependency_overrides[module.place] = lambda: tmp_path / "lost"
        assert (await finished(jobs, module.declared, str(tmp_path))).error is not None
        assert "must be of module level" in caplog.text
        del jobs.dependency_overrides[module.place]
        assert (await finished(jobs, module.declared, str(tmp_path))).result == "real open"


@pytest.mark.parametrize("name", ["save", "save later"])
async def test_a_handler_saves_a_file_through_its_parent(jobs: AsyncJobs, name: str) -> None:
    async with jobs:
        job = await finished(jobs, name, {"steps": 50_000})
        assert job.status is JobStatus.COMPLETED, job.attempt_errors
        text = b"".join([chunk async for chunk in await jobs.read_file(job.id, "steps.csv")])
    [file] = job.files
    assert job.result == file.path
    assert text.split() == [b"%d" % step for step in range(50_000)]


async def test_a_process_that_saves_is_killed_without_a_listed_file(
    jobs: AsyncJobs, tmp_path: Path
) -> None:
    async with jobs:
        handle = await jobs.enqueue("save for ever", {"folder": str(tmp_path)})
        await text_of(tmp_path / "began")
        await jobs.cancel(handle.id)
        job = await jobs.wait(handle.id, timeout=LONG)
    assert job.status is JobStatus.CANCELLED
    assert [file.size for file in job.files] == [None]


async def test_a_storage_that_cannot_be_pickled_is_named(jobs: AsyncJobs, tmp_path: Path) -> None:
    class Local(FolderStorage):
        """Only this process has the class."""

    jobs.file_storage = Local(tmp_path)
    async with jobs:
        job = await finished(jobs, "save", {})
    assert "cannot be pickled" in job.attempt_errors[0].message
