"""The description of the routes in OpenAPI 3.1, as plain values.

Documents are referenced as components, by the names of their models.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, assert_never
from urllib.parse import quote

from pydantic import BaseModel

from asyncjobs.core.descriptions import MAX_TAG_CHARS
from asyncjobs.core.job import JobStatus
from asyncjobs.core.output import MAX_STREAM_NAME_CHARS, STREAM_NAME, StreamKind
from asyncjobs.http.documents import (
    AcceptedDocument,
    JobDocument,
    ListDocument,
    OperationDocument,
    TokenDocument,
)
from asyncjobs.http.output import OFFSET_PATTERN
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.http.routes import ROUTES, Operation, Route

Schema = dict[str, Any]

#: The documents that are components, by name.
MODELS: Mapping[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        AcceptedDocument,
        JobDocument,
        ListDocument,
        OperationDocument,
        ProblemDocument,
        TokenDocument,
    )
}

_COMPONENTS = "#/components/schemas/"

_PAGE: Schema = {"text/html": {"schema": {"type": "string"}}}
_BYTES: Schema = {"schema": {"type": "string", "format": "binary"}}

JOB_ID: Schema = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "the `jobId` of the 202",
    "schema": {"type": "string"},
}

_HEADERS: Mapping[str, Schema] = {
    "ETag": {"description": "changes with each visible change", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "seconds to wait before the next poll; absent when the job is terminal",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Location": {
        "description": "the URL of the result or of the job",
        "schema": {"type": "string"},
    },
    "Operation-Location": {"description": "the operation's URL", "schema": {"type": "string"}},
    "Link": {
        "description": 'the status URL, as rel="monitor"; of a list, the next page, as rel="next"',
        "schema": {"type": "string"},
    },
    "Preference-Applied": {
        "description": "the wait that the server granted",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "`true` if the key was used before",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Last-Modified": {"description": "when the file was saved", "schema": {"type": "string"}},
    "Content-Disposition": {"description": "the name of the file", "schema": {"type": "string"}},
    "Content-Range": {
        "description": "the range of the body, and the size of the file",
        "schema": {"type": "string"},
    },
    "Accept-Ranges": {"description": "`bytes`", "schema": {"type": "string"}},
    "Stream-Next-Offset": {
        "description": "the offset with which to read on",
        "schema": {"type": "string"},
    },
    "Stream-Epoch": {
        "description": "the attempt of the job that emitted the items, or the one before them",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Stream-Kind": {
        "description": "what the stream consists of; absent while it does not exist",
        "schema": {"type": "string", "enum": [*StreamKind]},
    },
    "Stream-Up-To-Date": {
        "description": "`true` if nothing follows at the moment",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Stream-Closed": {
        "description": "`true` if nothing will follow: the job has ended",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Stream-Cursor": {
        "description": "to be sent along as `cursor`, so that caches do not repeat an answer",
        "schema": {"type": "string"},
    },
    "Stream-SSE-Data-Encoding": {
        "description": "`base64` if the data of the events is encoded so",
        "schema": {"type": "string", "enum": ["base64"]},
    },
    "Allow": {"description": "the allowed methods", "schema": {"type": "string"}},
}


def _header(name: str, description: str, **schema: Any) -> Schema:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _query(name: str, description: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_PREFER = _header("Prefer", "`wait=N`: hold the request for up to N seconds (RFC 7240)")
_KNOWN = _header("If-None-Match", "the ETag the client has")
_EXPECTED = _header("If-Match", "the ETag that the job must have; otherwise the response is 412")

_STREAM_NAME: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "the name of the stream",
    "schema": {
        "type": "string",
        "pattern": f"^{STREAM_NAME.pattern}$",
        "maxLength": MAX_STREAM_NAME_CHARS,
    },
}

_TOKEN = _query("token", "a token, for clients that cannot send headers", type="string")

_PARAMETERS: Mapping[Operation, list[Schema]] = {
    Operation.LIST: [
        _query("type", "only jobs of this type", type="string"),
        _query("status", "only jobs of this status", type="string", enum=[*JobStatus]),
        _query(
            "tag",
            "only jobs with this tag",
            type="string",
            minLength=1,
            maxLength=MAX_TAG_CHARS,
        ),
        _query("batch", "only jobs of this batch", type="string"),
        _query(
            "members",
            "whether jobs that belong to a batch are included; with `batch` they always are",
            type="boolean",
            default=False,
        ),
        _query("limit", "how many jobs", type="integer", minimum=1, maximum=100, default=20),
        _query("cursor", "the cursor where the previous page ended", type="string"),
    ],
    Operation.STATUS: [_PREFER, _KNOWN, _EXPECTED],
    Operation.RESULT: [_KNOWN, _EXPECTED],
    Operation.EVENTS: [
        _header("Last-Event-ID", "the version the client has; sent by browsers"),
        _query("after", "the same, for the first connection", type="string"),
    ],
    Operation.OPERATION: [_EXPECTED],
    Operation.CANCEL: [_EXPECTED],
    Operation.RENEW_TAG: [
        {**_query("tag", "the tag", type="string", maxLength=MAX_TAG_CHARS), "required": True}
    ],
    Operation.OUTPUT: [
        _query(
            "offset",
            "read what follows: the `Stream-Next-Offset` of an answer, `-1` for all, or `now`",
            type="string",
            pattern=OFFSET_PATTERN,
            default="-1",
        ),
        _query(
            "live",
            "hold the request until something follows, or stream events; needs `offset`",
            type="string",
            enum=["long-poll", "sse"],
        ),
        _query("cursor", "the `Stream-Cursor` of the last answer", type="string"),
        _KNOWN,
    ],
    Operation.FILE: [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "description": "the name of the file",
            "schema": {"type": "string"},
        },
        _header("Range", "one range of bytes, such as `bytes=1000-`; several are ignored"),
        _header("If-Range", "the ETag for which the range counts"),
        _KNOWN,
        _EXPECTED,
    ],
}

_TOKEN_REFUSALS = {
    HTTPStatus.UNAUTHORIZED: "The token has expired, or is not valid.",
    HTTPStatus.FORBIDDEN: "The token does not allow this.",
}

_SUBMISSION = [
    _PREFER,
    _header(
        "Idempotency-Key",
        "makes one job of repeated submissions: 1 to 255 characters, quoted (RFC 9651) or bare",
        pattern=r'^(?:[!#-+\--~][!-+\--~]{0,254}|"(?:[ !#-\[\]-~]|\\["\\]){1,255}")$',
    ),
]
_CALLBACK = _header("Callback-URL", "called when the job ends", format="uri", maxLength=2048)


def parameters_of(route: Route, *, tokens: bool = False) -> list[Schema]:
    """Describe the parameters of a route but the job's id; with tokens, also that of a token."""
    by_link = [_TOKEN] if tokens and route.method == "GET" else []
    named = (
        [_STREAM_NAME] if "{name}" in route.suffix and route.operation is not Operation.FILE else []
    )
    return [*named, *_PARAMETERS.get(route.operation, []), *by_link]


