"""The small rules of the client: events from bytes, paces, and what an answer means."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.client.events import EventParser, ServerEvent
from asyncjobs.client.exchange import Answered
from asyncjobs.client.monitors import Kind, Monitor, events_of, origin_of, read_accepted
from asyncjobs.client.pace import Turns, backoff, told_pause
from asyncjobs.client.reading import version_of

words = st.text(
    st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=9
)
events = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), max_size=5)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


@given(events, st.sampled_from(["\n", "\r", "\r\n"]), st.lists(st.integers(0, 999)), st.booleans())
def test_events_are_read_from_any_pieces_and_line_ends(
    sent: list[tuple[str, list[str]]], end: str, places: list[int], bom: bool
) -> None:
    lines = [
        line
        for name, data in sent
        for line in (": a comment", f"id: {name}", *(f"data: {one}" for one in data), "")
    ]
    text = "".join(line + end for line in lines).encode()
    parser = EventParser()
    pieces = cut(b"\xef\xbb\xbf" * bom + text, places)
    found = [event for piece in pieces for event in parser.feed(piece)]
    assert found == [ServerEvent(name, "message", "\n".join(data)) for name, data in sent]
    assert parser.held <= 1


def test_the_fields_of_an_event_are_those_of_the_standard() -> None:
    parser = EventParser()
    stream = b"event: news\nid: 7\nretry: 1500\ndata:a\ndata\n\n"
    stream += b"id: x\0y\nretry: soon\nhue: red\n\ndata: b\n\n"
    assert parser.feed(stream) == [
        ServerEvent("7", "news", "a\n"),
        ServerEvent("7", "message", "b"),
    ]
    assert parser.retry == 1.5


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        (
            {
                "date": "Tue, 06 Jan 2026 10:00:00 GMT",
                "retry-after": "Tue, 06 Jan 2026 10:00:09 GMT",
            },
            9,
        ),
        (
            {
                "date": "Tue, 06 Jan 2026 10:00:00 GMT",
                "retry-after": "Tue, 06 Jan 2026 09:00:00 GMT",
            },
            0,
        ),
        ({"retry-after": "Tue, 06 Jan 2026 10:00:09 GMT"}, None),
    ],
)
def test_a_pause_is_told_in_seconds_or_as_a_date(headers: dict[str, str], pause: float) -> None:
    assert told_pause(headers) == pause


@given(st.integers(1, 50), st.none() | st.floats(0, 1000), st.integers())
def test_a_pause_after_failures_is_bounded_and_never_less_than_told(
    failures: int, told: float | None, seed: int
) -> None:
    pause = backoff(failures, told, Random(seed))  # noqa: S311  # pauses
    assert max(0.25, told or 0) <= pause <= max(30, told or 0)


def test_held_reads_follow_at_once_until_they_come_too_thick() -> None:
    turns = Turns()
    assert [turns.pause(0, 2) for _ in range(7)] == [0, 0, 0, 0, 0, 2, 2]
    # Who kept the pause is at the pace that was told, no faster.
    assert [turns.pause(at, 2) for at in (2, 4, 6)] == [2, 2, 2]
    assert turns.pause(60, 2) == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [('"7"', 7), ('W/"7"', 7), ("7", 7), ('"abc"', None), ("", None), (None, None)],
)
def test_a_version_is_the_number_in_an_etag_or_id(text: str | None, version: int | None) -> None:
    assert version_of(text) == version


def test_the_usual_port_is_part_of_an_origin() -> None:
    assert origin_of("https://A.example/x") == origin_of("https://a.example:443")
    assert origin_of("http://a.example") != origin_of("https://a.example")
    assert origin_of("http://a.example:99999") == "http://a.example:0"


def test_events_are_looked_for_beside_the_status_of_a_job_of_ours() -> None:
    assert events_of("http://h/api/jobs/job_1?x=1", "job_1") == "http://h/api/jobs/job_1/events"
    assert events_of("http://h/status?job=job_1", "job_1") is None


def answered(status: int, body: bytes = b"", **headers: str) -> Answered:
    url = "http://h/api/exports"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answered(url, url, status, named, body)


@pytest.mark.parametrize(
    ("answer", "monitor"),
    [
        (
            answered(
                202, b'{"statusUrl": "/j/1", "eventsUrl": "/e/1", "jobId": "1"}', location="/r"
            ),
            Monitor("http://h/j/1", Kind.JOB, events="http://h/e/1", job_id="1"),
        ),
        (
            answered(202, link='<n>; rel="next", </j/1>; rel="monitor"', operation_location="/o"),
            Monitor("http://h/j/1"),
        ),
        (
            answered(202, operation_location="http://h:80/o", location="/r"),
            Monitor("http://h:80/o", Kind.OPERATION, result="http://h/r"),
        ),
        (
            answered(201, azure_asyncoperation="/o"),
            Monitor("http://h/o", Kind.OPERATION),
        ),
        (answered(202, location="r/1"), Monitor("http://h/api/r/1", Kind.LOCATION)),
    ],
    ids=["ours", "link", "operation", "azure", "location"],
)
def test_where_to_follow_is_found_in_the_answer(answer: Answered, monitor: Monitor) -> None:
    assert read_accepted(answer).monitor == monitor
