"""The rules of reading output: offsets, bodies, headers and events."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core.job import JobId
from asyncjobs.core.output import Chunk, OutputPart, StreamKind
from asyncjobs.errors import InvalidQuery
from asyncjobs.http.output import (
    BEYOND,
    StreamAddress,
    body_of,
    by_epoch,
    content_type_of,
    cursor_at,
    etag_of_portion,
    event_headers_of,
    events_of,
    headers_of,
    least_cursor,
    output_query_of,
    portion_of,
)
from asyncjobs.records.output_hub import Portion

ADDRESS = StreamAddress.of(JobId("job_1"), "output")
NOW = datetime(2026, 11, 30, tzinfo=UTC)

CHUNKS = (Chunk(0, 2, 1, b'1,"a,]"'), Chunk(2, 1, 1, b"[3]"), Chunk(3, 1, 2, b"{}"))


def part(*chunks: Chunk, kind: StreamKind = StreamKind.JSON, end: int | None = None) -> OutputPart:
    last = chunks[-1]
    return OutputPart(kind, chunks, last.end if end is None else end, last.epoch)


def parsed(events: bytes) -> list[tuple[str, str]]:
    """Return the types and the data of events, by the rules of HTML, section 9.2.6."""
    found: list[tuple[str, str]] = []
    for block in events.decode().split("\n\n")[:-1]:
        fields = [line.partition(":")[::2] for line in block.split("\n")]
        [kind] = [value.removeprefix(" ") for name, value in fields if name == "event"]
        data = [value.removeprefix(" ") for name, value in fields if name == "data"]
        found.append((kind, "\n".join(data)))
    return found


class TestOffsets:
    @given(st.lists(st.tuples(st.integers(0, BEYOND), st.integers(0, 999_999)), min_size=2))
    def test_they_sort_as_the_positions_do(self, places: list[tuple[int, int]]) -> None:
        positions = sorted(position for position, _ in places)
        epochs = sorted(epoch for _, epoch in places)
        offsets = [ADDRESS.offset(*place) for place in zip(positions, epochs, strict=True)]
        assert sorted(offsets) == offsets
        assert [ADDRESS.position(offset) for offset in offsets] == positions

    def test_they_have_no_character_with_a_meaning_in_urls(self) -> None:
        assert not set(ADDRESS.offset(7, 1)) & set(",&=?/")

    @pytest.mark.parametrize("other", [("job_2", "output"), ("job_1", "log")])
    def test_those_of_another_stream_are_refused(self, other: tuple[str, str]) -> None:
        offset = StreamAddress.of(JobId(other[0]), other[1]).offset(1, 1)
        with pytest.raises(InvalidQuery, match="another stream"):
            output_query_of(f"offset={offset}", ADDRESS)

    @pytest.mark.parametrize(
        "query",
        [
            "offset=",
            "offset=0",
            "offset=-2",
            "offset=NOW",
            "offset=a&offset=b",
            "offset=-1&offset=-1",
            f"offset={ADDRESS.offset(1, 1)}%0A",
            f"offset={ADDRESS.offset(1, 1)},",
            "live=sse",
            "live=long-poll",
            "offset=-1&live=",
            "offset=-1&live=SSE",
            "&".join(["a=b"] * 60),
        ],
    )
    def test_others_are_refused(self, query: str) -> None:
        with pytest.raises(InvalidQuery):
            output_query_of(query, ADDRESS)

    @given(st.text())
    def test_any_query_is_parsed_or_refused(self, query: str) -> None:
        for text in (query, f"offset={query}", f"offset=-1&cursor={query}"):
            with suppress(InvalidQuery):
                output_query_of(text, ADDRESS)

    def test_a_start_and_an_end_have_names(self) -> None:
        assert output_query_of("", ADDRESS) == (0, None, None)
        assert output_query_of("offset=-1&live=sse&cursor=7&x=y", ADDRESS) == (0, "sse", 7)
        assert output_query_of("offset=now&cursor=x", ADDRESS) == (None, None, None)


class TestPortions:
    def test_they_begin_at_the_position(self) -> None:
        portion = portion_of(part(*CHUNKS), 1, ended=False)
        assert body_of(portion) == b'["a,]",[3],{}]'
        assert (portion.end, portion.epoch, portion.up_to_date, portion.closed) == (
            4, 2, True, False
        )  # fmt: skip

    def test_each_has_the_items_of_one_attempt(self) -> None:
        first, second = by_epoch(portion_of(part(*CHUNKS), 0, ended=True))
        assert (body_of(first), first.end, first.epoch) == (b'[1,"a,]",[3]]', 3, 1)
        assert (first.up_to_date, first.closed) == (False, False)
        assert (body_of(second), second.position, second.end) == (b"[{}]", 3, 4)
        assert (second.epoch, second.up_to_date, second.closed) == (2, True, True)

    def test_a_part_of_a_stream_is_not_its_end(self) -> None:
        portion = portion_of(part(*CHUNKS, end=9), 0, ended=True)
        assert (portion.up_to_date, portion.closed) == (False, False)

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_stream_that_does_not_exist_is_empty(self, *, ended: bool) -> None:
        portion = portion_of(None, 0, ended=ended)
        assert (portion.kind, portion.end, portion.epoch) == (None, 0, 0)
        assert (portion.up_to_date, portion.closed) == (True, ended)
        assert [*by_epoch(portion)] == [portion]

    def test_their_etags_differ_if_anything_differs(self) -> None:
        chunk = Chunk(0, 1, 1, b"x")
        portions = [
            portion_of(part(chunk, kind=StreamKind.TEXT), 0, ended=False),
            portion_of(part(chunk, kind=StreamKind.TEXT), 0, ended=True),
            portion_of(part(chunk, kind=StreamKind.TEXT, end=2), 0, ended=False),
            portion_of(part(chunk, kind=StreamKind.TEXT), 1, ended=False),
            portion_of(part(chunk, kind=StreamKind.BYTES), 0, ended=False),
            portion_of(part(Chunk(0, 2, 1, b"xy"), kind=StreamKind.TEXT), 0, ended=False),
        ]
        assert len({etag_of_portion(one) for one in portions}) == len(portions)


class TestHeaders:
    def test_they_describe_the_portion(self) -> None:
        portion = portion_of(part(Chunk(0, 3, 2, b"abc"), kind=StreamKind.TEXT), 0, ended=True)
        headers = dict(headers_of(ADDRESS, portion, 7))
        assert headers["Stream-Next-Offset"] == ADDRESS.offset(3, 2)
        assert (headers["Stream-Epoch"], headers["Stream-Kind"]) == ("2", "text")
        assert headers["Stream-Up-To-Date"] == headers["Stream-Closed"] == "true"
        assert "Stream-Cursor" not in headers

    def test_an_open_stream_that_is_followed_has_a_cursor(self) -> None:
        headers = dict(headers_of(ADDRESS, portion_of(None, 0, ended=False), 7))
        assert headers["Stream-Cursor"] == "7"
        assert not {"Stream-Kind", "Stream-Closed"} & headers.keys()

    def test_each_kind_has_its_media_type(self) -> None:
        assert [content_type_of(kind) for kind in StreamKind] == [
            "application/json", "text/plain; charset=utf-8", "application/octet-stream"
        ]  # fmt: skip

    @pytest.mark.parametrize("kind", [None, *StreamKind])
    def test_events_of_bytes_are_encoded(self, kind: StreamKind | None) -> None:
        headers = event_headers_of(kind)
        assert len({name for name, _ in headers}) == len(headers)
        encoding = dict(headers).get("Stream-SSE-Data-Encoding")
        assert encoding == ("base64" if kind is StreamKind.BYTES else None)

    def test_browsers_neither_render_nor_embed_a_body(self) -> None:
        for headers in (
            headers_of(ADDRESS, portion_of(None, 0, ended=True)),
            event_headers_of(None),
        ):
            found = dict(headers)
            assert found["X-Content-Type-Options"] == "nosniff"
            assert found["Cross-Origin-Resource-Policy"] == "same-origin"
            assert found["Content-Security-Policy"] == "default-src 'none'; sandbox"


class TestEvents:
    def test_control_data_follow_the_data_of_each_attempt(self) -> None:
        events = parsed(events_of(ADDRESS, portion_of(part(*CHUNKS), 0, ended=False), 5))
        assert [kind for kind, _ in events] == ["data", "control"] * 2
        values = [json.loads(data) for _, data in events]
        assert values[0::2] == [[1, "a,]", [3]], [{}]]
        assert values[1::2] == [
            {"streamNextOffset": ADDRESS.offset(3, 1), "streamEpoch": 1, "streamCursor": "5"},
            {
                "streamNextOffset": ADDRESS.offset(4, 2),
                "streamEpoch": 2,
                "streamCursor": "5",
                "upToDate": True,
            },
        ]

    def test_the_end_has_no_cursor(self) -> None:
        [(kind, data)] = parsed(events_of(ADDRESS, portion_of(None, 0, ended=True), 5))
        assert (kind, json.loads(data)) == (
            "control",
            {
                "streamNextOffset": ADDRESS.offset(0, 0),
                "streamEpoch": 0,
                "upToDate": True,
                "streamClosed": True,
            },
        )

    @given(st.text(min_size=1))
    def test_any_text_is_one_event_with_its_lines(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        chunk = Chunk(0, len(data), 1, data)
        events = parsed(
            events_of(ADDRESS, portion_of(part(chunk, kind=StreamKind.TEXT), 0, ended=False), 5)
        )
        expected = data.decode().replace("\r\n", "\n").replace("\r", "\n")
        assert [kind for kind, _ in events] == ["data", "control"]
        assert events[0][1] == expected
        assert json.loads(events[1][1]).get("streamText", events[0][1]) == data.decode()

    @given(st.binary(min_size=1))
    def test_any_bytes_come_back(self, data: bytes) -> None:
        chunk = Chunk(0, len(data), 1, data)
        events = parsed(
            events_of(ADDRESS, portion_of(part(chunk, kind=StreamKind.BYTES), 0, ended=False), 5)
        )
        assert b64decode(events[0][1], validate=True) == data


class TestCursors:
    def test_they_count_intervals_of_20_seconds(self) -> None:
        assert cursor_at(datetime(2024, 10, 9, 0, 1, tzinfo=UTC)) == 3
        cursors = [cursor_at(NOW + timedelta(seconds=20 * place)) for place in range(5)]
        assert all(later == earlier + 1 for earlier, later in pairwise(cursors))

    @given(st.integers(0, 10**15))
    def test_a_client_never_gets_the_one_that_it_has(self, known: int) -> None:
        assert cursor_at(NOW, least_cursor(NOW, known)) > known

    def test_an_old_one_is_replaced_by_that_of_the_time(self) -> None:
        for known in (None, cursor_at(NOW) - 1):
            assert cursor_at(NOW, least_cursor(NOW, known)) == cursor_at(NOW)


def test_a_portion_without_chunks_has_the_body_of_its_kind() -> None:
    empty: dict[StreamKind, Any] = {
        StreamKind.JSON: b"[]",
        StreamKind.TEXT: b"",
        StreamKind.BYTES: b"",
    }
    for kind, body in empty.items():
        assert body_of(Portion(kind, 0, (), 0, 0, 0, up_to_date=True, closed=False)) == body
