"""The output of jobs: streams of items that handlers emit, and the values that stores keep.

A job has any number of named streams. What the handler emits is an *item*. A *position* counts the
units before it, through all attempts: items in a JSON stream, bytes in a text or bytes stream. The
*epoch* of an item is the number of the attempt that emitted it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

from asyncjobs.core.job import JobId

#: The stream that has no name of its own.
DEFAULT_STREAM = "output"

#: The longest name of a stream, and the most streams of a job.
MAX_STREAM_NAME_CHARS = 64
MAX_STREAMS = 20

_DECODER = json.JSONDecoder()


class StreamKind(StrEnum):
    """What a stream consists of; the first append decides."""

    JSON = "json"  # JSON values
    TEXT = "text"  # UTF-8
    BYTES = "bytes"


class Refusal(StrEnum):
    """Why an append was not stored."""

    GONE = "gone"  # there is no such job
    ENDED = "ended"  # the job is not processing
    STALE = "stale"  # a later attempt has begun
    FULL = "full"  # the job would exceed its limits
    KIND = "kind"  # the stream is of another kind
    MOVED = "moved"  # the stream does not end at the position of the append


@dataclass(frozen=True, slots=True)
class Append:
    """Items to add to a stream.

    `data` is JSON values joined by commas, or the bytes of the items. `units` is the number of
    items in a JSON stream, the number of bytes in another. `max_items` and `max_bytes` limit the
    job as a whole.

    A caller that knows where the stream ends gives that `position`. Then the append can be repeated
    after `StoreUnavailable`: if it is stored already, it is not stored again. Without a position, a
    repeated append may be stored twice.
    """

    job_id: JobId
    stream: str
    kind: StreamKind
    epoch: int
    items: int
    data: bytes
    max_items: int
    max_bytes: int
    position: int | None = None

    @property
    def units(self) -> int:
        """How far the append moves the end of the stream."""
        return self.items if self.kind is StreamKind.JSON else len(self.data)


@dataclass(frozen=True, slots=True)
class Appended:
    """The position after an append, or why it was refused."""

    end: int = 0
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """Where to read a stream, and how much: whole chunks up to `max_bytes`, but at least one."""

    job_id: JobId
    stream: str
    position: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The items of one append, as they are stored."""

    position: int
    units: int
    epoch: int
    data: bytes

    @property
    def end(self) -> int:
        """The position after its last item."""
        return self.position + self.units


@dataclass(frozen=True, slots=True)
class OutputPart:
    """A part of a stream: chunks in order, and the position and epoch at the end of the stream.

    The first chunk contains the position that was asked for, and may begin before it.
    """

    kind: StreamKind
    chunks: tuple[Chunk, ...]
    end: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The name, kind and size of a stream."""

    name: str
    kind: StreamKind
    items: int
    bytes: int
    epoch: int


def items_of(kind: StreamKind, data: bytes) -> list[Any]:
    """Return the items of a JSON chunk; the text or the bytes of another chunk, as one item."""
    match kind:
        case StreamKind.JSON:
            found: list[Any] = json.loads(b"[%b]" % data)
            return found
        case StreamKind.TEXT:
            return [data.decode()]
        case StreamKind.BYTES:
            return [data]
        case _:
            assert_never(kind)


def after(kind: StreamKind, chunk: Chunk, position: int) -> Chunk:
    """Return the part of a chunk from a position on; without units if there is none."""
    skipped = min(max(0, position - chunk.position), chunk.units)
    start = skipped
    if kind is StreamKind.JSON:
        text, start = chunk.data.decode(), 0
        for _ in range(skipped):
            _, start = _DECODER.raw_decode(text, start)
            start += 1  # the comma
        data = text[start:].encode()
    else:
        data = chunk.data[start:]
    return Chunk(chunk.position + skipped, chunk.units - skipped, chunk.epoch, data)
