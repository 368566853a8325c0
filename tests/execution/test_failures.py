"""An attempt's error is stored with the job for operators, for any exception class."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs, Job, JobContext, JobFailed, JobStatus, Retry
from asyncjobs.core.job import AttemptError
from asyncjobs.errors import InvalidResult
from asyncjobs.execution.failures import (
    MAX_ATTEMPT_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    attempt_error,
    type_name,
)
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW
from tests.queues import QUICK, Make, finished, running, settled

HERE = Path(__file__).parent
AT_ONCE = Retry(max_attempts=12, initial_delay=timedelta(0))


def caught(function: Callable[[], object]) -> AttemptError:
    """Call a function that raises, and return the stored error."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001  # any exception
        return attempt_error(sample_job(), error, NOW, traced=True)
    raise AssertionError("it raises nothing")


def raising(error: BaseException) -> AttemptError:
    def innermost() -> None:
        raise error

    return caught(innermost)


def summary(job: Job) -> list[tuple[int, str, str]]:
    return [(error.attempt, error.type, error.message) for error in job.attempt_errors]


# stored parts of an error


def test_type_message_and_traceback_are_kept() -> None:
    kept = raising(KeyError("no such row"))
    assert (kept.attempt, kept.at, kept.type, kept.message) == (0, NOW, "KeyError", "'no such row'")
    assert "in innermost" in kept.traceback
    assert kept.traceback.endswith("KeyError: 'no such row'\n")


def test_an_error_in_a_task_group_is_stored_without_the_group() -> None:
    kept = raising(ExceptionGroup("a task group", [ValueError("row 7")]))
    assert (kept.type, kept.message) == ("ValueError", "row 7")
    assert "a task group" in kept.traceback


def test_a_long_message_is_cut_to_leave_room_for_the_frames() -> None:
    kept = raising(ValueError("m" * 20_000_000))
    assert len(kept.message) == MAX_ATTEMPT_MESSAGE_CHARS
    assert kept.message.endswith("[cut]")
    assert len(kept.traceback) <= MAX_TRACEBACK_CHARS
    assert "in innermost" in kept.traceback


def test_a_long_traceback_keeps_the_outermost_frames_and_the_error() -> None:
    namespace: dict[str, Callable[[int], object]] = {}
    for number in range(300):  # no two frames alike: equal frames are abbreviated
        body = f"def step{number}(n): return step{number - 1}(n)" if number else "def step0(n): 1/n"
        exec(body, namespace)  # noqa: S102  # our own code
    kept = caught(lambda: namespace["step299"](0))
    assert len(kept.traceback) <= MAX_TRACEBACK_CHARS
    assert "in caught" in kept.traceback
    assert "in step299" in kept.traceback
    assert "[cut]" in kept.traceback
    assert "in step150" not in kept.traceback
    assert "in step0\n" in kept.traceback
    assert kept.traceback.endswith("ZeroDivisionError: division by zero\n")


