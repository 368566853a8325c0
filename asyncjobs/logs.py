"""Names jobs in log records: those of the library, and those that handlers cause."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from asyncjobs.model import Job, JobStatus

log = logging.getLogger("asyncjobs")

_current: ContextVar[Job | None] = ContextVar("asyncjobs_job", default=None)


def log_fields(job: Job) -> dict[str, object]:
    """Name a job in a log record's `extra`."""
    return {
        "job_id": job.id,
        "job_type": job.type,
        "attempt": job.attempt,
        "trace_id": job.trace_id,
    }


def log_transition(job: Job) -> None:
    """Log that a job has come to where it is: once each, failures as warnings."""
    level = logging.WARNING if job.status is JobStatus.FAILED else logging.INFO
    if log.isEnabledFor(level):
        why = f": {job.error.message}" if job.error else ""
        log.log(level, "Job %s is %s%s", job.id, job.status, why, extra=log_fields(job))


@contextmanager
def working_on(job: Job) -> Generator[None]:
    """Let log records made inside the block, and in threads started from it, name the job."""
    token = _current.set(job)
    try:
        yield
    finally:
        _current.reset(token)


class JobLogFilter(logging.Filter):
    """Adds `job_id`, `job_type`, `attempt` and `trace_id` to every record a handler causes.

    Put it on a logging handler; outside a job the four are None, so that a format may name them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        job = _current.get()
        fields = log_fields(job) if job else dict.fromkeys(_LOG_FIELDS)
        for name, value in fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_LOG_FIELDS = ("job_id", "job_type", "attempt", "trace_id")
