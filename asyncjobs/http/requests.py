"""What is read from a request: its body, its query, the options of a submission."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import JobStatus
from asyncjobs.core.submission import EnqueueOptions
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


def payload_of(request: Request, kind: JobType[P, Any]) -> P:
    """Read the payload, or raise the `RequestRejected` that says why there is none.

    The adapter reads one byte more than the limit at most, so a body over it has no known size.
    """
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        raise UnsupportedMediaType(content_type)
    limit = kind.policy.max_payload_bytes
    if len(request.body) > limit:
        raise PayloadTooLarge(None, limit)
    if not request.body.strip():
        raise MalformedBody("it is empty")
    return kind.read_payload(request.body)


def rejection_of(request: Request, errors: Sequence[Mapping[str, Any]]) -> RequestRejected | None:
    """Say why a framework that reads bodies by itself (by pydantic) refused one.

    None where it was not the body that was refused.
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
    """Return whether a media type is JSON's, or is based on it."""
    media_type = content_type.partition(";")[0].strip().lower()
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


_MAX_PAGE_SIZE = 100

_DEFAULT_PAGE_SIZE = 20

# More than any honest client sends.
_MAX_PARAMETERS = 50


@dataclass(frozen=True)
class PageQuery:
    """Which part of a list is asked for."""

    type: str | None = None
    status: JobStatus | None = None
    limit: int = _DEFAULT_PAGE_SIZE
    cursor: str | None = None

    def following(self, cursor: str) -> str:
        """Write the query string of the page that follows."""
        given = {
            "type": self.type,
            "status": self.status,
            "limit": None if self.limit == _DEFAULT_PAGE_SIZE else self.limit,
            "cursor": cursor,
        }
        return urlencode({name: value for name, value in given.items() if value is not None})


def parameters_of(query: str) -> dict[str, str]:
    """Read a query string; of a repeated parameter the first counts."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return {}
    return dict(reversed(pairs))


def page_query_of(query: str) -> PageQuery:
    """Read what a list is asked for; raise `InvalidQuery`. Unknown parameters are ignored."""
    given = parameters_of(query)
    status, limit = given.get("status"), given.get("limit", str(_DEFAULT_PAGE_SIZE))
    if status is not None and status not in set(JobStatus):
        raise InvalidQuery("status", f"it is one of {', '.join(JobStatus)}")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MAX_PAGE_SIZE:
        raise InvalidQuery("limit", f"it is a number from 1 to {_MAX_PAGE_SIZE}")
    return PageQuery(
        type=given.get("type"),
        status=None if status is None else JobStatus(status),
        limit=int(limit),
        cursor=given.get("cursor"),
    )


def options_of(
    request: Request, given: EnqueueOptions | None, *, callbacks: bool
) -> EnqueueOptions:
    """Read what the application has not decided; raise `InvalidCallback` where clients may not."""
    options = given or EnqueueOptions()
    if options.traceparent is None:
        options = replace(options, traceparent=request.headers.get("traceparent"))
    if options.callback_url is None:
        options = replace(options, callback_url=_callback_url(request, allowed=callbacks))
    return options


def where_to_follow(links: JobLinks, *, replayed: bool) -> Headers:
    """Write the headers that lead to a job, whether it has ended by now or not."""
    return (
        ("Operation-Location", links.operation),
        ("Link", f'<{links.status}>; rel="monitor"'),
        *((("Idempotency-Replayed", "true"),) if replayed else ()),
    )


def _callback_url(request: Request, *, allowed: bool) -> str | None:
    """Read where a client wants to be told; who asks in vain must know that it has to poll."""
    url = request.headers.get("callback-url")
    if url is not None and not allowed:
        raise InvalidCallback("clients may not name one here")
    return url
