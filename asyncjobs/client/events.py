"""A parser of Server-Sent Events from bytes in any pieces (HTML standard, section 9.2.6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_DIGITS = re.compile(r"[0-9]{1,9}")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerEvent:
    """One event; `id` is the last id of the stream, of this event or an earlier one."""

    id: str
    name: str
    data: str


class EventParser:
    """Parses the pieces of one stream. `retry` is the reconnection pause in seconds, if sent."""

    def __init__(self) -> None:
        self.retry: float | None = None
        self._rest = bytearray()
        self._searched = 0
        self._begun = False
        self._after_cr = False
        self._id = ""
        self._name = ""
        self._data: list[str] = []
        self._data_length = 0

    @property
    def held(self) -> int:
        """The number of buffered bytes of an unfinished event."""
        return len(self._rest) + self._data_length

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Add the next piece; return the events that it completes."""
        self._rest += data
        if not self._begun:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._begun = True
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        return [event for line in self._lines() if (event := self._take(line)) is not None]

    def _lines(self) -> list[str]:
        # A CR ends its line at once: the LF of a CRLF may come much later, in the next piece.
        if self._after_cr and self._rest:
            if self._rest.startswith(b"\n"):
                del self._rest[:1]
            self._after_cr = False
        lines: list[str] = []
        begin = 0
        for end in _LINE_END.finditer(self._rest, self._searched):
            lines.append(self._rest[begin : end.start()].decode("utf-8", "replace"))
            begin = end.end()
        self._after_cr = begin == len(self._rest) and self._rest.endswith(b"\r")
        del self._rest[:begin]
        self._searched = len(self._rest)
        return lines

    def _take(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_length += len(value) + 1
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and _DIGITS.fullmatch(value):
            self.retry = int(value) / 1000
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._data_length, self._name = [], 0, ""
        return ServerEvent(self._id, name or "message", "\n".join(data)) if data else None
