"""The rules of reading output: offsets, bodies, headers and events.

This is the read half of the Durable Streams protocol, with epochs added: no body has the items of
two attempts, and each answer names its attempt.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

from asyncjobs.core.job import JobId
from asyncjobs.core.output import Chunk, OutputPart, StreamKind, after
from asyncjobs.core.randomness import random_hex
from asyncjobs.errors import InvalidQuery
from asyncjobs.http import sse
from asyncjobs.http.messages import Headers
from asyncjobs.records.output_hub import Portion

#: The most bytes of one body, unless a single JSON value is larger.
BODY_BYTES = 1024 * 1024

#: A position after the end of any stream; all stores can represent it.
BEYOND = 2**52

#: The longest time that one event stream lasts.
LONGEST = timedelta(minutes=1)

# The strings that clients send instead of an offset.
_START, _NOW = "-1", "now"

_OFFSET = re.compile(r"([0-9]{6})-([0-9]{16})-([0-9a-f]{8})")

#: Matches every value of `offset` that some stream accepts.
OFFSET_PATTERN = f"^(?:{_START}|{_NOW}|{_OFFSET.pattern})$"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_CURSOR = re.compile(r"[0-9]{1,15}")

_MAX_PARAMETERS = 50

# Section 10.1 of the protocol: the cursor is the number of intervals since this time.
_CURSORS_BEGIN = datetime(2024, 10, 9, tzinfo=UTC)
_INTERVAL = timedelta(seconds=20)

_CONTENT_TYPES: Mapping[StreamKind, str] = {
    StreamKind.JSON: "application/json",
    StreamKind.TEXT: "text/plain; charset=utf-8",
    StreamKind.BYTES: "application/octet-stream",
}

#: The headers of all answers. The content may be by strangers: browsers must never render it as a
#: page of this site, and pages of other sites must not embed it.
SAFE: Headers = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
)

Live = Literal["long-poll", "sse"]


class OutputQuery(NamedTuple):
    """What a request asks for; a `position` of None is the end of the stream."""

    position: int | None
    live: Live | None
    cursor: int | None


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """A stream of a job; `mark` distinguishes its offsets from those of other streams."""

    job_id: JobId
    name: str
    mark: str

    @classmethod
    def of(cls, job_id: JobId, name: str) -> StreamAddress:
        """Return the address of a stream."""
        return cls(job_id, name, sha256(f"{job_id}/{name}".encode()).hexdigest()[:8])

    def offset(self, position: int, epoch: int) -> str:
        """Return the offset of a position; offsets sort as the positions do."""
        return f"{epoch:06d}-{position:016d}-{self.mark}"

    def position(self, offset: str) -> int:
        """Return the position of an offset; raise `InvalidQuery`."""
        found = _OFFSET.fullmatch(offset)
        if found is None:
            raise InvalidQuery("offset", "it is not an offset of this server, `-1` or `now`")
        if found[3] != self.mark:
            raise InvalidQuery("offset", "it belongs to another stream")
        return int(found[2])


def output_query_of(query: str, address: StreamAddress) -> OutputQuery:
    """Parse the query of a read, or raise `InvalidQuery`. Unknown parameters are ignored."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise InvalidQuery("offset", "there are too many parameters") from None
    given = dict(reversed(pairs))
    if sum(name == "offset" for name, _ in pairs) > 1:
        raise InvalidQuery("offset", "it is repeated")
    offset, live, cursor = given.get("offset"), given.get("live"), given.get("cursor", "")
    if live is not None and live not in {"long-poll", "sse"}:
        raise InvalidQuery("live", "it must be `long-poll` or `sse`")
    if live is not None and offset is None:
        raise InvalidQuery("offset", "it is required with `live`")
    return OutputQuery(
        position=_position_of(offset, address),
        live="sse" if live == "sse" else None if live is None else "long-poll",
        cursor=int(cursor) if _CURSOR.fullmatch(cursor) else None,
    )


def _position_of(offset: str | None, address: StreamAddress) -> int | None:
    if offset is None or offset == _START:
        return 0
    return None if offset == _NOW else address.position(offset)


def check_position(position: int, tail: int) -> None:
    """Raise `InvalidQuery` for a position after the end of the stream."""
    if position > tail:
        raise InvalidQuery("offset", "it is after the end of the stream")


def portion_of(part: OutputPart | None, position: int, *, ended: bool) -> Portion:
    """Return what was read at a position of a stream; it is None while that does not exist."""
    if part is None:
        return Portion(None, position, (), position, 0, 0, up_to_date=True, closed=ended)
    chunks = part.chunks
    if chunks and chunks[0].position < position:
        first = after(part.kind, chunks[0], position)
        chunks = (first, *chunks[1:]) if first.units else chunks[1:]
    whole = Portion(
        part.kind,
        position,
        chunks,
        chunks[-1].end if chunks else position,
        chunks[-1].epoch if chunks else part.epoch,
        part.end,
        up_to_date=True,
        closed=ended,
    )
    return _with_end(whole, chunks)


