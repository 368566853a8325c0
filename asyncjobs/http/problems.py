"""Errors as problem documents (RFC 9457), by one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from asyncjobs.core.job import (
    BATCH_ERROR_CODES,
    DEFAULT_ERROR_CODE,
    JOB_ERROR_CODES,
    Job,
    JobStatus,
)
from asyncjobs.errors import (
    AsyncJobsError,
    CrossSite,
    FieldIssue,
    FileMissing,
    IdempotencyConflict,
    IllegalMove,
    InsufficientScope,
    InvalidCallback,
    InvalidIdempotencyKey,
    InvalidPayload,
    InvalidQuery,
    InvalidToken,
    LostLease,
    MalformedBody,
    PayloadTooLarge,
    PreconditionFailed,
    ResourcesUnavailable,
    StorageUnavailable,
    StoreUnavailable,
    TooManyPolls,
    UnknownFile,
    UnknownJob,
    UnsupportedMediaType,
)
from asyncjobs.http.headers import clear_of_keep_alive, etag_of
from asyncjobs.http.messages import Headers, Response

#: The status and code of each error. Any other error is a server error: 500.
STATUSES: Mapping[type[AsyncJobsError], tuple[HTTPStatus, str]] = {
    MalformedBody: (HTTPStatus.BAD_REQUEST, "malformed_body"),
    UnknownJob: (HTTPStatus.NOT_FOUND, "job_not_found"),
    IllegalMove: (HTTPStatus.CONFLICT, "illegal_move"),
    LostLease: (HTTPStatus.CONFLICT, "lost_lease"),
    PreconditionFailed: (HTTPStatus.PRECONDITION_FAILED, "precondition_failed"),
    PayloadTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload_too_large"),
    UnsupportedMediaType: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
    InvalidPayload: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_payload"),
    InvalidIdempotencyKey: (HTTPStatus.BAD_REQUEST, "invalid_idempotency_key"),
    IdempotencyConflict: (HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_conflict"),
    InvalidCallback: (HTTPStatus.BAD_REQUEST, "invalid_callback"),
    InvalidQuery: (HTTPStatus.BAD_REQUEST, "invalid_query"),
    CrossSite: (HTTPStatus.FORBIDDEN, "cross_site"),
    InvalidToken: (HTTPStatus.UNAUTHORIZED, "invalid_token"),
    InsufficientScope: (HTTPStatus.FORBIDDEN, "insufficient_scope"),
    TooManyPolls: (HTTPStatus.TOO_MANY_REQUESTS, "too_many_polls"),
    StoreUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "store_unavailable"),
    ResourcesUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "handlers_unavailable"),
    UnknownFile: (HTTPStatus.NOT_FOUND, "file_not_found"),
    FileMissing: (HTTPStatus.INTERNAL_SERVER_ERROR, "file_missing"),
    StorageUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "storage_unavailable"),
}

#: Sentences that replace an error's own message if it is for operators, or names an id.
_SENTENCES: Mapping[type[AsyncJobsError], str] = {
    UnknownJob: "Job not found",
    StoreUnavailable: "Jobs cannot be read or written at the moment.",
    ResourcesUnavailable: "Jobs cannot be run at the moment.",
    UnknownFile: "The job has no such file.",
    FileMissing: "The file has been lost.",
    StorageUnavailable: "Files cannot be read at the moment.",
}

_RETRY_AFTER_SECONDS = "6"

_NOT_ALLOWED = "method_not_allowed"
_CANCELLED = "job_cancelled"
_NO_SUCH_RANGE = "range_not_satisfiable"
_OTHER_FILE = "precondition_failed"
_NO_SUCH_STREAM = "stream_not_found"
_TOO_MANY_HELD = "too_many_connections"

_JOB_CODES = JOB_ERROR_CODES | BATCH_ERROR_CODES | {DEFAULT_ERROR_CODE}

#: Every code with a problem type: a section on the page that the type names.
CODES = {code for _, code in STATUSES.values()} | {
    _NOT_ALLOWED,
    _CANCELLED,
    _NO_SUCH_RANGE,
    _NO_SUCH_STREAM,
    _TOO_MANY_HELD,
    *_JOB_CODES,
}

#: The beginning of a problem's `type`, followed by the code: the documentation of problems.
TYPE_PREFIX = "https://asyncjobs-http.readthedocs.io/en/stable/reference/problems.html#"

# RFC 9457 section 4.2.1: the status alone describes the problem.
_NO_TYPE = "about:blank"


class ProblemDocument(BaseModel):
    """A problem (RFC 9457) with extension members: `error`, `code` and, for fields, `errors`."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(
        default=_NO_TYPE, description="the code's section in the documentation, if it has one"
    )
    title: str
    status: int
    detail: str = Field(description="what went wrong, in a sentence")
    error: str = Field(description="the same as `detail`")
    code: str = Field(description="what went wrong, for programs")
    errors: list[FieldIssue] | None = Field(default=None, description="per field of the payload")


