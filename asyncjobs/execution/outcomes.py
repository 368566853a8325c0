"""Decides how an attempt ended, and which move records that: no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, assert_never

from asyncjobs.core import lifecycle
from asyncjobs.core.job import AttemptError, Job, JobError, JobStatus
from asyncjobs.errors import (
    DuplicateFile,
    FileTooLarge,
    InvalidOutput,
    InvalidPayload,
    InvalidResult,
    JobCancelled,
    JobFailed,
    OutputTooLarge,
    TooManyFiles,
)
from asyncjobs.execution.attempt import Cause
from asyncjobs.execution.context import News, alone, cut_text, safe_text
from asyncjobs.execution.failures import attempt_error, type_name
from asyncjobs.execution.subprocesses import ProcessDied
from asyncjobs.records.logging import log, log_fields

#: The longest message and code of a stored error, in characters; longer ones are cut.
MAX_ERROR_MESSAGE_CHARS = 10_000
MAX_ERROR_CODE_CHARS = 100

Move = Callable[[Job, datetime], Job]


# How long a handler that was asked to stop may take: its task, and its child process.
_TASK_PATIENCE_SECONDS = 1.0
_PROCESS_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Completed:
    """The handler returned a value that can be stored."""

    result: bytes


@dataclass(frozen=True)
class Failed:
    """The handler raised; `final` if it did so on purpose, which is not retried."""

    error: JobError
    final: bool


@dataclass(frozen=True)
class Interrupted:
    """The handler was asked to stop; `working` if it still runs."""

    cause: Cause
    working: bool = False


@dataclass(frozen=True)
class Unrecorded:
    """Nothing is written: another attempt has the job, or it comes up when its lease has lapsed."""

    reason: str


Outcome = Completed | Failed | Interrupted | Unrecorded


class Facts(NamedTuple):
    """Everything that decides how an attempt ended.

    `cause` is why the runtime asked the handler to stop, `waited` the seconds since. `result` is
    its return value as JSON, `error` is its error; both are None while its task runs. `in_thread`
    is whether its thread still works, `in_process` whether it runs in a child process.
    """

    cause: Cause | None = None
    result: bytes | None = None
    error: BaseException | None = None
    in_thread: bool = False
    in_process: bool = False
    cancel_requested: bool = False
    attempts_left: bool = False
    waited: float = 0.0
    lease: float = 30.0

    @property
    def task_ended(self) -> bool:
        """Whether the handler's task has ended."""
        return self.result is not None or self.error is not None

    @property
    def working(self) -> bool:
        """Whether the handler still works, in its task or in a thread."""
        return not self.task_ended or self.in_thread

    @property
    def patience(self) -> float:
        """How many seconds the runtime waits for its end after it was asked to stop.

        As far as this process can prevent it, no other attempt begins beside this one: a child
        process is killed soon, and before a retry the handler gets half of the lease. Otherwise a
        thread that is left behind is not awaited.

        After the timeout, the lease is renewed by its own length at most. The end must be written
        before it lapses, or the attempt counts as lost.
        """
        if self.in_process:
            return _PROCESS_PATIENCE_SECONDS
        if self.cause is Cause.TIMEOUT and self.attempts_left:
            return self.lease / 2
        return 0.0 if self.task_ended else _TASK_PATIENCE_SECONDS


def decide(facts: Facts) -> Outcome | None:
    """Decide how an attempt ended; return None while it is not known. No other code decides this.

    A returned value always counts, because the write is fenced. An error counts as the handler's
    own unless the handler was asked to stop before. If the handler goes on, a timeout or a shutdown
    ends the attempt when the patience is over; a cancel request waits.
    """
    if facts.result is not None:
        return Completed(facts.result)
    cause = facts.cause
    # The handler did not fail: its process was killed, and counts as a lost worker.
    if cause in (None, Cause.CANCEL) and isinstance(facts.error, ProcessDied):
        cause = Cause.DIED
    if cause is None:
        return None if facts.error is None else failure_of(facts.error)
    if cause is Cause.LOST:
        return Unrecorded("its lease was lost")
    if facts.working and (cause is Cause.CANCEL or facts.waited < facts.patience):
        return None
    if cause is Cause.SHUTDOWN and facts.working and facts.cancel_requested:
        # The work goes on, so the job may not be called cancelled. Its lease lapses when this
        # process is gone.
        return Unrecorded("it was asked to stop but is still running")
    return Interrupted(cause, working=facts.working)


# The library's own errors that a repetition would raise again.
_CODES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((InvalidPayload,), "invalid_payload"),
    ((InvalidResult,), "invalid_result"),
    ((InvalidOutput,), "invalid_output"),
    ((OutputTooLarge,), "output_too_large"),
    ((DuplicateFile, TooManyFiles, FileTooLarge), "invalid_file"),
)


def failure_of(error: BaseException) -> Failed:
    """Return the error that clients see: one that was raised on purpose, else a fixed sentence.

    The class of the error is the application's, and each of its attributes may raise.
    """
    try:
        match alone(error):
            case JobFailed() as failed:
                return _final(failed.code, failed.message)
            case inner:
                code = next((code for kinds, code in _CODES if isinstance(inner, kinds)), None)
                return Failed(UNEXPECTED, final=False) if code is None else _final(code, str(inner))
    except BaseException:  # noqa: BLE001  # its class may raise anything
        return Failed(UNEXPECTED, final=isinstance(error, JobFailed))


