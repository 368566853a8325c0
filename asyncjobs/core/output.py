"""The output of jobs: streams of items that handlers emit, and the values that stores keep.

A job has any number of named streams. What the handler emits is an *item*. A *position* counts the
units before it, through all attempts: items in a JSON stream, bytes in a text or bytes stream. The
*epoch* of an item is the number of the attempt that emitted it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, assert_never, cast, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from asyncjobs.core.job import JobId
from asyncjobs.errors import ConfigurationError, InvalidOutput

#: The stream that has no name of its own.
DEFAULT_STREAM = "output"

#: The longest name of a stream, and the most streams of a job.
MAX_STREAM_NAME_CHARS = 64
MAX_STREAMS = 20

#: What a stream may be called, if it is not too long.
STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Python's own default limit (`sys.int_info.default_max_str_digits`).
_MAX_INTEGER_DIGITS = 4300

_DECODER = json.JSONDecoder()


class StreamKind(StrEnum):
    """What a stream consists of; the first append decides."""

    JSON = "json"  # JSON values
    TEXT = "text"  # UTF-8
    BYTES = "bytes"


#: How a handler names the kind of a stream.
KindName = Literal["json", "text", "bytes"]


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
            # A reader may begin inside a character.
            return [data.decode(errors="replace")]
        case StreamKind.BYTES:
            return [data]
        case _:
            assert_never(kind)


@dataclass(frozen=True, slots=True)
class OutputItem:
    """An item that a handler has emitted.

    Short items of a text or bytes stream that were stored together are one item. `position` is that
    after the item, with which reading goes on later; `epoch` is the attempt that emitted it.
    """

    value: Any
    position: int
    epoch: int


def numbered_items(kind: StreamKind, chunks: Iterable[Chunk]) -> Iterator[OutputItem]:
    """Yield the items of chunks."""
    for chunk in chunks:
        if kind is not StreamKind.JSON:
            [value] = items_of(kind, chunk.data)
            yield OutputItem(value, chunk.end, chunk.epoch)
            continue
        for place, value in enumerate(items_of(kind, chunk.data), chunk.position + 1):
            yield OutputItem(value, place, chunk.epoch)


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


def checked_stream_name(name: str) -> str:
    """Return the name of a stream; raise `ValueError` if it is not valid."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"The name of a stream must be a string, got {name!r}.")
    if len(name) > MAX_STREAM_NAME_CHARS or not STREAM_NAME.fullmatch(name):
        raise ValueError(
            f"The name of a stream has 1 to {MAX_STREAM_NAME_CHARS} letters, digits, '.', '_' and "
            f"'-', and begins with a letter or digit, got {name!r}."
        )
    return name


def checked_position(position: int) -> int:
    """Return a position in a stream; raise `TypeError` or `ValueError` if it cannot be one."""
    if not isinstance(position, int) or isinstance(position, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"The `position` of an item is an integer, got {position!r}.")
    if position < 0:
        raise ValueError(f"A position is not negative, got {position}.")
    return position


class ItemType:
    """The type of the items of a stream: `str` and `bytes` make text and bytes, others JSON."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self.kind = _kind_of_type(annotation)
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        except PydanticUserError as error:
            raise ConfigurationError(
                f"Output of type {annotation!r} cannot be written as JSON: {error.message}"
            ) from error

    def dump(self, stream: str, item: Any) -> bytes:
        """Validate an item and return its bytes; raise `InvalidOutput`."""
        try:
            checked = self._adapter.validate_python(item)
            if self.kind is StreamKind.JSON:
                return _readable(stream, self._adapter.dump_json(checked, by_alias=True))
        except ValidationError as error:
            raise InvalidOutput(stream, _described(error)) from error
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidOutput(stream, str(error)) from error
        return dump_item(stream, self.kind, checked)


def kind_of_item(item: object) -> StreamKind:
    """Return the kind of a stream whose first item this is."""
    if isinstance(item, str):
        return StreamKind.TEXT
    return StreamKind.BYTES if isinstance(item, bytes | bytearray | memoryview) else StreamKind.JSON


def dump_item(stream: str, kind: StreamKind, item: Any) -> bytes:
    """Return the bytes of an item without a type; raise `InvalidOutput` if it does not fit."""
    match kind:
        case StreamKind.TEXT if isinstance(item, str):
            try:
                return item.encode()
            except UnicodeEncodeError as error:
                raise InvalidOutput(stream, f"the text is not valid Unicode: {error}") from error
        case StreamKind.BYTES if isinstance(item, bytes | bytearray | memoryview):
            return bytes(cast("bytes", item))  # a `memoryview` has a type parameter
        case StreamKind.JSON:
            try:
                text = to_json(item, by_alias=True, inf_nan_mode="null")
            except (PydanticSerializationError, ValueError) as error:
                raise InvalidOutput(stream, str(error)) from error
            return _readable(stream, text)
        case StreamKind.TEXT | StreamKind.BYTES:
            reason = f"the stream consists of {kind.value}, and the item is a {type(item).__name__}"
            raise InvalidOutput(stream, reason)
        case _:
            assert_never(kind)


def _readable(stream: str, text: bytes) -> bytes:
    """Return a JSON text; raise `InvalidOutput` if Python could not read it."""
    if len(text) > _MAX_INTEGER_DIGITS:
        try:
            json.loads(text)
        except ValueError as error:
            raise InvalidOutput(stream, f"it cannot be read back: {error}") from error
    return text


def _described(error: ValidationError) -> str:
    issues = (
        (".".join(map(str, one["loc"])), one["msg"])
        for one in error.errors(include_url=False, include_input=False)
    )
    return "; ".join(f"{field}: {message}" if field else message for field, message in issues)


def _kind_of_type(annotation: Any) -> StreamKind:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, str | bytes):
        return StreamKind.TEXT if issubclass(annotation, str) else StreamKind.BYTES
    return StreamKind.JSON
