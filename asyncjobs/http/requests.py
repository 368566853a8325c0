"""Parses requests: the body, the query and the options of a submission."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from asyncjobs.core.descriptions import tag_to_find
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import JobId, JobStatus, parse_job_id
from asyncjobs.core.submission import EnqueueOptions, checked_options
from asyncjobs.errors import (
    FieldIssue,
    InvalidCallback,
    InvalidPayload,
    InvalidQuery,
    MalformedBody,
    PayloadTooLarge,
    RequestRejected,
    UnsupportedMediaType,
)
from asyncjobs.http.messages import Headers, Request
from asyncjobs.http.mounts import JobLinks

P = TypeVar("P")

_NO_PAYLOAD = (b"", b"null", b"{}")


def payload_of(request: Request, kind: JobType[P, Any]) -> P:
    """Return the payload; raise a `RequestRejected` if the body is not a valid one.

    Adapters read at most one byte more than the limit, so the size of a larger body is unknown. A
    type without payload needs no body; some clients always send `{}`, which counts as none.
    """
    if not kind.takes_payload and request.body.strip() in _NO_PAYLOAD:
        return kind.read_payload(b"null")
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        raise UnsupportedMediaType(content_type)
    limit = kind.policy.max_payload_bytes
    if len(request.body) > limit:
        raise PayloadTooLarge(None, limit)
    if not request.body.strip():
        raise MalformedBody("it is empty")
    return kind.read_payload(request.body)


# The rest of a body that is too large is read and discarded, up to this size. Otherwise the server
# would close the connection, and the client could miss the answer and lose its next request.
_MAX_DROPPED_BYTES = 64 * 1024 * 1024


class IncomingBody:
    """Collects a body that arrives in chunks, up to one byte more than the limit."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._seen = 0

    def add(self, chunk: bytes) -> bool:
        """Add a chunk; return whether to read on."""
        self._kept += chunk[: self._limit + 1 - len(self._kept)]
        self._seen += len(chunk)
        return not self.is_unfinished

    @property
    def is_unfinished(self) -> bool:
        """Whether part of the body stays unread, so that the connection cannot be used again."""
        return self._seen > self._limit + _MAX_DROPPED_BYTES

    @property
    def content(self) -> bytes:
        """The collected bytes: more than the limit if the body is too large."""
        return bytes(self._kept)


def rejection_of(request: Request, errors: Sequence[Mapping[str, Any]]) -> RequestRejected | None:
    """Return the error for a body that a framework parsed by pydantic and refused.

    Returns None if it refused another part of the request.
    """
    if not errors or any(error["loc"][:1] != ("body",) for error in errors):
        return None
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        return UnsupportedMediaType(content_type)
    if errors[0]["type"] == "missing" and tuple(errors[0]["loc"]) == ("body",):
        return MalformedBody("it is empty")
    if errors[0]["type"] == "json_invalid":
        return MalformedBody(str(errors[0]["ctx"]["error"]))
    return InvalidPayload(FieldIssue.at(error["loc"][1:], error["msg"]) for error in errors)


def is_json(content_type: str) -> bool:
    """Return whether a media type is JSON or based on it."""
    media_type = content_type.partition(";")[0].strip().lower()
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


_MAX_PAGE_SIZE = 100

_DEFAULT_PAGE_SIZE = 20

# Clients send two or three.
_MAX_PARAMETERS = 50


@dataclass(frozen=True)
class PageQuery:
    """The filters and the page of a list."""

    type: str | None = None
    status: JobStatus | None = None
    tag: str | None = None
    batch: JobId | None = None
    members: bool = False
    limit: int = _DEFAULT_PAGE_SIZE
    cursor: str | None = None

    def following(self, cursor: str) -> str:
        """Return the query string of the next page."""
        given = {
            "type": self.type,
            "status": self.status,
            "tag": self.tag,
            "batch": self.batch,
            "members": "true" if self.members and self.batch is None else None,
            "limit": None if self.limit == _DEFAULT_PAGE_SIZE else self.limit,
            "cursor": cursor,
        }
        return urlencode({name: value for name, value in given.items() if value is not None})


def parameters_of(query: str) -> dict[str, str]:
    """Return the parameters of a query string; the first of a repeated one counts.

    Raises `InvalidQuery` if there are too many.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        # Never ignored: without its filters, a list has too many jobs.
        raise InvalidQuery("query", f"it has more than {_MAX_PARAMETERS} parameters") from error
    return dict(reversed(pairs))


def page_query_of(query: str) -> PageQuery:
    """Parse the query of a list, or raise `InvalidQuery`. Unknown parameters are ignored."""
    given = parameters_of(query)
    status, limit = given.get("status"), given.get("limit", str(_DEFAULT_PAGE_SIZE))
    tag, batch = given.get("tag"), given.get("batch")
    # The members of batches flood a user's list, but are what a list of a batch is for.
    members = given.get("members", "false" if batch is None else "true")
    if status is not None and status not in set(JobStatus):
        raise InvalidQuery("status", f"it must be one of {', '.join(JobStatus)}")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MAX_PAGE_SIZE:
        raise InvalidQuery("limit", f"it must be a number from 1 to {_MAX_PAGE_SIZE}")
    if batch is not None and parse_job_id(batch) is None:
        raise InvalidQuery("batch", "it must be the id of a batch")
    if members not in {"true", "false"}:
        raise InvalidQuery("members", "it must be true or false")
    return PageQuery(
        type=given.get("type"),
        status=None if status is None else JobStatus(status),
        tag=None if tag is None else tag_to_find(tag),
        batch=None if batch is None else JobId(batch),
        members=members == "true",
        limit=int(limit),
        cursor=given.get("cursor"),
    )


def options_of(
    request: Request, given: EnqueueOptions | None, *, callbacks: bool
) -> EnqueueOptions:
    """Return the options of a submission; those that the application gave take precedence.

    Raises `InvalidCallback` if the request names a callback URL and may not.
    """
    options = checked_options(given)
    # Copying validates all options again, and most requests need no change.
    traceparent = request.headers.get("traceparent")
    if traceparent is not None and options.traceparent is None:
        options = replace(options, traceparent=traceparent)
    url = request.headers.get("callback-url")
    if url is not None and options.callback_url is None:
        if not callbacks:
            # Never ignored: a client that waits for a callback must know that it has to poll.
            raise InvalidCallback("this server does not accept callback URLs")
        options = replace(options, callback_url=url)
    return options


def where_to_follow(links: JobLinks, *, replayed: bool) -> Headers:
    """Return the headers with the URLs of a job."""
    return (
        ("Operation-Location", links.operation),
        ("Link", f'<{links.status}>; rel="monitor"'),
        *((("Idempotency-Replayed", "true"),) if replayed else ()),
    )