#: The job's trace id is added to the message when it is recorded.
UNEXPECTED = JobError(code="internal_error", message="The job failed unexpectedly")


def log_end(job: Job, facts: Facts, outcome: Outcome) -> None:
    """Log errors, unexpected ones with their tracebacks, and outcomes that are not recorded."""
    if isinstance(outcome, Completed):
        return
    fields = log_fields(job)
    named = (job.id, job.type, job.attempt)
    error = facts.error
    match outcome:
        case Unrecorded(reason):
            log.warning("Job %s (%s): attempt %d is not recorded: %s", *named, reason, extra=fields)
        case Failed(final=True) if error is not None:
            words = f"{outcome.error.code}: {outcome.error.message}"
            log.info("Job %s (%s) failed in attempt %d: %s", *named, words, extra=fields)
        case Failed() if error is not None:
            words = f"{type_name(alone(error))}: {safe_text(alone(error))}"
            log.warning(
                "Job %s (%s) failed in attempt %d: %s", *named, words, exc_info=error, extra=fields
            )
        case Interrupted(Cause.DIED):
            log.warning("Job %s (%s) in attempt %d: %s", *named, safe_text(error), extra=fields)
        case Interrupted(cause) if error is not None and not _is_cancellation(error):
            log.warning(
                "Job %s (%s) raised in attempt %d while it was stopping (%s)",
                *named,
                cause.value,
                exc_info=error,
                extra=fields,
            )
        case Failed() | Interrupted():
            return
        case _:
            assert_never(outcome)


def error_to_keep(job: Job, facts: Facts, outcome: Outcome, now: datetime) -> AttemptError | None:
    """Return the stored form of the error that ended the attempt; None if there is none."""
    error = facts.error
    match outcome:
        case Interrupted() if error is None or _is_cancellation(error):
            return None
        case Failed() | Interrupted() if error is not None:
            return attempt_error(job, error, now, traced=not isinstance(error, ProcessDied))
        case Completed() | Failed() | Interrupted() | Unrecorded():
            return None
        case _:
            assert_never(outcome)


def _is_cancellation(error: BaseException) -> bool:
    """Return whether an error is the one that a handler raises when it is asked to stop."""
    inner = alone(error)
    if isinstance(inner, (JobCancelled, asyncio.CancelledError)):
        return True
    try:
        # trio need not be installed, so its cancellation is recognised by name.
        return type(inner).__module__.partition(".")[0] == "trio"
    except BaseException:  # noqa: BLE001  # its metaclass may raise anything
        return False


def _final(code: object, message: object) -> Failed:
    code_text = cut_text(safe_text(code) or "", MAX_ERROR_CODE_CHARS)
    message_text = cut_text(safe_text(message) or "", MAX_ERROR_MESSAGE_CHARS)
    return Failed(JobError(code=code_text, message=message_text), final=True)


def move_of(
    outcome: Completed | Failed | Interrupted,
    *,
    token: str,
    jitter: float,
    last: News | None = None,
    raised: AttemptError | None = None,
) -> Move:
    """Return the move that records an outcome on the job's state at the time of the write.

    `last` are the handler's last progress, title and metadata, `raised` is the error of the
    attempt; all go into the same write.
    """

    def move(job: Job, now: datetime) -> Job:
        if last is not None and job.status is JobStatus.PROCESSING:
            job = lifecycle.catch_up(
                job, last.progress, title=last.title, metadata_json=last.metadata_json
            )
        if raised is not None:
            job = lifecycle.note_error(job, raised)
        match outcome:
            case Completed(result):
                return lifecycle.complete(job, now, token=token, result=result)
            case Failed(error, final=True):
                return lifecycle.fail(job, now, token=token, error=error)
            case Failed(error):
                named = error.changed(message=f"{error.message} (trace id {job.trace_id}).")
                return lifecycle.settle_failure(job, now, token=token, error=named, jitter=jitter)
            case Interrupted():
                return _interrupted(job, now, outcome, token, jitter)
            case _:
                assert_never(outcome)

    return move


def _interrupted(job: Job, now: datetime, outcome: Interrupted, token: str, jitter: float) -> Job:
    match outcome.cause:
        case Cause.CANCEL:
            return lifecycle.stop(job, now, token=token)
        case Cause.SHUTDOWN:
            return lifecycle.settle_release(job, now, token=token)
        case Cause.DIED:
            return lifecycle.settle_loss(job, now, token=token)
        case Cause.TIMEOUT | Cause.LOST:
            return _timed_out(job, now, outcome, token, jitter)
        case _:
            assert_never(outcome.cause)


def _timed_out(job: Job, now: datetime, outcome: Interrupted, token: str, jitter: float) -> Job:
    timed_out = lifecycle.TIMED_OUT
    if now >= job.deadline:
        return lifecycle.expire(job, now)
    if outcome.working and job.cancel_requested_at is not None:
        # The work goes on, so the job may not be called cancelled.
        return lifecycle.fail(job, now, token=token, error=timed_out)
    return lifecycle.settle_failure(job, now, token=token, error=timed_out, jitter=jitter)
