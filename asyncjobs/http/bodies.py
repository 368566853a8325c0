"""Reading a submitted payload from a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from asyncjobs.errors import (
    FieldIssue,
    InvalidPayload,
    MalformedBody,
    PayloadTooLarge,
    RequestRejected,
    UnsupportedMediaType,
)
from asyncjobs.http.messages import Request
from asyncjobs.registry import JobType

P = TypeVar("P")


def payload_of(request: Request, kind: JobType[P, Any]) -> P:
    """Read the payload, or raise the `RequestRejected` that says why there is none.

    The adapter reads one byte more than the limit at most, so a body over it has no known size.
    """
    content_type = request.headers.get("content-type", "")
    if not _is_json(content_type):
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
    if not _is_json(content_type):
        return UnsupportedMediaType(content_type)
    if errors[0]["type"] == "missing" and tuple(errors[0]["loc"]) == ("body",):
        return MalformedBody("it is empty")
    if errors[0]["type"] == "json_invalid":
        return MalformedBody(str(errors[0]["ctx"]["error"]))
    return InvalidPayload(FieldIssue.at(error["loc"][1:], error["msg"]) for error in errors)


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))
