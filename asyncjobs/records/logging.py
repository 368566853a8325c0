"""Names jobs in log records: those of the library, and those that handlers cause."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from types import MappingProxyType

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import Job

log = logging.getLogger("asyncjobs")

_current: ContextVar[Job | None] = ContextVar("asyncjobs_job", default=None)

_SAID: Mapping[Event, tuple[int, str]] = MappingProxyType(
    {
        Event.ENQUEUED: (logging.INFO, "is pending"),
        Event.STARTED: (logging.INFO, "is processing"),
        Event.RETRIED: (logging.INFO, "is pending again after a failure"),
        Event.RELEASED: (logging.INFO, "is pending again after a shutdown"),
        Event.LOST: (logging.WARNING, "is pending again after its worker was lost"),
        Event.CANCEL_REQUESTED: (logging.INFO, "is asked to stop"),
        Event.COMPLETED: (logging.INFO, "is completed"),
        Event.FAILED: (logging.WARNING, "is failed"),
        Event.CANCELLED: (logging.INFO, "is cancelled"),
    }
)


def log_fields(job: Job) -> dict[str, object]:
    """Name a job in a log record's `extra`."""
    return {
        "job_id": job.id,
        "job_type": job.type,
        "attempt": job.attempt,
        "owner": owner_hash(job.user_id),
        "trace_id": job.trace_id,
    }


def owner_hash(user_id: str | None) -> str | None:
    """Stand for an owner in logs: equal for equal owners, and no name that a reader would see."""
    return None if user_id is None else sha256(user_id.encode()).hexdigest()[:12]


def log_transition(transition: Transition) -> None:
    """Log what has happened to a job: once each, what went wrong as a warning."""
    level, said = _SAID[transition.event]
    if log.isEnabledFor(level):
        job = transition.job
        why = f": {job.error.message}" if job.error else ""
        fields = {**log_fields(job), "job_event": transition.event.value}
        log.log(level, "Job %s %s%s", job.id, said, why, extra=fields)


@contextmanager
def working_on(job: Job) -> Generator[None]:
    """Let log records made inside the block, and in threads started from it, name the job."""
    token = _current.set(job)
    try:
        yield
    finally:
        _current.reset(token)


def job_log_fields() -> dict[str, object]:
    """Name the job at hand, as `JobLogFilter` does; {} outside a job."""
    job = _current.get()
    return log_fields(job) if job else {}


class JobLogFilter(logging.Filter):
    """Adds `job_id`, `job_type`, `attempt`, `owner` and `trace_id` to what a handler logs.

    Put it on a logging handler; outside a job they are None, so that a format may name them.
    `owner` is a hash.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        fields = job_log_fields() or dict.fromkeys(_LOG_FIELDS)
        for name, value in fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_LOG_FIELDS = ("job_id", "job_type", "attempt", "owner", "trace_id")
