"""The rules of reading output against scripted servers, in simulated time."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, assert_never
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.client import (
    AccessRefused,
    AnswerTooLarge,
    ClientError,
    Following,
    JobNotFound,
    JobTimeout,
    NotAJob,
    NotJson,
    ReceivedItem,
    RequestRefused,
    ServerUnreachable,
    Transport,
)
from asyncjobs.client.credential import Credential
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Opened,
    Read,
    Wait,
    Woke,
)
from asyncjobs.client.output import OutputFollower, output_url
from asyncjobs.client.tokens import JobToken

URL = "http://jobs.example/api/jobs/job_1/output"
CUT = Broken("the connection was cut")


def portion(items: Any, offset: str, status: int = 200, **more: str) -> Answered:
    """Return the answer to a read."""
    kind = {"str": "text/plain; charset=utf-8", "bytes": "application/octet-stream"}
    media = kind.get(type(items).__name__, "application/json")
    body = items if isinstance(items, bytes) else items.encode() if isinstance(items, str) else None
    headers = {"content-type": media, "stream-next-offset": offset, "stream-epoch": "1"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return Answered(URL, URL, status, headers, json.dumps(items).encode() if body is None else body)


def refusal(status: int, **headers: str) -> Answered:
    document = {"error": "No.", "code": "no"}
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answered(URL, URL, status, found, json.dumps(document).encode())


def control(offset: str, epoch: int = 1, **more: Any) -> bytes:
    text = json.dumps({"streamNextOffset": offset, "streamEpoch": epoch, **more})
    return f"event: control\ndata:{text}\n\n".encode()


def data(text: str) -> bytes:
    return (
        b"event: data\n" + "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
    )


def stream(
    *pieces: bytes, kind: str | None = "json", end: ActionResult = CUT
) -> list[ActionResult]:
    """Return a stream of events: how it opens, its pieces, and how it ends."""
    named = {} if kind is None else {"stream-kind": kind}
    coded = {"stream-sse-data-encoding": "base64"} if kind == "bytes" else {}
    return [Opened(named | coded), *map(Arrived, pieces), end]


CLOSED = {"streamClosed": True, "upToDate": True}


@dataclass
class Run:
    items: list[ReceivedItem] = field(default_factory=list[ReceivedItem])
    asked: list[Ask] = field(default_factory=list[Ask])
    waits: list[float] = field(default_factory=list[float])
    error: ClientError | None = None
    seconds: float = 0.0

    @property
    def values(self) -> list[Any]:
        return [item.value for item in self.items]

    @property
    def queries(self) -> list[tuple[str, str | None]]:
        """The offset and the way of each request."""
        found = [parse_qs(urlsplit(ask.url).query) for ask in self.asked if ask.method == "GET"]
        return [(one["offset"][0], one.get("live", [None])[0]) for one in found]


def read(
    *answers: ActionResult | list[ActionResult],
    after: str = "-1",
    took: float = 0.0,
    token: JobToken | None = None,
    **options: Any,
) -> Run:
    """Read a stream of a server that gives these answers in order."""
    run, left = Run(), iter(answers)
    pieces: Iterator[ActionResult] = iter(())
    credential = Credential(token, 0.0)
    rule = OutputFollower(URL, after, Following(**options), Random(1), credential)  # noqa: S311
    step = rule.start(0.0)
    for _ in range(10_000):
        run.items += step.updates
        match step.then:
            case End(error):
                run.error = error
                return run
            case Wait(seconds):
                run.waits.append(seconds)
                run.seconds += seconds
                result: ActionResult = Woke()
            case Read():
                result = next(pieces)
            case Ask():
                run.asked.append(step.then)
                run.seconds += took
                answer = next(left)
                pieces = iter(answer) if isinstance(answer, list) else iter(())
                result = next(pieces) if isinstance(answer, list) else answer
            case _:
                assert_never(step.then)
        step = rule.receive(result, run.seconds)
    raise AssertionError("no end")


def test_events_yield_each_item_with_its_offset_and_epoch() -> None:
    run = read(stream(data('[1,{"a":2}]') + control("b"), data("[3]"), control("c", 2, **CLOSED)))
    assert run.items == [
        ReceivedItem(1, "-1,1", 1),
        ReceivedItem({"a": 2}, "b", 1),
        ReceivedItem(3, "c", 2),
    ]
    assert run.queries == [("-1", "sse")]
    assert run.error is None


def test_items_before_an_offset_within_a_portion_are_not_repeated() -> None:
    run = read(stream(data("[1,2,3]") + control("b", **CLOSED)), after="a,2")
    assert run.items == [ReceivedItem(3, "b", 1)]
    assert run.queries == [("a", "sse")]


def test_data_without_their_offset_are_read_again() -> None:
    run = read(
        stream(data("[1]") + control("b"), data("[2]")),
        stream(data("[2,3]") + control("d", **CLOSED)),
    )
    assert run.values == [1, 2, 3]
    assert run.queries == [("-1", "sse"), ("b", "sse")]


def test_text_keeps_its_lines_and_bytes_are_decoded() -> None:
    assert read(stream(data("a\n\n b") + control("b", **CLOSED), kind="text")).values == ["a\n\n b"]
    exact = control("b", **CLOSED, streamText="a\r\nb")
    assert read(stream(data("a\nb") + exact, kind="text")).values == ["a\r\nb"]
    text = b64encode(b"\0\xff").decode()
    assert read(stream(data(text) + control("b", **CLOSED), kind="bytes")).values == [b"\0\xff"]


def test_events_without_a_kind_need_a_read_for_the_media_type() -> None:
    run = read(
        stream(control("-1"), data("one"), kind=None),
        portion("one", "b"),
        stream(data("two") + control("c", **CLOSED), kind=None),
    )
    assert run.values == ["one", "two"]
    assert run.queries == [("-1", "sse"), ("-1", "long-poll"), ("b", "sse")]


def test_a_silent_stream_is_replaced_by_held_reads() -> None:
    run = read(
        stream(),
        portion([1], "b"),
        portion("", "b", 204),
        portion([2], "c", stream_closed="true"),
        took=1.0,
    )
    assert run.values == [1, 2]
    assert run.queries == [("-1", "sse"), *[(at, "long-poll") for at in ("-1", "b", "b")]]


def test_a_server_without_events_is_asked_by_held_reads() -> None:
    run = read(portion([1], "b"), portion([2], "c", stream_closed="true"))
    assert run.values == [1, 2]
    assert run.queries == [("-1", "sse"), ("b", "long-poll")]


def test_a_server_that_does_not_hold_reads_is_not_flooded() -> None:
    empty = [portion("", "b", 204)] * 20
    run = read(*empty, portion("", "b", 204, stream_closed="true"), transports=[Transport.HOLD])
    assert run.seconds >= 20


def test_polls_keep_the_pause_of_the_server() -> None:
    run = read(
        portion([1], "b", stream_up_to_date="true", retry_after="7"),
        portion([2], "c", stream_closed="true"),
        transports=[Transport.POLL],
    )
    assert run.waits == [7.0]
    assert run.queries == [("-1", None), ("b", None)]


def test_a_part_that_is_not_the_end_is_followed_by_the_next_at_once() -> None:
    run = read(
        portion([1], "b"),
        portion([2], "c", stream_closed="true"),
        transports=[Transport.POLL],
    )
    assert (run.values, run.waits) == ([1, 2], [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_no_sooner_than_it_says(status: int) -> None:
    run = read(refusal(status, retry_after="40"), stream(control("b", **CLOSED)))
    assert run.error is None
    assert run.seconds >= 40


def test_a_server_that_stays_away_is_unreachable() -> None:
    run = read(*[Broken("refused", connected=False)] * 100, patience=60)
    assert isinstance(run.error, ServerUnreachable)
    assert run.seconds <= 61


def test_the_timeout_ends_the_reading() -> None:
    run = read(*[stream(control("b"))] * 100, timeout=30)
    assert isinstance(run.error, JobTimeout)
    assert run.seconds == pytest.approx(30)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(400), RequestRefused),
        (refusal(401), AccessRefused),
        (refusal(403), AccessRefused),
        (refusal(404), JobNotFound),
        (refusal(410), JobNotFound),
        (Answered(URL, URL, 200, {"content-type": "text/html"}, b"<p>"), NotAJob),
        (Answered(URL, URL, 302, {}, b""), NotAJob),
        (portion("not JSON", "b", content_type="application/json"), NotJson),
        (stream(data("{") + control("b")), NotJson),
        (stream(b"event: control\ndata: {}\n\n"), NotAJob),
        (stream(control("\ud800")), NotAJob),
        (stream(data("[" * 100_000) + control("b")), NotJson),
        (portion([1], "\xe4"), NotAJob),
        (stream(data("?") + control("b"), kind="bytes"), NotAJob),
        (stream(*[b"data: " + b"x" * 2**24] * 5), AnswerTooLarge),
    ],
)
def test_other_answers_raise_a_precise_error(
    answer: ActionResult | list[ActionResult], error: type[ClientError]
) -> None:
    run = read(answer)
    assert type(run.error) is error
    assert run.items == []


def test_a_token_is_sent_and_renewed_when_it_is_refused() -> None:
    token = JobToken("old", "http://jobs.example/api/jobs/job_1/token", 900.0)
    renewed = Answered(token.url, token.url, 200, {}, b'{"token": "new"}')
    run = read(refusal(401), renewed, stream(control("b", **CLOSED)), token=token)
    assert run.error is None
    sent = [(ask.method, ask.headers["authorization"]) for ask in run.asked]
    assert sent == [("GET", "Bearer old"), ("POST", "Bearer old"), ("GET", "Bearer new")]


def test_the_url_is_below_the_status_url_and_escapes_the_name() -> None:
    status = "http://h/jobs/1?token=t#x"
    assert output_url(status, "output") == "http://h/jobs/1/output?token=t"
    assert output_url(status, "a/b ?") == "http://h/jobs/1/output/a%2Fb%20%3F?token=t"


def cut_anywhere(text: bytes, places: Iterable[int]) -> list[bytes]:
    begin, pieces = 0, list[bytes]()
    for place in sorted({one % len(text) for one in places}):
        pieces.append(text[begin:place])
        begin = place
    return [piece for piece in [*pieces, text[begin:]] if piece]


@given(
    st.lists(st.lists(st.integers(), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), max_size=6),
)
def test_no_item_is_lost_or_repeated_wherever_connections_are_cut(
    portions: list[list[int]], cuts: list[tuple[int, bool]]
) -> None:
    ends = [0]
    for one in portions:
        ends.append(ends[-1] + len(one))
    every = [item for one in portions for item in one]

    class Server:
        """Serves the items from the offset that is asked for, and cuts each connection."""

        def __init__(self) -> None:
            self.cuts = iter(cuts)

        def answer(self, ask: Ask) -> list[ActionResult]:
            given_ = parse_qs(urlsplit(ask.url).query)["offset"][0]
            begin = 0 if given_ == "-1" else int(given_)
            text = b""
            for end in ends[1:]:
                if end > begin:
                    more = CLOSED if end == ends[-1] else {}
                    text += data(json.dumps(every[begin:end])) + control(str(end), **more)
                    begin = end
            place, _ = next(self.cuts, (len(text), False))
            return stream(*cut_anywhere(text[: max(1, min(place, len(text)))], [place // 2, 7]))

    server, run = Server(), Run()
    rule = OutputFollower(URL, "-1", Following(), Random(1), Credential(None, 0.0))  # noqa: S311
    step, pieces = rule.start(0.0), iter(list[ActionResult]())
    while not isinstance(step.then, End):
        run.items += step.updates
        match step.then:
            case Wait(seconds):
                run.seconds += seconds
                result: ActionResult = Woke()
            case Read():
                result = next(pieces)
            case Ask():
                pieces = iter(server.answer(step.then))
                result = next(pieces)
            case _:
                assert_never(step.then)
        step = rule.receive(result, run.seconds)
    run.items += step.updates
    assert step.then.error is None
    assert run.values == every
