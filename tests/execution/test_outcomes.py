"""One function decides how an attempt ends; this is its truth table."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product

import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobError, JobStatus, Lease, Retry
from asyncjobs.errors import InvalidPayload, InvalidResult, JobCancelled, JobFailed
from asyncjobs.execution.attempt import Cause
from asyncjobs.execution.outcomes import (
    MAX_ERROR_MESSAGE_CHARS,
    Completed,
    Facts,
    Failed,
    Interrupted,
    Outcome,
    Unrecorded,
    decide,
    failure_of,
    move_of,
)
from asyncjobs.execution.subprocesses import ProcessDied
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LATER, NOW

VALUE = b"1"
ERROR = ValueError("boom")
STOPPED = JobCancelled("job_1")
DIED = ProcessDied(-9)
OVER = 1e9

UNEXPECTED = Failed(
    JobError(code="internal_error", message="The job failed unexpectedly"), final=False
)

#: The facts, and the decision; None means "wait".
TABLE: list[tuple[str, Facts, Outcome | None]] = [
    ("runs", Facts(), None),
    ("returned", Facts(result=VALUE), Completed(VALUE)),
    ("raised", Facts(error=ERROR), UNEXPECTED),
    ("raised JobCancelled unasked", Facts(error=STOPPED), UNEXPECTED),
    ("raised KeyboardInterrupt", Facts(error=KeyboardInterrupt()), UNEXPECTED),
    (
        "failed on purpose",
        Facts(error=JobFailed("no", "why")),
        Failed(JobError(code="why", message="no"), final=True),
    ),
    ("its process died", Facts(error=DIED), Interrupted(Cause.DIED)),
    # asked to stop, and stopped
    ("cancelled", Facts(cause=Cause.CANCEL, error=STOPPED), Interrupted(Cause.CANCEL)),
    (
        "cancelled, cleanup raised",
        Facts(cause=Cause.CANCEL, error=ERROR),
        Interrupted(Cause.CANCEL),
    ),
    ("cancelled, process died", Facts(cause=Cause.CANCEL, error=DIED), Interrupted(Cause.DIED)),
    ("timed out", Facts(cause=Cause.TIMEOUT, error=STOPPED), Interrupted(Cause.TIMEOUT)),
    ("timed out, raised", Facts(cause=Cause.TIMEOUT, error=ERROR), Interrupted(Cause.TIMEOUT)),
    ("timed out, killed", Facts(cause=Cause.TIMEOUT, error=DIED), Interrupted(Cause.TIMEOUT)),
    ("shut down", Facts(cause=Cause.SHUTDOWN, error=STOPPED), Interrupted(Cause.SHUTDOWN)),
    ("lost", Facts(cause=Cause.LOST, error=STOPPED), Unrecorded("its lease was lost")),
    ("lost, still runs", Facts(cause=Cause.LOST), Unrecorded("its lease was lost")),
    # asked to stop, and returned a value
    *[
        (f"{one.value}, returned", Facts(cause=one, result=VALUE), Completed(VALUE))
        for one in Cause
    ],
    # asked to stop, and goes on
    ("cancelled, goes on", Facts(cause=Cause.CANCEL, waited=OVER), None),
    ("cancelled, thread", Facts(cause=Cause.CANCEL, error=STOPPED, in_thread=True), None),
    ("timed out a moment ago", Facts(cause=Cause.TIMEOUT), None),
    (
        "timed out, goes on",
        Facts(cause=Cause.TIMEOUT, waited=2),
        Interrupted(Cause.TIMEOUT, working=True),
    ),
    (
        "timed out, thread goes on",
        Facts(cause=Cause.TIMEOUT, error=STOPPED, in_thread=True),
        Interrupted(Cause.TIMEOUT, working=True),
    ),
    (
        "timed out, thread goes on, another attempt would begin",
        Facts(cause=Cause.TIMEOUT, error=STOPPED, in_thread=True, attempts_left=True, waited=14),
        None,
    ),
    (
        "timed out, goes on, another attempt, for as long as half a lease",
        Facts(cause=Cause.TIMEOUT, attempts_left=True, waited=16),
        Interrupted(Cause.TIMEOUT, working=True),
    ),
    (
        "timed out, process is about to be killed",
        Facts(cause=Cause.TIMEOUT, error=STOPPED, in_thread=True, in_process=True, waited=4),
        None,
    ),
    ("shut down a moment ago", Facts(cause=Cause.SHUTDOWN), None),
    (
        "shut down, goes on",
        Facts(cause=Cause.SHUTDOWN, waited=2),
        Interrupted(Cause.SHUTDOWN, working=True),
    ),
    (
        "shut down, thread goes on",
        Facts(cause=Cause.SHUTDOWN, error=STOPPED, in_thread=True),
        Interrupted(Cause.SHUTDOWN, working=True),
    ),
    (
        "shut down, asked to stop, goes on",
        Facts(cause=Cause.SHUTDOWN, error=STOPPED, in_thread=True, cancel_requested=True),
        Unrecorded("it was asked to stop but is still running"),
    ),
    (
        "shut down, asked to stop, stopped",
        Facts(cause=Cause.SHUTDOWN, error=STOPPED, cancel_requested=True),
        Interrupted(Cause.SHUTDOWN),
    ),
]


@pytest.mark.parametrize(
    ("facts", "outcome"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_facts_decide_the_outcome(facts: Facts, outcome: Outcome | None) -> None:
    assert decide(facts) == outcome


def every_facts() -> list[Facts]:
    ends: list[dict[str, object]] = [{}, {"result": VALUE}, {"error": ERROR}, {"error": STOPPED}]
    flags = [False, True]
    return [
        Facts(
            cause=cause,
            in_thread=thread,
            in_process=process,
            cancel_requested=asked,
            attempts_left=left,
            waited=waited,
            **end,  # type: ignore[arg-type]
        )
        for cause, end, thread, process, asked, left, waited in product(
            [None, *Cause], ends, flags, flags, flags, flags, [0.0, OVER]
        )
    ]


def test_a_job_is_only_cancelled_when_its_work_has_stopped() -> None:
    for facts in every_facts():
        if decide(facts) == Interrupted(Cause.CANCEL):
            assert not facts.working, facts


def test_an_attempt_ends_after_patience_unless_it_is_cancelled() -> None:
    for facts in every_facts():
        if facts.waited == OVER and facts.cause not in (None, Cause.CANCEL, Cause.DIED):
            assert decide(facts) is not None, facts


def test_an_attempt_without_a_stop_request_ends_with_its_handler() -> None:
    for facts in every_facts():
        if facts.cause is None:
            assert (decide(facts) is None) == (not facts.task_ended), facts


class NoInit(JobFailed):
    def __init__(self) -> None:
        self.order = 5


class BrokenProperty(JobFailed):
    def __init__(self) -> None:
        self.order = 5

    @property
    def message(self) -> str:  # type: ignore[override]
        raise LookupError("no order here")


class BrokenText:
    def __str__(self) -> str:
        raise LookupError("no language is active")


@pytest.mark.parametrize("error", [NoInit(), BrokenProperty()], ids=["no init", "property"])
def test_an_error_whose_class_raises_fails_the_job_for_good(error: JobFailed) -> None:
    assert failure_of(error) == Failed(UNEXPECTED.error, final=True)


def test_a_job_failed_error_in_a_group_of_one_keeps_its_message() -> None:
    error = BaseExceptionGroup("one", [JobFailed("no", "why")])
    assert failure_of(error) == Failed(JobError(code="why", message="no"), final=True)


def test_several_errors_at_once_are_unexpected() -> None:
    assert failure_of(ExceptionGroup("two", [JobFailed("no"), JobFailed("no")])) == UNEXPECTED


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidPayload([]), "invalid_payload"), (InvalidResult("export", "why"), "invalid_result")],
)
def test_an_invalid_payload_or_result_is_not_retried(error: Exception, code: str) -> None:
    failed = failure_of(error)
    assert (failed.error.code, failed.final) == (code, True)


def interrupted(job: Job, now: datetime, cause: Cause, *, working: bool = False) -> Job:
    return move_of(Interrupted(cause, working), token="t", jitter=0)(job, now)


def begun(**submission: object) -> Job:
    lease = Lease(worker="host:1", token="t", until=NOW + timedelta(seconds=30))
    return lifecycle.start(sample_job(**submission), NOW, lease)


def test_a_timeout_at_the_deadline_is_deadline_exceeded() -> None:
    job = begun(deadline=LATER)
    assert interrupted(job, LATER, Cause.TIMEOUT).error == lifecycle.DEADLINE_EXCEEDED
    just_before = LATER - timedelta(microseconds=1)
    assert interrupted(job, just_before, Cause.TIMEOUT).error == lifecycle.TIMED_OUT


def test_a_cancelled_job_that_overruns_is_cancelled_only_if_its_work_has_stopped() -> None:
    job = lifecycle.cancel(begun(), NOW)
    assert interrupted(job, NOW, Cause.TIMEOUT).status is JobStatus.CANCELLED
    working = interrupted(job, NOW, Cause.TIMEOUT, working=True)
    assert (working.status, working.error) == (JobStatus.FAILED, lifecycle.TIMED_OUT)


def test_a_timeout_counts_as_an_attempt_even_if_the_work_goes_on() -> None:
    job = begun(retry=Retry(max_attempts=2))
    for working in (False, True):
        again = interrupted(job, NOW, Cause.TIMEOUT, working=working)
        assert (again.status, again.failures) == (JobStatus.PENDING, 1)


def test_the_death_of_a_process_names_its_exit_code() -> None:
    assert "exit code -9" in str(DIED)


def test_long_messages_are_cut_with_a_mark() -> None:
    failed = failure_of(JobFailed("m" * 20_000_000, "c" * 1000))
    assert len(failed.error.message) == MAX_ERROR_MESSAGE_CHARS
    assert failed.error.message.endswith("[cut]")
    assert len(failed.error.code) == 100