class NoText(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class NoNotes(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise KeyboardInterrupt


class NoCause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise LookupError


class NoTraceback(Exception):
    @property
    def __traceback__(self) -> None:  # type: ignore[override]
        raise LookupError


class _Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise LookupError


class NoName(Exception, metaclass=_Nameless):
    pass


class NotAText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


HOSTILE = [NoText, NoNotes, NoCause, NoTraceback, NoName, NotAText]
NAMES = ["text", "notes", "cause", "traceback", "name", "no text"]


@pytest.mark.parametrize("kind", HOSTILE, ids=NAMES)
def test_an_error_with_a_hostile_class_is_still_stored(kind: type[Exception]) -> None:
    kept = raising(kind("x"))
    assert kept.type == type_name(kind("x"))
    assert kept.message


def test_lone_surrogates_can_be_stored() -> None:
    kept = raising(FileNotFoundError("caf\udce9.csv"))
    assert AttemptError.model_validate_json(kept.model_dump_json()) == kept


# which attempts store an error


@pytest.mark.anyio
@pytest.mark.every_store
class TestAttempts:
    @pytest.fixture
    def jobs(self, make: Make) -> AsyncJobs:
        # However long the machine pauses, no attempt is lost and begun again.
        return make(settings=replace(QUICK, lease=timedelta(minutes=5)))

    async def test_errors_of_failed_attempts_are_kept_in_a_completed_job(
        self, jobs: AsyncJobs
    ) -> None:
        @jobs.handler("third time", retry=AT_ONCE)
        async def third_time(_none: None, job: JobContext) -> str:
            if job.attempt < 3:
                raise ConnectionError(f"away {job.attempt}")
            return "done"

        async with jobs:
            job = await jobs.find((await finished(jobs, third_time)).id)
        assert (job.status, job.result) == (JobStatus.COMPLETED, "done")
        assert summary(job) == [(1, "ConnectionError", "away 1"), (2, "ConnectionError", "away 2")]
        assert all("in third_time" in error.traceback for error in job.attempt_errors)
        assert job.created_at <= job.attempt_errors[0].at <= job.attempt_errors[1].at
        assert job.completed_at is not None
        assert job.attempt_errors[1].at <= job.completed_at

    async def test_only_errors_of_the_newest_attempts_are_kept(self, jobs: AsyncJobs) -> None:
        @jobs.handler("never", retry=AT_ONCE)
        def never(_none: None, job: JobContext) -> None:
            raise ValueError(job.attempt)

        async with jobs:
            job = await jobs.find((await finished(jobs, never)).id)
        assert [error.message for error in job.attempt_errors] == [str(n) for n in range(3, 13)]

    async def test_a_job_failed_error_is_kept_too(self, jobs: AsyncJobs) -> None:
        @jobs.handler("picky")
        async def picky(_none: None, _job: JobContext) -> None:
            raise JobFailed("There is no such account.", "no_account")

        @jobs.handler("lying")
        async def lying(_none: None, _job: JobContext) -> int:
            return "many"  # type: ignore[return-value]

        async with jobs:
            [on_purpose] = (await finished(jobs, picky)).attempt_errors
            [invalid] = (await finished(jobs, lying)).attempt_errors
        assert (on_purpose.type, on_purpose.message) == ("JobFailed", "There is no such account.")
        assert invalid.type == InvalidResult.__name__

    @pytest.mark.parametrize("kind", HOSTILE, ids=NAMES)
    async def test_a_hostile_error_only_fails_its_job(
        self, jobs: AsyncJobs, kind: type[Exception]
    ) -> None:
        @jobs.handler("hostile")
        async def hostile(_none: None, _job: JobContext) -> None:
            raise kind("x")

        async with jobs:
            job = await finished(jobs, hostile)
            assert job.error is not None
            assert (job.error.code, job.attempt) == ("internal_error", 1)
            assert len(job.attempt_errors) == 1

    async def test_an_error_raised_during_a_cancellation_is_kept(self, jobs: AsyncJobs) -> None:
        @jobs.handler("messy")
        async def messy(_none: None, _job: JobContext) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("the cleanup failed")

        async with jobs:
            began = await running(jobs, messy)
            await jobs.cancel(began.id)
            job = await settled(jobs, began.id)
        assert job.status is JobStatus.CANCELLED
        assert summary(job) == [(1, "OSError", "the cleanup failed")]

    async def test_an_attempt_that_stops_on_request_stores_no_error(self, jobs: AsyncJobs) -> None:
        @jobs.handler("tidy")
        async def tidy(_none: None, _job: JobContext) -> None:
            await anyio.sleep_forever()

        @jobs.handler("slow", timeout=0.05)
        async def slow(_none: None, _job: JobContext) -> None:
            await anyio.sleep_forever()

        async with jobs:
            began = await running(jobs, tidy)
            await jobs.cancel(began.id)
            for job in (await settled(jobs, began.id), await finished(jobs, slow)):
                assert job.errors_json is None
                assert job.status in (JobStatus.CANCELLED, JobStatus.FAILED)


@pytest.mark.anyio
class TestProcesses:
    @pytest.fixture
    def anyio_backend(self, asyncio_alone: str) -> str:
        return asyncio_alone  # on a second loop as many processes would start again

    @pytest.fixture
    def jobs(self, monkeypatch: pytest.MonkeyPatch) -> AsyncJobs:
        monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
        made = AsyncJobs("memory://", settings=QUICK)
        kind = next(
            one
            for one in import_module("handlers_in_processes").kinds.registry
            if one.name == "fails"
        )
        made.registry.add(kind)
        return made

    @pytest.mark.parametrize(
        ("how", "shown"),
        [
            ("by chance", ["LookupError: secret", "in fails"]),
            ("unsendable", ["Unsendable: 1 and 2", "in fails"]),
            ("unreadable", ["Unreadable", "in fails"]),
            ("on purpose", ["JobFailed: No such order.", "in fails"]),
        ],
    )
    async def test_the_traceback_of_the_other_process_is_kept(
        self, jobs: AsyncJobs, how: str, shown: list[str]
    ) -> None:
        async with jobs:
            job = await finished(jobs, "fails", how)
        assert job.losses == 0
        error = job.attempt_errors[-1]
        assert [part for part in shown if part not in error.traceback] == []
        assert "direct cause" not in error.traceback

    async def test_the_error_of_a_dead_process_has_no_frames_of_the_library(
        self, jobs: AsyncJobs
    ) -> None:
        async with jobs:
            job = await finished(jobs, "fails", "by the kernel")
        assert [error.attempt for error in job.attempt_errors] == [1, 2, 3]
        for error in job.attempt_errors:
            assert (error.type, error.traceback) == ("ProcessDied", "")
            assert f"exit code -{signal.SIGKILL.value}" in error.message
