"""Trace ids: generated, or taken from a W3C traceparent."""

from __future__ import annotations

import pytest

from asyncjobs.core.tracing import new_trace_id, trace_id_of

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f" 00-{TRACE}-b7ad6b7169203331-00 ", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_trace_id_is_taken_from_a_well_formed_traceparent(
    traceparent: str | None, trace_id: str | None
) -> None:
    assert trace_id_of(traceparent) == trace_id


def test_a_generated_trace_id_is_well_formed() -> None:
    assert trace_id_of(f"00-{new_trace_id()}-b7ad6b7169203331-01") is not None
