"""Formats the errors of attempts as text for operators.

The class of an error belongs to the application: each attribute and `str()` may raise, and its text
may have megabytes. Nothing here raises, and the stored text is bounded.
"""

from __future__ import annotations

import traceback
from datetime import datetime

from asyncjobs.core.job import AttemptError, Job
from asyncjobs.execution.context import alone, cut_text, safe_text

#: The longest texts that are stored of an attempt's error, in characters.
MAX_TYPE_CHARS = 200
MAX_ATTEMPT_MESSAGE_CHARS = 1_000
MAX_TRACEBACK_CHARS = 8_000

_LEFT_OUT = "\n[cut]\n"


class Remote(Exception):
    """Holds the traceback of an error in another process as text, for the logs."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def attempt_error(job: Job, error: BaseException, at: datetime, *, traced: bool) -> AttemptError:
    """Return the stored form of an error that the current attempt raised at that moment."""
    inner = alone(error)
    return AttemptError(
        attempt=job.attempt,
        at=at,
        type=cut_text(type_name(inner), MAX_TYPE_CHARS),
        message=cut_text(safe_text(inner) or "", MAX_ATTEMPT_MESSAGE_CHARS),
        traceback=_cut_in_the_middle(traceback_of(error)) if traced else "",
    )


def type_name(error: BaseException) -> str:
    """Return the name of an error's class, whose metaclass may also be the application's."""
    try:
        return safe_text(type(error).__name__) or ""
    except BaseException:  # noqa: BLE001  # its metaclass may raise anything
        return "Exception"


def traceback_of(error: BaseException) -> str:
    """Return an error and its traceback as text; if a child process raised it, that traceback."""
    try:
        cause = error.__cause__
        shown = [str(cause.args[0])] if isinstance(cause, Remote) else _formatted(error)
        return safe_text("".join(shown)) or ""
    except BaseException:  # noqa: BLE001  # its class may raise anything
        return ""


def _formatted(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error)
    except BaseException:  # noqa: BLE001  # its class may raise anything
        frames = traceback.format_tb(error.__traceback__)
        return [*frames, f"{type_name(error)}: {safe_text(error)}\n"]


def _cut_in_the_middle(text: str) -> str:
    """Keep the outermost frames, and the innermost with the error itself."""
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    half = (MAX_TRACEBACK_CHARS - len(_LEFT_OUT)) // 2
    return f"{text[:half]}{_LEFT_OUT}{text[-half:]}"
