"""The routes below a mount's prefix: the one table that every adapter serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from asyncjobs.http.wire import JobDocument


class Operation(Enum):
    """What can be asked of a job."""

    STATUS = "status"
    RESULT = "result"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Route:
    """One method on one path; `suffix` follows the job's id."""

    method: str
    suffix: str
    operation: Operation
    summary: str
    answers: Mapping[HTTPStatus, str]
    model: type[JobDocument] | None = JobDocument


_UNKNOWN = {HTTPStatus.NOT_FOUND: "No job has this id."}

_CANCEL_ANSWERS = {
    HTTPStatus.OK: "The job is finished, or was cancelled at once.",
    HTTPStatus.ACCEPTED: "The job was asked to stop, and is still running.",
    **_UNKNOWN,
}

ROUTES = (
    Route(
        "GET",
        "",
        Operation.STATUS,
        "Read a job's status",
        {
            HTTPStatus.OK: "The job as it stands.",
            HTTPStatus.NOT_MODIFIED: "The job is still at the version in If-None-Match.",
            **_UNKNOWN,
        },
    ),
    Route(
        "GET",
        "/result",
        Operation.RESULT,
        "Read a job's result",
        {
            HTTPStatus.OK: "The result alone.",
            HTTPStatus.ACCEPTED: "The job is not finished: its status.",
            HTTPStatus.NOT_MODIFIED: "The client has this result.",
            HTTPStatus.GONE: "The job was cancelled.",
            HTTPStatus.FAILED_DEPENDENCY: "The job has failed.",
            **_UNKNOWN,
        },
        model=None,
    ),
    Route("POST", "/cancel", Operation.CANCEL, "Cancel a job", _CANCEL_ANSWERS),
    Route("DELETE", "", Operation.CANCEL, "Cancel a job", _CANCEL_ANSWERS),
)


def match(path: str) -> tuple[str, Mapping[str, Operation]]:
    """Split a path below the prefix into a job id and the operations its rest allows, by method."""
    job_id, slash, rest = path.partition("/")
    suffix = slash + rest
    return job_id, {route.method: route.operation for route in ROUTES if route.suffix == suffix}
