"""An independent parser reads the encoded events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.http import sse

documents = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
versions = st.integers(1, 10**18 - 1)


class Pieces(httpx.SyncByteStream):
    """A stream cut at arbitrary positions, as networks do."""

    def __init__(self, text: bytes, size: int) -> None:
        self.text, self.size = text, size

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.text), self.size):
            yield self.text[start : start + self.size]


def read(stream: bytes, size: int = 65536) -> list[ServerSentEvent]:
    response = httpx.Response(200, headers=[*sse.HEADERS], stream=Pieces(stream, size))
    # An event without data is dropped (HTML, section 9.2.6); this parser returns it.
    return [event for event in EventSource(response).iter_sse() if event.data]


@given(st.lists(st.tuples(versions, documents), max_size=5), st.integers(1, 40))
def test_any_document_arrives_whole_with_its_version(
    sent: list[tuple[int, str]], size: int
) -> None:
    stream = b"".join(sse.event(version, text.encode()) + sse.KEEP_ALIVE for version, text in sent)
    # The parser joins lines by a line feed, whatever separated them.
    expected = [
        (str(version), text.replace("\r\n", "\n").replace("\r", "\n")) for version, text in sent
    ]
    assert [(one.id, one.data) for one in read(stream, size)] == expected
    assert all(one.event == "message" for one in read(stream, size))


@pytest.mark.parametrize("hostile", ["\n\nevent: x", "\r\rid: 9", "\r\n\r\nretry: 1", "\ndata: y"])
def test_a_document_cannot_inject_another_event(hostile: str) -> None:
    [event] = read(sse.event(7, f"a{hostile}".encode()))
    assert (event.id, event.event, event.retry) == ("7", "message", None)
    assert event.data == f"a{hostile}".replace("\r\n", "\n").replace("\r", "\n")


def test_line_separators_that_only_python_knows_are_kept() -> None:
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
    assert sse.event(1, text.encode()) == f"id: 1\ndata: {text}\n\n".encode()


def test_a_comment_is_not_an_event() -> None:
    assert read(sse.KEEP_ALIVE * 3) == []
    assert sse.KEEP_ALIVE.startswith(b":")


@pytest.mark.parametrize(
    ("seconds", "line"),
    [(2, b"retry: 2000\n\n"), (0.25, b"retry: 250\n\n"), (30.0, b"retry: 30000\n\n")],
)
def test_the_retry_delay_is_in_whole_milliseconds(seconds: float, line: bytes) -> None:
    assert sse.retry(seconds) == line
    [event] = read(sse.retry(seconds).rstrip() + b"\n" + sse.event(1, b"{}"))
    assert event.retry == round(seconds * 1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache, no-transform"),
        ("Incremental", "?1"),
        ("X-Accel-Buffering", "no"),
        ("X-Content-Type-Options", "nosniff"),
    ],
)
def test_proxies_may_not_buffer_a_stream(name: str, value: str) -> None:
    assert dict(sse.HEADERS)[name] == value


@given(versions, st.none() | st.text() | versions.map(str))
def test_last_event_id_takes_precedence_over_the_parameter(version: int, after: str | None) -> None:
    assert sse.resumes_after(str(version), after) == version


@given(versions)
def test_without_last_event_id_the_parameter_applies(version: int) -> None:
    assert sse.resumes_after(None, str(version)) == version
    assert sse.resumes_after("", str(version)) == version
    assert sse.resumes_after("not one of ours", str(version)) == version


@pytest.mark.parametrize(
    "text", ["", " ", "x", "-1", "+1", "1.0", "1e3", " 1", "1 ", "1\n", "٣", "²", "9" * 19, "0x1"]
)
def test_a_malformed_version_is_ignored(text: str) -> None:
    assert sse.resumes_after(text, None) == 0
    assert sse.resumes_after(None, text) == 0


@given(st.none() | st.text(), st.none() | st.text())
def test_any_texts_can_be_read(header: Any, after: Any) -> None:
    assert 0 <= sse.resumes_after(header, after) < 10**18