def problem(
    status: HTTPStatus, code: str, error: str, *, headers: Headers = (), **members: Any
) -> Response:
    """Return a problem document; its type is that of the code, if there is one."""
    document = {
        "type": f"{TYPE_PREFIX}{code}" if code in CODES else _NO_TYPE,
        "title": status.phrase,
        "status": status.value,
        "detail": error,
        "error": error,
        "code": code,
        **members,
    }
    always = (
        ("Content-Type", "application/problem+json"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    )
    return Response(status, (*always, *headers), to_json(document))


def problem_of(error: AsyncJobsError) -> Response | None:
    """Return the answer to an error; None if it is not in the table."""
    found = next((kind for kind in STATUSES if isinstance(error, kind)), None)
    if found is None:
        return None
    status, code = STATUSES[found]
    sentence = _SENTENCES.get(found, str(error))
    members = {"errors": error.issues} if isinstance(error, InvalidPayload) else {}
    return problem(status, code, sentence, headers=_headers_of(error, code, sentence), **members)


def _headers_of(error: AsyncJobsError, code: str, sentence: str) -> Headers:
    """Return the headers that the answer to an error has in addition."""
    match error:
        case PreconditionFailed():
            return (("ETag", etag_of(error.version)),)
        case InvalidToken():
            return _challenge(code, sentence)
        case InsufficientScope():
            return _challenge(code, sentence, f', scope="{error.scope}"')
        case TooManyPolls():
            return (("Retry-After", str(clear_of_keep_alive(error.seconds))),)
        case StoreUnavailable() | ResourcesUnavailable() | StorageUnavailable():
            return (("Retry-After", _RETRY_AFTER_SECONDS),)
        case _:
            return ()


def _challenge(code: str, sentence: str, more: str = "") -> Headers:
    """Return the header of RFC 6750, section 3; the sentence must have no quotes."""
    return (("WWW-Authenticate", f'Bearer error="{code}", error_description="{sentence}"{more}'),)


def methods_of(operations: Iterable[str]) -> str:
    """List the methods of a URL for `Allow`: GET includes HEAD, and all URLs support OPTIONS."""
    names = [one for name in operations for one in (("GET", "HEAD") if name == "GET" else (name,))]
    return ", ".join([*names, "OPTIONS"])


def not_allowed(method: str, operations: Iterable[str]) -> Response:
    """Return the answer to a method that a URL does not support."""
    listed = methods_of(operations)
    return problem(
        HTTPStatus.METHOD_NOT_ALLOWED,
        _NOT_ALLOWED,
        f"This URL allows {listed}, not {method}.",
        headers=(("Allow", listed),),
    )


def no_such_range(headers: Headers) -> Response:
    """Return the answer to a Range that a file does not have."""
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    return problem(status, _NO_SUCH_RANGE, "The file does not have these bytes.", headers=headers)


def other_file(etag: str) -> Response:
    """Return the answer if a file is not the one that the request's conditions name."""
    sentence = "The file is not the one that the request allows."
    headers = (("ETag", etag),)
    return problem(HTTPStatus.PRECONDITION_FAILED, _OTHER_FILE, sentence, headers=headers)


def no_such_stream(reason: str) -> Response:
    """Return the answer to a request for a stream of output that no job can have."""
    return problem(HTTPStatus.NOT_FOUND, _NO_SUCH_STREAM, reason)


def too_many_held(seconds: int) -> Response:
    """Return the answer to a request that would have to be held, but there is no room for it."""
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        _TOO_MANY_HELD,
        "There is nothing new, and too many connections wait for more.",
        headers=(("Retry-After", str(seconds)),),
    )


def no_result(job: Job) -> Response:
    """Return the answer to a request for the result of a failed or cancelled job: 424 or 410.

    Never 408 or 429: clients that follow `Location` would retry.
    """
    if job.status is JobStatus.CANCELLED or job.error is None:
        return problem(HTTPStatus.GONE, _CANCELLED, "The job was cancelled.")
    code, message = job.error.code, job.error.message
    # A code chosen by a handler has no page, even if it is spelled like one of ours.
    own: dict[str, Any] = {} if code in _JOB_CODES else {"type": _NO_TYPE}
    return problem(HTTPStatus.FAILED_DEPENDENCY, code, message, **own)
