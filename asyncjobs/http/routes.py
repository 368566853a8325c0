"""The routes below a mount's prefix: the only table, which every adapter serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from pydantic import BaseModel

from asyncjobs.core.output import DEFAULT_STREAM
from asyncjobs.http.documents import (
    JobDocument,
    ListDocument,
    OperationDocument,
    TokenDocument,
)


class Operation(Enum):
    """What a route does."""

    LIST = "list"
    STATUS = "status"
    RESULT = "result"
    EVENTS = "events"
    OPERATION = "operation"
    CANCEL = "cancel"
    FILE = "file"
    OUTPUT = "output"
    RENEW = "renew"
    RENEW_TAG = "renew_tag"


@dataclass(frozen=True)
class Route:
    """One method of one path; `suffix` follows the job's id.

    `model` is the document of a 200; None if it may be any JSON value, or is not JSON.
    """

    method: str
    suffix: str
    operation: Operation
    summary: str
    answers: Mapping[HTTPStatus, str]
    model: type[BaseModel] | None = JobDocument
    media_type: str = "application/json"


_UNKNOWN = {HTTPStatus.NOT_FOUND: "The caller has no job with this id."}
_AWAY = {HTTPStatus.SERVICE_UNAVAILABLE: "Jobs cannot be read or written at the moment."}
_TOO_MANY = {HTTPStatus.TOO_MANY_REQUESTS: "The job is polled too often."}

_CHANGED = {HTTPStatus.PRECONDITION_FAILED: "The job is not at the version in If-Match."}

_CANCEL_ANSWERS = {
    HTTPStatus.OK: "The job is finished, or was cancelled at once.",
    HTTPStatus.ACCEPTED: "The job was asked to stop, and is still running.",
    HTTPStatus.FORBIDDEN: "A page of another site sent the request.",
    HTTPStatus.PRECONDITION_FAILED: "The job is not at the required version; it was not changed.",
    **_UNKNOWN,
    **_AWAY,
}

# After the id of a job, before the name of a file.
_FILES = "/files/"

# After the id of a job, before the name of a stream.
_OUTPUT = "/output"

_OUTPUT_ANSWERS = {
    HTTPStatus.OK: "What was emitted after the offset; as events, also what follows.",
    HTTPStatus.NO_CONTENT: "Nothing was emitted while the request was held, or ever will be.",
    HTTPStatus.NOT_MODIFIED: "The client already has this part.",
    HTTPStatus.BAD_REQUEST: "A parameter is not valid, or the offset is that of another stream.",
    HTTPStatus.NOT_FOUND: "The caller has no such job, or no job has such a stream.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Jobs cannot be read, or no request held, at the moment.",
}

LIST = Route(
    "GET",
    "",
    Operation.LIST,
    "List the caller's own jobs",
    {
        HTTPStatus.OK: "A page of jobs, the newest first; as events, the first page kept current.",
        HTTPStatus.BAD_REQUEST: "A parameter is not valid.",
        **_AWAY,
    },
    model=ListDocument,
)

ROUTES = (
    Route(
        "GET",
        "",
        Operation.STATUS,
        "Read a job's status",
        {
            HTTPStatus.OK: "The current state of the job.",
            HTTPStatus.NOT_MODIFIED: "The job is still at the version in If-None-Match.",
            **_UNKNOWN,
            **_CHANGED,
            **_TOO_MANY,
            **_AWAY,
        },
    ),
    Route(
        "GET",
        "/result",
        Operation.RESULT,
        "Read a job's result",
        {
            HTTPStatus.OK: "The result.",
            HTTPStatus.ACCEPTED: "The job is not finished; the body is its status.",
            HTTPStatus.NOT_MODIFIED: "The client already has this result.",
            HTTPStatus.GONE: "The job was cancelled.",
            HTTPStatus.FAILED_DEPENDENCY: "The job has failed.",
            **_UNKNOWN,
            **_CHANGED,
            **_TOO_MANY,
            **_AWAY,
        },
        model=None,
    ),
    Route(
        "GET",
        "/events",
        Operation.EVENTS,
        "Follow a job's status",
        {
            HTTPStatus.OK: "The current state of the job, then each change until its end.",
            HTTPStatus.NO_CONTENT: "The job is finished, and the client has seen its final state.",
            **_UNKNOWN,
            **_AWAY,
        },
        model=None,
        media_type="text/event-stream",
    ),
    Route(
        "GET",
        "/operation",
        Operation.OPERATION,
        "Read a job's status as an Azure long-running operation",
        {
            HTTPStatus.OK: "The current state of the job.",
            **_UNKNOWN,
            **_CHANGED,
            **_TOO_MANY,
            **_AWAY,
        },
        model=OperationDocument,
    ),
    Route(
        "POST",
        "/cancel",
        Operation.CANCEL,
        "Cancel a job",
        {
            **_CANCEL_ANSWERS,
            HTTPStatus.SEE_OTHER: "For browsers: redirects to the job's page.",
        },
    ),
    Route("DELETE", "", Operation.CANCEL, "Cancel a job", _CANCEL_ANSWERS),
    Route(
        "GET",
        f"{_FILES}{{name}}",
        Operation.FILE,
        "Download a file of a job",
        {
            HTTPStatus.OK: "The whole file.",
            HTTPStatus.PARTIAL_CONTENT: "The bytes that Range names.",
            HTTPStatus.NOT_MODIFIED: "The client already has this file.",
            HTTPStatus.NOT_FOUND: "The caller has no such job, or the job has no such file.",
            HTTPStatus.PRECONDITION_FAILED: "The file is not the one in If-Match.",
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "The file does not have these bytes.",
            HTTPStatus.INTERNAL_SERVER_ERROR: "The storage has lost the file.",
            HTTPStatus.SERVICE_UNAVAILABLE: "Jobs or files cannot be read at the moment.",
        },
        model=None,
        media_type="application/octet-stream",
    ),
    Route(
        "GET",
        _OUTPUT,
        Operation.OUTPUT,
        "Read a job's output",
        _OUTPUT_ANSWERS,
        model=None,
    ),
    Route(
        "GET",
        f"{_OUTPUT}/{{name}}",
        Operation.OUTPUT,
        "Read a named stream of a job's output",
        _OUTPUT_ANSWERS,
        model=None,
    ),
)

_TOKEN_ANSWERS = {
    HTTPStatus.OK: "A new token.",
    HTTPStatus.UNAUTHORIZED: "The token has expired, or is not valid.",
    HTTPStatus.FORBIDDEN: "A page of another site sent the request without a token.",
}

#: Exists only if a mount has tokens.
RENEWAL = Route(
    "POST",
    "/token",
    Operation.RENEW,
    "Renew the token of a job",
    {**_TOKEN_ANSWERS, **_UNKNOWN, **_AWAY},
    model=TokenDocument,
)

#: Exists only if a mount has tokens and lists jobs.
TAG_RENEWAL = Route(
    "POST",
    "/token",
    Operation.RENEW_TAG,
    "Get a token for the caller's jobs with a tag",
    {
        **_TOKEN_ANSWERS,
        HTTPStatus.BAD_REQUEST: "The tag is missing or not valid.",
        HTTPStatus.NOT_FOUND: "The caller is anonymous, or the token is not of this tag.",
    },
    model=TokenDocument,
)

# By suffix, then by method: computed once, since each request uses it.
_BELOW = (*ROUTES, RENEWAL)
_OPERATIONS: Mapping[str, Mapping[str, Operation]] = {
    suffix: {route.method: route.operation for route in _BELOW if route.suffix == suffix}
    for suffix in dict.fromkeys(route.suffix for route in _BELOW)
}
_LIST_OPERATIONS: Mapping[str, Operation] = {LIST.method: LIST.operation}
_TAG_RENEWAL_OPERATIONS: Mapping[str, Operation] = {TAG_RENEWAL.method: TAG_RENEWAL.operation}
_FILE_OPERATIONS: Mapping[str, Operation] = {"GET": Operation.FILE}
_OUTPUT_OPERATIONS: Mapping[str, Operation] = {"GET": Operation.OUTPUT}
_NO_OPERATIONS: Mapping[str, Operation] = {}


def operations_at(path: str) -> tuple[str, Mapping[str, Operation]]:
    """Split a path below the prefix into a job id and the operations of its suffix, by method.

    The empty path is the prefix itself, and has no job id; nor has the path of a tag's token. One
    slash at the end is ignored, since some frameworks add it.
    """
    if not path:
        return "", _LIST_OPERATIONS
    job_id, slash, rest = path.partition("/")
    if job_id == "token" and not rest:
        return "", _TAG_RENEWAL_OPERATIONS
    if not job_id:
        return "", _NO_OPERATIONS
    suffix = (slash + rest).removesuffix("/")
    found = _OPERATIONS.get(suffix)
    if found is None:
        found = _FILE_OPERATIONS if file_in(path) else _NO_OPERATIONS
        # Of any name: the answer explains which names streams have.
        if suffix.startswith(f"{_OUTPUT}/") and not suffix.endswith("/"):
            found = _OUTPUT_OPERATIONS
    return job_id, found


def gives_tokens(operations: Mapping[str, Operation]) -> bool:
    """Return whether operations are those of a URL that gives tokens."""
    return operations is _TAG_RENEWAL_OPERATIONS or operations is _OPERATIONS[RENEWAL.suffix]


def file_in(path: str) -> str:
    """Return the name of the file in a path below the prefix; empty if there is none."""
    suffix = path[len(path.partition("/")[0]) :].removesuffix("/")
    name = suffix.removeprefix(_FILES)
    return "" if name == suffix or "/" in name else name


def stream_in(path: str) -> str:
    """Return the name of the stream in a path below the prefix, which may not be valid."""
    suffix = path.partition("/")[2].removesuffix("/")
    return suffix.partition("/")[2] or DEFAULT_STREAM
