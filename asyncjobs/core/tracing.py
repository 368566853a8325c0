"""Trace ids: read from a W3C `traceparent`, or new."""

from __future__ import annotations

import re

from asyncjobs.core.randomness import random_hex

# Trace Context level 1, section 3.2.2; later versions may append fields (section 3.2.4).
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id in a `traceparent`; None for a malformed one, which callers ignore."""
    if not traceparent:
        return None
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    return match[1] if match else None


def new_trace_id() -> str:
    """Return a new trace id: 32 hexadecimal digits, as W3C Trace Context requires."""
    return random_hex()
