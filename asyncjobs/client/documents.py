"""The state of a job as any server describes it, read into one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from asyncjobs.core.status import JobStatus

#: The status words of Microsoft's REST API guidelines.
OPERATION_STATUSES: Mapping[str, JobStatus] = {
    "notstarted": JobStatus.PENDING,
    "running": JobStatus.PROCESSING,
    "inprogress": JobStatus.PROCESSING,
    "succeeded": JobStatus.COMPLETED,
    "failed": JobStatus.FAILED,
    "canceled": JobStatus.CANCELLED,
}


@dataclass(frozen=True)
class JobUpdate:
    """A job as a server described it at one moment.

    `document` is the JSON as received. `version` grows with each change that a client can see; it
    is None if the server sends no version. `progress` is whole percent, None if it is unknown.
    """

    status: JobStatus
    job_id: str | None = None
    type: str | None = None
    version: int | None = None
    progress: int | None = None
    message: str | None = None
    result: Any = None
    error: str | None = None
    error_code: str | None = None
    document: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def with_result(self, result: Any) -> JobUpdate:
        """Return the update with a result that was fetched from another URL."""
        return replace(self, result=result)


def read_job(document: Any, version: int | None = None) -> JobUpdate | None:
    """Read a status document of asyncjobs; return None for any other document."""
    known = object_of(document)
    if not isinstance(known.get("jobId"), str):
        return None
    try:
        status = JobStatus(known.get("status", ""))
    except ValueError:
        return None
    return JobUpdate(
        status=status,
        job_id=known["jobId"],
        type=_text(known.get("type")),
        version=version,
        progress=_percent(known.get("progress")),
        message=_text(object_of(known.get("detail")).get("message")),
        result=known.get("result"),
        error=_text(known.get("error")),
        error_code=_text(known.get("errorCode")),
        document=known,
    )


def read_operation(document: Any, *, any_word: bool) -> JobUpdate | None:
    """Read the resource of a long-running operation; return None for any other document.

    Each service chooses its own words for work in progress. `any_word` accepts unknown words as
    such; set it if the server itself called the URL an operation's.
    """
    known = object_of(document)
    if not isinstance(known.get("status"), str):
        return None
    word = known["status"].lower()
    status = OPERATION_STATUSES.get(word, JobStatus.PROCESSING if any_word else None)
    if status is None:
        return None
    failure = object_of(known.get("error"))
    return JobUpdate(
        status=status,
        job_id=_text(known.get("id")),
        type=_text(known.get("kind")),
        progress=_percent(known.get("percentComplete")),
        result=known.get("result"),
        error=_text(failure.get("message")),
        error_code=_text(failure.get("code")),
        document=known,
    )


def object_of(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, and an empty object for any other JSON value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _percent(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return max(0, min(100, int(value)))
