"""How an attempt may end, and which move records that: no I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobError, JobStatus
from asyncjobs.errors import InvalidPayload, InvalidResult, JobFailed
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.execution.context import progress_of, text
from asyncjobs.records.logging import log_fields

log = logging.getLogger("asyncjobs")


@dataclass(frozen=True)
class Completed:
    """The handler returned a value that can be stored."""

    result: bytes


@dataclass(frozen=True)
class Failed:
    """The handler raised; on purpose (final) or not."""

    error: JobError
    final: bool


@dataclass(frozen=True)
class Interrupted:
    """The handler was stopped before its end."""

    cause: Cause


Outcome = Completed | Failed | Interrupted


def failure_of(job: Job, error: BaseException) -> Failed:
    """Choose what the client is told: what was raised on purpose, else a fixed sentence."""
    match _alone(error):
        case JobFailed() as error:
            log.info("The handler failed the job: %s", error, extra=log_fields(job))
            return Failed(_told(error.code, error.message), final=True)
        case InvalidPayload() as error:
            told = _told("invalid_payload", str(error))
        case InvalidResult() as error:
            told = _told("invalid_result", str(error))
        case _:
            log.warning("The handler raised", exc_info=error, extra=log_fields(job))
            message = f"The job failed unexpectedly (trace id {job.trace_id})."
            return Failed(JobError(code="internal_error", message=message), final=False)
    log.warning("%s", error, extra=log_fields(job))
    return Failed(told, final=True)


def _told(code: str, message: str) -> JobError:
    return JobError(code=text(code) or "", message=text(message) or "")


def _alone(error: BaseException) -> BaseException:
    """Take an error out of the group that a task group inside the handler made of it."""
    inner: tuple[BaseException, ...] = (error,)
    while len(inner) == 1 and isinstance(inner[0], BaseExceptionGroup):
        inner = cast("tuple[BaseException, ...]", inner[0].exceptions)
    return inner[0] if len(inner) == 1 else error


def outcome_of(attempt: Attempt, ending: Outcome, jitter: float) -> Callable[[Job, datetime], Job]:
    """Choose the move that records an ending, on whatever the job is when it is written."""
    token, latest = attempt.token, attempt.gauge.latest
    last = None if latest is None else progress_of(latest)

    def move(job: Job, now: datetime) -> Job:
        if last is not None and job.status is JobStatus.PROCESSING:
            job = lifecycle.catch_up(job, last)
        match ending:
            case Completed(result):
                return lifecycle.complete(job, now, token=token, result=result)
            case Failed(error, final=True):
                return lifecycle.fail(job, now, token=token, error=error)
            case Failed(error):
                return lifecycle.settle_failure(job, now, token=token, error=error, jitter=jitter)
            case Interrupted(Cause.CANCEL):
                return lifecycle.stop(job, now, token=token)
            case Interrupted(Cause.SHUTDOWN | Cause.DIED as cause):
                at_no_cost = cause is Cause.SHUTDOWN
                settle = lifecycle.settle_release if at_no_cost else lifecycle.settle_loss
                return settle(job, now, token=token)
            case Interrupted():  # pragma: no branch  # there is nothing else
                return _timed_out(job, now, attempt, jitter)

    return move


def _timed_out(job: Job, now: datetime, attempt: Attempt, jitter: float) -> Job:
    if now >= job.deadline:
        return lifecycle.expire(job, now)
    if attempt.in_thread and job.cancel_requested_at is not None:
        # The thread goes on, so the job may not be called cancelled.
        return lifecycle.fail(job, now, token=attempt.token, error=lifecycle.TIMED_OUT)
    return lifecycle.settle_failure(
        job, now, token=attempt.token, error=lifecycle.TIMED_OUT, jitter=jitter
    )
