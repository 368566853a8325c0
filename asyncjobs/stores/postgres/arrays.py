"""Arrays in PostgreSQL's binary form.

The driver determines the type of each element and packs one after the other. For arrays of a
hundred jobs, that took half the time of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

_OIDS = {"bytea": 17, "bigint": 20, "text": 25}

# Number of dimensions (0 if empty), whether there are NULLs, type; then size and first index.
_HEADER = Struct(">iiI")
_DIMENSION = Struct(">ii")
_pack_length = Struct(">i").pack
_pack_bigint = Struct(">iq").pack

_NULL = _pack_length(-1)


class Array(bytes):
    """Bytes sent to the server as they are; the cast in the statement gives the type."""


def packed(kind: str, values: Sequence[Any]) -> Array:
    """Pack values of one type; None becomes NULL."""
    size = len(values)
    if not size:
        return Array(_HEADER.pack(0, 0, _OIDS[kind]))
    nulls = values.count(None)
    head = _HEADER.pack(1, nulls > 0, _OIDS[kind]) + _DIMENSION.pack(size, 1)
    if nulls == size:
        return Array(head + _NULL * size)
    match kind:
        case "text":
            parts = _texts(values)
        case "bytea":
            parts = _bytes(values)
        case _:
            parts = _bigints(values)
    return Array(head + b"".join(parts))


def _texts(values: Sequence[str | None]) -> list[bytes]:
    return _bytes([None if value is None else value.encode() for value in values])


def _bytes(values: Sequence[bytes | None]) -> list[bytes]:
    parts: list[bytes] = []
    for value in values:
        parts += (_NULL,) if value is None else (_pack_length(len(value)), value)
    return parts


def _bigints(values: Sequence[int | None]) -> list[bytes]:
    return [_NULL if value is None else _pack_bigint(8, value) for value in values]
