"""Requests and responses as values; adapters translate a framework's own to these and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What the rules need of a request.

    `path` is what follows the mount's prefix, without a leading slash. `root` is the path under
    which the application itself is reached (ASGI's root_path, WSGI's SCRIPT_NAME). Header names
    are in lower case; repeated headers are joined by commas, as RFC 9110 section 5.3 allows.
    """

    method: str
    path: str = ""
    root: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Content-Length is left to the server."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)
