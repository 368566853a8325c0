"""Values as the PostgreSQL store's statements send them: escaped text, and portions of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The most bytes of payloads, results or output in one statement, unless a single one is larger.
MAX_STATEMENT_BYTES = 32 * 1024 * 1024

_ESCAPED = re.compile(r"\\([\\0])")


def escaped(value: str) -> str:
    """Escape what PostgreSQL's text cannot hold (NUL, lone surrogates), without collisions."""
    if value.isascii() and "\\" not in value and "\0" not in value:
        return value
    doubled = value.replace("\\", "\\\\").replace("\0", "\\0")
    return doubled.encode("utf-8", "backslashreplace").decode()


def unescaped(value: str) -> str:
    """Return the text that `escaped` made; lone surrogates stay escaped."""
    return _ESCAPED.sub(lambda found: found[1].replace("0", "\0"), value)


def portions(places: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Split places so that a statement sends far less than PostgreSQL's limit of 1 GiB."""
    found: list[list[int]] = []
    room = 0
    for place in places:
        if not found or sizes[place] > room:
            found.append([])
            room = MAX_STATEMENT_BYTES
        found[-1].append(place)
        room -= sizes[place]
    return found
