"""Names jobs in log records, both in those of the library and in those of handlers."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import sha256
from types import MappingProxyType
from typing import TypedDict, Unpack

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import Job


class SafeLogger:
    """Logs like `logging.Logger`, but never raises if the application's filters or handlers do.

    Control characters in arguments are escaped: text of clients and handlers cannot forge a log
    line. The message itself is ours and is not escaped.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at DEBUG."""
        self.log(logging.DEBUG, message, *args, **more)

    def info(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at INFO."""
        self.log(logging.INFO, message, *args, **more)

    def warning(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at WARNING."""
        self.log(logging.WARNING, message, *args, **more)

    def error(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at ERROR."""
        self.log(logging.ERROR, message, *args, **more)

    def exception(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at ERROR, with the traceback of the error being handled."""
        more.setdefault("exc_info", True)
        self.log(logging.ERROR, message, *args, **more)

    def critical(self, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at CRITICAL."""
        self.log(logging.CRITICAL, message, *args, **more)

    def enabled(self, level: int) -> bool:
        """Return whether records of that level are logged at all."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, message: str, *args: object, **more: Unpack[_More]) -> None:
        """Log at a level; the record names the line that called this method or one above it."""
        if not self._logger.isEnabledFor(level):
            return
        # If the application's filters, handlers or values raise, only this line is lost.
        with suppress(BaseException):
            shown = [escaped(arg) for arg in args]
            self._logger.log(level, message, *shown, stacklevel=_stack_level(), **more)


class _More(TypedDict, total=False):
    exc_info: BaseException | bool | None
    extra: Mapping[str, object] | None


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escaped(value: object) -> object:
    """Return a value for a log record, with the control characters of its text escaped."""
    # Numbers stay numbers: `%d` and `%f` in messages need them.
    if isinstance(value, (int, float)):
        return value
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(value))


def _stack_level() -> int:
    """Return the `stacklevel` of the frame that called this module."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001  # documented  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    return level


log = SafeLogger("asyncjobs")

_current: ContextVar[Job | None] = ContextVar("asyncjobs_job", default=None)

_SAID: Mapping[Event, tuple[int, str]] = MappingProxyType(
    {
        Event.ENQUEUED: (logging.INFO, "is pending"),
        Event.STARTED: (logging.INFO, "is processing"),
        Event.RETRIED: (logging.INFO, "is pending again after a failure"),
        Event.RELEASED: (logging.INFO, "is pending again after a shutdown"),
        Event.LOST: (logging.WARNING, "is pending again after its worker was lost"),
        Event.CANCEL_REQUESTED: (logging.INFO, "was asked to stop"),
        Event.COMPLETED: (logging.INFO, "is completed"),
        Event.FAILED: (logging.WARNING, "has failed"),
        Event.CANCELLED: (logging.INFO, "is cancelled"),
        Event.FORGOTTEN: (logging.INFO, "was deleted"),
    }
)


def log_fields(job: Job) -> dict[str, object]:
    """Return the fields that name a job in a log record's `extra`."""
    return {
        "job_id": job.id,
        "job_type": job.type,
        "attempt": job.attempt,
        "owner": owner_hash(job.user_id),
        "trace_id": job.trace_id,
    }


def owner_hash(user_id: str | None) -> str | None:
    """Return a hash for an owner in logs: equal for equal owners, without showing their names."""
    return None if user_id is None else sha256(user_id.encode()).hexdigest()[:12]


def is_logged(event: Event) -> bool:
    """Return whether such events are currently logged."""
    return log.enabled(_SAID[event][0])


def log_transition(transition: Transition) -> None:
    """Log an event of a job; failures and lost workers are warnings."""
    level, said = _SAID[transition.event]
    if log.enabled(level):
        job = transition.job
        words = f"{said}, attempt {job.attempt}" if job.attempt else said
        # For a forgotten job, the error was logged when the job failed.
        if job.error is not None and transition.event is not Event.FORGOTTEN:
            words = f"{words}: {job.error.message}"
        fields = {**log_fields(job), "job_event": transition.event.value}
        log.log(level, "Job %s (%s) %s", job.id, job.type, words, extra=fields)


def set_current_job(job: Job) -> None:
    """Name the job in log records of the current context, and of contexts copied from it."""
    _current.set(job)


@contextmanager
def working_on(job: Job) -> Generator[None]:
    """Name the job in log records made inside the block, and in threads started from it."""
    token = _current.set(job)
    try:
        yield
    finally:
        _current.reset(token)


def job_log_fields() -> dict[str, object]:
    """Return the fields that `JobLogFilter` adds for the current job; {} outside a job."""
    job = _current.get()
    return log_fields(job) if job else {}


class JobLogFilter(logging.Filter):
    """Adds `job_id`, `job_type`, `attempt`, `owner` and `trace_id` to records of job handlers.

    Add it to a logging handler. Outside a job the fields are None, so a format can always name
    them. `owner` is a hash.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        fields = job_log_fields() or dict.fromkeys(_LOG_FIELDS)
        for name, value in fields.items():
            # Records of the library name their job by `extra`, which may be another job.
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_LOG_FIELDS = ("job_id", "job_type", "attempt", "owner", "trace_id")