def by_epoch(portion: Portion) -> Iterator[Portion]:
    """Yield the parts of a portion that attempts have emitted; one part if it is empty."""
    position, runs = portion.position, groupby(portion.chunks, attrgetter("epoch"))
    if not portion.chunks:
        yield portion
    for _, run in runs:
        chunks = tuple(run)
        yield _with_end(replace(portion, position=position), chunks)
        position = chunks[-1].end


def _with_end(portion: Portion, chunks: tuple[Chunk, ...]) -> Portion:
    """Return the portion with only these of its chunks, and what follows from them."""
    end = chunks[-1].end if chunks else portion.position
    epoch = chunks[-1].epoch if chunks else portion.epoch
    at_tail = end >= portion.tail
    return replace(
        portion,
        chunks=chunks,
        end=end,
        epoch=epoch,
        up_to_date=at_tail,
        closed=portion.closed and at_tail,
    )


def body_of(portion: Portion) -> bytes:
    """Return the body: an array of JSON values, or the bytes as they were emitted."""
    if portion.kind is StreamKind.JSON:
        return b"[%b]" % b",".join(chunk.data for chunk in portion.chunks)
    return b"".join(chunk.data for chunk in portion.chunks)


def content_type_of(kind: StreamKind | None) -> str:
    """Return the media type; that of an empty text if the kind is not known yet."""
    return _CONTENT_TYPES[kind or StreamKind.TEXT]


def headers_of(address: StreamAddress, portion: Portion, cursor: int | None = None) -> Headers:
    """Return the headers that describe a portion; open streams that are followed have a cursor."""
    given: list[tuple[str, str]] = [
        ("Stream-Next-Offset", address.offset(portion.end, portion.epoch)),
        ("Stream-Epoch", str(portion.epoch)),
    ]
    if portion.kind is not None:
        given.append(("Stream-Kind", portion.kind.value))
    if portion.up_to_date:
        given.append(("Stream-Up-To-Date", "true"))
    if portion.closed:
        given.append(("Stream-Closed", "true"))
    elif cursor is not None:
        given.append(("Stream-Cursor", str(cursor)))
    return (*given, *SAFE)


def etag_of_portion(portion: Portion) -> str:
    """Return the strong ETag: what is emitted never changes, but the end of a stream does."""
    state = "c" if portion.closed else "u" if portion.up_to_date else "p"
    kind = "" if portion.kind is None else portion.kind.value
    return f'"{portion.position}-{portion.end}-{portion.epoch}-{kind}-{state}"'


def event_headers_of(kind: StreamKind | None) -> Headers:
    """Return the headers of events, by which a client decodes them."""
    headers = (*sse.HEADERS, *SAFE[1:])  # those of all events have the first one
    if kind is None:
        return headers
    encoded = (("Stream-SSE-Data-Encoding", "base64"),) if kind is StreamKind.BYTES else ()
    return (*headers, ("Stream-Kind", kind.value), *encoded)


def events_of(address: StreamAddress, portion: Portion, cursor: int) -> bytes:
    """Return the events of a portion: after the data of each attempt its control data."""
    return b"".join(_events_of(address, part, cursor) for part in by_epoch(portion))


def _events_of(address: StreamAddress, portion: Portion, cursor: int) -> bytes:
    control: dict[str, object] = {
        "streamNextOffset": address.offset(portion.end, portion.epoch),
        "streamEpoch": portion.epoch,
    }
    if not portion.closed:
        control["streamCursor"] = str(cursor)
    if portion.up_to_date:
        control["upToDate"] = True
    if portion.closed:
        control["streamClosed"] = True
    body = body_of(portion) if portion.chunks else b""
    if portion.kind is StreamKind.TEXT and b"\r" in body:
        # Events cannot carry a carriage return (HTML, section 9.2.6); clients that know this member
        # read the text here.
        control["streamText"] = body.decode(errors="replace")
    after_data = _event(b"control", json.dumps(control, separators=(",", ":")).encode())
    if not portion.chunks:
        return after_data
    if portion.kind is StreamKind.BYTES:
        body = b64encode(body)
    return _event(b"data", body) + after_data


def _event(kind: bytes, data: bytes) -> bytes:
    """Return an event as the protocol's own servers write it, without a blank after the colon.

    A client removes one blank, so a line that begins with one gets another.
    """
    lines = (b" " + line if line.startswith(b" ") else line for line in _LINE_END.split(data))
    return b"event: %b\n%b\n\n" % (kind, b"\n".join(b"data:" + line for line in lines))


def cursor_at(now: datetime, least: int = 0) -> int:
    """Return the cursor of an answer."""
    return max((now - _CURSORS_BEGIN) // _INTERVAL, least)


def least_cursor(now: datetime, given: int | None) -> int:
    """Return the least cursor to answer a client, which must not get the one that it has.

    Otherwise a cache could give the client the same answer again.
    """
    if given is None or given < cursor_at(now):
        return 0
    return given + 1 + int(random_hex()[:8], 16) % 180