def submission_parameters(*, callbacks: bool) -> list[Schema]:
    """Describe the inputs of `accept` other than the payload, with or without a callback URL."""
    return [*_SUBMISSION, *([_CALLBACK] if callbacks else [])]


def responses_of(route: Route, *, tokens: bool = False) -> dict[int | str, Schema]:
    """Describe all answers of a route; with tokens, also the refusals of a token."""
    refusals: Mapping[HTTPStatus, str] = _TOKEN_REFUSALS if tokens else {}
    answers = {**refusals, **route.answers}
    return {int(status): _response(route, status, answers) for status in answers}


def submission_responses(prefix: str | None) -> dict[int | str, Schema]:
    """Describe the answers of an application's route that submits by `accept`.

    They link to the routes below the prefix, if it is known.
    """
    sentences = {
        HTTPStatus.BAD_REQUEST: "The body is not JSON, or a header is not valid.",
        HTTPStatus.FORBIDDEN: "A page of another site sent the request.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The payload is too large.",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not declared as JSON.",
        HTTPStatus.UNPROCESSABLE_ENTITY: "The payload is not valid.",
        HTTPStatus.SERVICE_UNAVAILABLE: "The job could not be stored.",
    }
    accepted = _json("The job is stored and will run.", AcceptedDocument)
    accepted["headers"] = _headers(
        "Location",
        "Operation-Location",
        "Link",
        "Retry-After",
        "Preference-Applied",
        "Idempotency-Replayed",
    )
    accepted["links"] = _links(prefix)
    finished = _json("The job has ended within the wait.", JobDocument)
    finished["headers"] = _headers("Preference-Applied", "Idempotency-Replayed")
    finished["links"] = _links(prefix)
    problems: dict[int | str, Schema] = {
        int(status): _problem(status, text) for status, text in sentences.items()
    }
    return {202: accepted, 200: finished, **problems}


