"""The I/O-free rules of the client: events, pauses, answers, repeated requests, outcomes."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.client.answers import (
    Monitor,
    MonitorKind,
    events_url,
    origin_of,
    read_status,
    read_submission,
    version_of,
)
from asyncjobs.client.base import RepeatedRequest, outcome_of
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import (
    AccessRefused,
    ClientError,
    NotAJob,
    NotJson,
    RemoteJobCancelled,
    RemoteJobFailed,
    RequestRefused,
    ServerUnreachable,
)
from asyncjobs.client.events import EventParser, ServerEvent
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Ask,
    Broken,
    End,
    Hopeless,
    Opened,
    Wait,
    Woke,
)
from asyncjobs.client.follower import Following
from asyncjobs.client.pace import HeldReadPace, backoff, retry_after
from asyncjobs.core.status import JobStatus

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


def test_empty_lines_of_data_count_as_held() -> None:
    parser = EventParser()
    parser.feed(b"data\n" * 1_000)
    assert parser.held >= 1_000
    assert len(parser.feed(b"\n")) == 1
    assert parser.held == 0


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
        # One day at most: a clock cannot wait until the year 9999.
        ({"retry-after": "999999999"}, 86_400),
        (
            {
                "date": "Tue, 06 Jan 2026 10:00:00 GMT",
                "retry-after": "Fri, 31 Dec 9999 23:59:59 GMT",
            },
            86_400,
        ),
    ],
)
def test_retry_after_is_read_in_seconds_or_as_a_date(headers: dict[str, str], pause: float) -> None:
    assert retry_after(headers) == pause


@given(st.integers(1, 50), st.none() | st.floats(0, 1000), st.integers())
def test_a_pause_after_failures_is_bounded_and_at_least_retry_after(
    failures: int, told: float | None, seed: int
) -> None:
    pause = backoff(failures, told, Random(seed))  # noqa: S311  # only for pauses
    assert max(0.25, told or 0) <= pause <= max(30, told or 0)


def test_held_reads_have_no_pause_until_they_are_answered_too_fast() -> None:
    turns = HeldReadPace()
    assert [turns.pause(0, 2) for _ in range(7)] == [0, 0, 0, 0, 0, 2, 2]
    # With pauses kept, the client polls at the server's interval, not faster.
    assert [turns.pause(at, 2) for at in (2, 4, 6)] == [2, 2, 2]
    assert turns.pause(60, 2) == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [('"7"', 7), ('W/"7"', 7), ("7", 7), ('"abc"', None), ("", None), (None, None)],
)
def test_a_version_is_the_number_in_an_etag_or_id(text: str | None, version: int | None) -> None:
    assert version_of(text) == version


def test_the_default_port_is_part_of_an_origin() -> None:
    assert origin_of("https://A.example/x") == origin_of("https://a.example:443")
    assert origin_of("http://a.example") != origin_of("https://a.example")
    assert origin_of("http://a.example:99999") == "http://a.example:0"


def test_the_events_url_is_derived_from_the_status_url() -> None:
    assert events_url("http://h/api/jobs/job_1?x=1", "job_1") == "http://h/api/jobs/job_1/events"
    assert events_url("http://h/status?job=job_1", "job_1") is None


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
            Monitor("http://h/j/1", MonitorKind.JOB, events="http://h/e/1", job_id="1"),
        ),
        (
            answered(202, link='<n>; rel="next", </j/1>; rel="monitor"', operation_location="/o"),
            Monitor("http://h/j/1"),
        ),
        (
            answered(202, operation_location="http://h:80/o", location="/r"),
            Monitor("http://h:80/o", MonitorKind.OPERATION, result="http://h/r"),
        ),
        (
            answered(201, azure_asyncoperation="/o"),
            Monitor("http://h/o", MonitorKind.OPERATION),
        ),
        (answered(202, location="r/1"), Monitor("http://h/api/r/1", MonitorKind.LOCATION)),
    ],
    ids=["ours", "link", "operation", "azure", "location"],
)
def test_the_status_monitor_is_found_in_the_answer(answer: Answered, monitor: Monitor) -> None:
    assert read_submission(answer).monitor == monitor


@pytest.mark.parametrize(
    "link",
    [
        "</j/1>; rel=monitor",
        "</j/1>;rel=MONITOR",
        '</j/1>; title="a, b; c"; rel="monitor"',
        '</j/1>; rel="status monitor"; type="application/json"',
        '<a,b>; title="<x>; rel=monitor", </j/1> ; rel = "monitor"',
        '<<</j/1>; rel="monitor"',
    ],
)
def test_a_link_to_the_monitor_is_found_among_other_links(link: str) -> None:
    assert read_submission(answered(202, link=link)).monitor.status == "http://h/j/1"


@pytest.mark.parametrize(
    "link",
    [
        '</j/1>; rel="next"; title="monitor"',
        '</j/1>; rel="next"; rel="monitor"',
        '</j/1>; rel="monitors"',
        '</j/1, rel="monitor"',
        '</j/1>; rel="monitor',
        '</n>; rel="next", rel="monitor"',
        # Longer than 8 KB.
        f'</j/1>; rel="monitor"; title="{"x" * 8_192}"',
        "<" * 60_000,
        "<a>;" * 20_000,
        "<a>; rel" + " " * 60_000,
    ],
    ids=lambda link: link[:30],
)
def test_a_link_header_without_a_monitor_is_ignored(link: str) -> None:
    answer = answered(202, link=link, location="/r/1")
    assert read_submission(answer).monitor.kind is MonitorKind.LOCATION


CANCELLED = b'{"code": "job_cancelled"}'


@pytest.mark.parametrize(
    ("kind", "answer", "status"),
    [
        ("job", answered(200, b'{"jobId": "1", "status": "failed"}'), "failed"),
        ("unknown", answered(200, b'{"jobId": "1", "status": "pending"}'), "pending"),
        ("unknown", answered(200, b'{"status": "Running"}'), "processing"),
        ("operation", answered(200, b'{"status": "Provisioning"}'), "processing"),
        ("operation", answered(200, b'{"status": "Canceled"}'), "cancelled"),
        ("unknown", answered(202), "processing"),
        ("location", answered(202, b'{"jobId": "1", "status": "pending"}'), "pending"),
        ("unknown", answered(424, b'{"code": "disk_full"}'), "failed"),
        ("unknown", answered(410, CANCELLED), "cancelled"),
        ("location", answered(410, CANCELLED), "cancelled"),
        ("location", answered(204), "completed"),
        ("location", answered(409, b'{"title": "Conflict"}'), "failed"),
    ],
)
def test_the_status_is_read_in_each_protocol(kind: str, answer: Answered, status: str) -> None:
    assert read_status(answer, MonitorKind(kind))[1].status == status


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        ("1" + "0" * 400, 100),
        ("-1" + "0" * 400, 0),
        ("1e300", 100),
        ("41.9", 41),
        ("true", None),
        ('"41"', None),
    ],
)
@pytest.mark.parametrize(
    "document",
    [
        '{"jobId": "1", "status": "processing", "progress": %s}',
        '{"id": "1", "status": "Running", "percentComplete": %s}',
    ],
)
def test_any_progress_of_a_server_is_whole_percent(
    document: str, progress: str, percent: int | None
) -> None:
    answer = answered(200, (document % progress).encode())
    assert read_status(answer, MonitorKind.UNKNOWN)[1].progress == percent


@pytest.mark.parametrize(
    ("text", "batch"),
    [('{"total": 3}', {"total": 3}), ("null", None), ("[1]", None), ('"a"', None)],
)
def test_the_numbers_of_a_batch_are_those_of_the_document(text: str, batch: object) -> None:
    body = f'{{"jobId": "1", "status": "pending", "batch": {text}}}'.encode()
    assert read_status(answered(200, body), MonitorKind.UNKNOWN)[1].batch == batch


def test_title_tags_and_metadata_are_those_of_the_document() -> None:
    def read(described: str) -> tuple[object, ...]:
        body = f'{{"jobId": "1", "status": "pending", {described}}}'.encode()
        update = read_status(answered(200, body), MonitorKind.UNKNOWN)[1]
        return update.title, update.tags, update.metadata

    told = '"title": "Customers", "tags": ["customer:42", "a"], "metadata": {"file": "a.csv"}'
    assert read(told) == ("Customers", ("customer:42", "a"), {"file": "a.csv"})
    assert read('"title": null, "tags": [], "metadata": {}') == (None, (), {})
    assert read('"title": 5, "tags": {"a": 1}, "metadata": [1]') == (None, (), {})
    assert read('"tags": [1, "a"]') == (None, ("a",), {})


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5_000])
def test_numbers_that_python_cannot_represent_are_not_json(number: str) -> None:
    body = b'{"jobId": "1", "status": "completed", "result": %s}' % number.encode()
    with pytest.raises(NotJson):
        read_status(answered(200, body), MonitorKind.UNKNOWN)


ASK = Ask("POST", "http://h/api/exports", {"idempotency-key": "1"})
BUSY = answered(503, retry_after="7")


def repeat(*results: ActionResult) -> tuple[RepeatedRequest, list[float], End]:
    """Replay the results of a request until it ends; return the pauses between the attempts."""
    random = Random(1)  # noqa: S311  # only for pauses
    rule = RepeatedRequest(ASK, 30, random, credential=Credential(None, 0.0))
    step, now, left, pauses = rule.start(0), 0.0, list(results), list[float]()
    while not isinstance(step.then, End):
        if isinstance(step.then, Wait):
            pauses.append(step.then.seconds)
            now += step.then.seconds
            step = rule.receive(Woke(), now)
        else:
            assert step.then == ASK
            step = rule.receive(left.pop(0) if len(left) > 1 else left[0], now)
    return rule, pauses, step.then


@pytest.mark.parametrize("trouble", [Broken("cut"), Broken("no route", connected=False), Opened()])
def test_a_request_is_repeated_until_it_is_answered(trouble: ActionResult) -> None:
    done = answered(202)
    rule, pauses, end = repeat(trouble, BUSY, done)
    assert (end.error, rule.answer) == (None, done)
    assert pauses[1] == 7


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (BUSY, ServerUnreachable),
        (Broken("cut"), ServerUnreachable),
        (Hopeless(NotAJob("http://h", "nothing")), NotAJob),
        (answered(403), AccessRefused),
        (answered(422, b'{"error": "No."}'), RequestRefused),
    ],
)
def test_a_request_is_given_up_with_an_error(result: ActionResult, error: type[Exception]) -> None:
    _, pauses, end = repeat(result)
    assert type(end.error) is error
    assert sum(pauses) <= 30
    assert (pauses == []) is (error is not ServerUnreachable)


SURROGATE = b"\\ud800"


@pytest.mark.parametrize(
    "answer",
    [
        answered(200, b'{"jobId": "%s", "status": "cancelled"}' % SURROGATE),
        answered(200, b'{"jobId": "1", "status": "failed", "error": "%s"}' % SURROGATE),
        answered(400, b'{"detail": "%s"}' % SURROGATE),
        answered(404, b'{"error": {"message": "%s"}}' % SURROGATE),
    ],
    ids=["id", "error", "refused", "not-found"],
)
def test_the_message_of_every_error_can_be_encoded(answer: Answered) -> None:
    with pytest.raises(ClientError) as raised:
        outcome_of(read_status(answer, MonitorKind.UNKNOWN)[1], None)
    assert str(raised.value).encode()


@pytest.mark.parametrize("status", JobStatus)
def test_each_status_has_an_outcome(status: JobStatus) -> None:
    update = JobUpdate(status, result=7)
    errors = {JobStatus.FAILED: RemoteJobFailed, JobStatus.CANCELLED: RemoteJobCancelled}
    if status is JobStatus.COMPLETED:
        assert outcome_of(update, None) == 7
    else:
        with pytest.raises(errors.get(status, ValueError)):
            outcome_of(update, None)


def test_options_accept_seconds_or_a_timedelta() -> None:
    minute = timedelta(minutes=1)
    options = Following(timeout=minute, patience=minute, submit_for=60)
    assert options == Following(timeout=60, patience=60, submit_for=minute)
    assert Following(timeout=None).timeout is None
