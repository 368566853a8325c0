"""Server-Sent Events: the text of a stream, and the point where a client resumes (HTML, 9.2)."""

from __future__ import annotations

import re

from asyncjobs.http.messages import Headers

KEEP_ALIVE = b":\n\n"

#: No proxy may store, compress or buffer a stream. `Incremental` is the standard header for this
#: (RFC 10036), `X-Accel-Buffering` is nginx's.
HEADERS: Headers = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache, no-transform"),
    ("Incremental", "?1"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)

_VERSION = re.compile(r"[0-9]{1,18}")
_LINE_END = re.compile(rb"\r\n|\r|\n")


def retry(seconds: float) -> bytes:
    """Return the field that sets how long a client waits before it connects again."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def event(version: int, document: bytes) -> bytes:
    """Return one event; a client that reconnects sends its id."""
    return b"id: %d\n%s" % (version, unnumbered_event(document))


def unnumbered_event(document: bytes, name: str | None = None) -> bytes:
    """Return one event without an id, and of a type of its own if it has a name."""
    kind = b"" if name is None else b"event: %s\n" % name.encode()
    lines = _LINE_END.split(document)
    return b"%s%s\n\n" % (kind, b"\n".join(b"data: " + line for line in lines))


def resumes_after(last_event_id: str | None, after: str | None) -> int:
    """Return the version that a client already has; 0 if it has none or sends a malformed one.

    A browser that reconnects sends the header together with the URL's old parameter; the header
    counts.
    """
    for text in (last_event_id, after):
        if text is not None and _VERSION.fullmatch(text):
            return int(text)
    return 0