def submission_body() -> Schema:
    """Describe the body that `accept` reads if the route has no parameter for the payload."""
    return {
        "description": "the job's payload, if its type takes one",
        "content": {"application/json": {"schema": {}}},
    }


def model_of(schema: Schema) -> str | None:
    """Return the name of the model that a schema references; None for another schema."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith(_COMPONENTS):
        return None
    return reference.removeprefix(_COMPONENTS)


def _reference_to(model: type[BaseModel]) -> Schema:
    return {"$ref": f"{_COMPONENTS}{model.__name__}"}


def _response(route: Route, status: HTTPStatus, answers: Mapping[HTTPStatus, str]) -> Schema:
    text = answers[status]
    if status >= HTTPStatus.BAD_REQUEST:
        described: Schema = _problem(status, text)
        described["content"].update(_PAGE)
        return described
    if status >= HTTPStatus.MULTIPLE_CHOICES or status is HTTPStatus.NO_CONTENT:
        described = {"description": text}
    elif status is HTTPStatus.ACCEPTED:
        described = _json(text, JobDocument)
    elif route.model is not None:
        described = _json(text, route.model)
    else:
        described = {"description": text, "content": _contents(route)}
    if route.operation is Operation.STATUS and status is HTTPStatus.OK:
        described["content"].update(_PAGE)
    if route.operation is Operation.LIST:
        described["content"]["text/event-stream"] = _list_events()
    names = _answered_headers(route.operation, status)
    return {**described, "headers": _headers(*names)} if names else described


def _contents(route: Route) -> Schema:
    """Describe the body of an answer that is none of our documents, by its media types."""
    if route.operation is Operation.OUTPUT:
        return _output_contents()
    if route.operation is Operation.FILE:
        # Each file has its own media type. Generators of clients do not know `*/*`, and use the
        # first type that they know.
        return {route.media_type: _BYTES, "*/*": _BYTES}
    any_json: Schema = {"schema": {}}
    return {route.media_type: _events() if route.operation is Operation.EVENTS else any_json}


def _answered_headers(  # noqa: PLR0911  # one per operation
    operation: Operation, status: HTTPStatus
) -> list[str]:
    match operation:
        case Operation.LIST:
            return ["Link"]
        case Operation.STATUS:
            return ["ETag", "Retry-After", "Preference-Applied"]
        case Operation.RESULT:
            known = status in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}
            return ["ETag"] if known else ["Retry-After"]
        case Operation.EVENTS:
            return []
        case Operation.OPERATION:
            return ["Retry-After"]
        case Operation.RENEW | Operation.RENEW_TAG:
            return []
        case Operation.CANCEL:
            return ["Location"] if status is HTTPStatus.SEE_OTHER else ["Retry-After"]
        case Operation.FILE:
            return _file_headers(status)
        case Operation.OUTPUT:
            return _output_headers(status)
        case _:
            assert_never(operation)


def _output_headers(status: HTTPStatus) -> list[str]:
    names = ["Stream-Next-Offset", "Stream-Epoch", "Stream-Up-To-Date", "Stream-Closed"]
    if status is HTTPStatus.NO_CONTENT:
        return [*names, "Stream-Cursor"]
    return (
        [*names, "Stream-Kind", "ETag"]
        if status is HTTPStatus.NOT_MODIFIED
        else [*names, "Stream-Kind", "Stream-Cursor", "ETag", "Stream-SSE-Data-Encoding"]
    )


def _file_headers(status: HTTPStatus) -> list[str]:
    if status is HTTPStatus.NOT_MODIFIED:
        return ["ETag", "Last-Modified"]
    if status is HTTPStatus.PARTIAL_CONTENT:
        return ["ETag", "Last-Modified", "Content-Disposition", "Content-Range"]
    return ["ETag", "Last-Modified", "Content-Disposition", "Accept-Ranges"]


def _json(description: str, model: type[BaseModel]) -> Schema:
    content = {"application/json": {"schema": _reference_to(model)}}
    return {"description": description, "content": content}


def _problem(status: HTTPStatus, description: str) -> Schema:
    retried = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    names = ["Retry-After"] if status in retried else []
    if status is HTTPStatus.PRECONDITION_FAILED:
        names = ["ETag"]
    headers = {"headers": _headers(*names)} if names else {}
    content = {"application/problem+json": {"schema": _reference_to(ProblemDocument)}}
    return {"description": description, "content": content, **headers}


def _headers(*names: str) -> Schema:
    return {name: _HEADERS[name] for name in names}


def _events() -> Schema:
    """Describe each event of a job's stream."""
    version = {"type": "string", "description": "the job's version, to resume after"}
    return _stream("one event of the stream", _reference_to(JobDocument), id=version)


