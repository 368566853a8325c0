"""Errors as problem documents (RFC 9457), by one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import (
    AsyncJobsError,
    CrossSite,
    FieldIssue,
    IdempotencyConflict,
    IllegalMove,
    InvalidCallback,
    InvalidIdempotencyKey,
    InvalidPayload,
    InvalidQuery,
    LostLease,
    MalformedBody,
    PayloadTooLarge,
    PreconditionFailed,
    ResourcesUnavailable,
    StoreUnavailable,
    TooManyPolls,
    UnknownJob,
    UnsupportedMediaType,
)
from asyncjobs.http.headers import etag_of
from asyncjobs.http.messages import Headers, Response

#: The status and code of each error. Any other error is a fault of the server: 500.
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
    TooManyPolls: (HTTPStatus.TOO_MANY_REQUESTS, "too_many_polls"),
    StoreUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "store_unavailable"),
    ResourcesUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "handlers_unavailable"),
}

#: Sentences that replace an error's own message if that is for operators, or names an id.
_SENTENCES: Mapping[type[AsyncJobsError], str] = {
    UnknownJob: "Job not found",
    StoreUnavailable: "Jobs cannot be read or written at the moment.",
    ResourcesUnavailable: "Jobs cannot be run at the moment.",
}

_RETRY_AFTER_SECONDS = "5"


class ProblemDocument(BaseModel):
    """A problem (RFC 9457) with members of ours: `error`, `code` and, for fields, `errors`."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    error: str = Field(description="what went wrong, in a sentence")
    code: str = Field(description="what went wrong, for programs")
    errors: list[FieldIssue] | None = Field(default=None, description="per field of the payload")


def problem(
    status: HTTPStatus, code: str, error: str, *, headers: Headers = (), **members: Any
) -> Response:
    """Return a problem document."""
    document = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
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
    if isinstance(error, InvalidPayload):
        return problem(status, code, sentence, errors=error.issues)
    if isinstance(error, PreconditionFailed):
        return problem(status, code, sentence, headers=(("ETag", etag_of(error.version)),))
    if isinstance(error, TooManyPolls):
        return problem(status, code, sentence, headers=(("Retry-After", str(error.seconds)),))
    if isinstance(error, (StoreUnavailable, ResourcesUnavailable)):
        return problem(status, code, sentence, headers=(("Retry-After", _RETRY_AFTER_SECONDS),))
    return problem(status, code, sentence)


def not_allowed(method: str, allowed: Iterable[str]) -> Response:
    """Answer a method that a URL lacks; a URL that has GET has HEAD (RFC 9110, section 9.1)."""
    methods = [one for name in allowed for one in (("GET", "HEAD") if name == "GET" else (name,))]
    listed = ", ".join(methods)
    return problem(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method_not_allowed",
        f"This URL allows {listed}, not {method}.",
        headers=(("Allow", listed),),
    )


def no_result(job: Job) -> Response:
    """Answer a request for the result of a failed or cancelled job: 424 or 410.

    Never 408 or 429: clients that follow `Location` would retry.
    """
    if job.status is JobStatus.CANCELLED or job.error is None:
        return problem(HTTPStatus.GONE, "job_cancelled", "The job was cancelled.")
    return problem(HTTPStatus.FAILED_DEPENDENCY, job.error.code, job.error.message)