def _output_contents() -> Schema:
    """Describe the bodies of output: JSON values, text or bytes, also as events."""
    kinds = {
        "type": "string",
        "enum": ["data", "control"],
        "description": "`data`: the items, as in the other bodies; `control`: a JSON object with "
        "`streamNextOffset`, `streamEpoch`, `streamCursor`, `upToDate` and `streamClosed`",
    }
    return {
        "application/json": {"schema": {"type": "array", "items": {}}},
        "text/plain": {"schema": {"type": "string"}},
        "application/octet-stream": _BYTES,
        "text/event-stream": _stream("one event of the stream", None, event=kinds),
    }


def _list_events() -> Schema:
    """Describe each event of a list's stream.

    The documents are not referenced: FastAPI adapts one reference of an answer, if an application
    has a model of the same name.
    """
    kinds = {
        "type": "string",
        "enum": ["list", "message", "removed"],
        "default": "message",
        "description": "`list`: the whole list, first; `message`: a job of the list that is new or "
        "has changed; `removed`: the `jobId` of one that is no longer in it",
    }
    return _stream("one event of the stream", None, event=kinds)


def _stream(description: str, document: Schema | None, **more: Schema) -> Schema:
    """Describe each event of a stream by `itemSchema` (OpenAPI 3.2, section 4.14.2).

    FastAPI does the same for its own streams in documents of version 3.1.
    """
    data: Schema = {"contentMediaType": "application/json"}
    if document is not None:
        data["contentSchema"] = document
    pause = {
        "type": "integer",
        "minimum": 0,
        "description": "milliseconds to wait before reconnecting",
    }
    item = {
        "type": "object",
        "description": description,
        "properties": {"data": {"type": "string", **data}, **more, "retry": pause},
        "required": ["data"],
    }
    return {"itemSchema": item}


def _links(prefix: str | None) -> Schema:
    """Link a document with a `jobId` to all operations on the job."""
    if prefix is None:
        return {}
    return {
        _link_name(route): {
            "operationRef": f"#/paths/{_pointer(f'{prefix}/{{job_id}}{route.suffix}')}"
            f"/{route.method.lower()}",
            "description": route.summary,
            "parameters": {"job_id": "$response.body#/jobId"},
        }
        for route in ROUTES
        # A document may have many files and streams, or none.
        if "{name}" not in route.suffix
    }


def _link_name(route: Route) -> str:
    name = route.operation.value
    return name if route.method in {"GET", "POST"} else f"{name}_by_{route.method.lower()}"


def _pointer(path: str) -> str:
    """Escape a path as part of a JSON pointer in a URI (RFC 6901, sections 3 and 6)."""
    return quote(path.replace("~", "~0").replace("/", "~1"))
