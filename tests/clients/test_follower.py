"""The follower against scripted and generated servers, in simulated time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjobs.client.answers import Monitor, MonitorKind
from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import ClientError, JobTimeout, ServerUnreachable
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Opened,
    Read,
    Rule,
    Wait,
    Woke,
)
from asyncjobs.client.follower import Follower, Following, Transport

VECTORS = Path(__file__).parent / "vectors"
HOST = "http://jobs.example"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


@dataclass
class Scripted:
    """The server of a vector."""

    vector: dict[str, Any]
    asked: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    took: float = 0.0
    _stream: Iterator[ActionResult] = field(default_factory=lambda: iter(()))

    def perform(self, action: Ask | Read, now: float) -> ActionResult:
        if isinstance(action, Read):
            return next(self._stream)
        path = action.url.removeprefix(HOST)
        self.asked.append((path, now))
        replies = self.vector["server"][path]
        earlier = sum(one == path for one, _ in self.asked) - 1
        reply = replies[min(earlier, len(replies) - 1)]
        assert reply.get("expect", {}).items() <= action.headers.items()
        if reply.get("drop"):
            return Broken("the connection was closed")
        if action.stream and reply["headers"].get("content-type") == "text/event-stream":
            self._stream = self._pieces(reply)
            return Opened()
        body = reply.get("body", "").encode()
        return Answered(action.url, action.url, reply["status"], reply["headers"], body)

    def _pieces(self, reply: dict[str, Any]) -> Iterator[ActionResult]:
        for chunk in reply["chunks"]:
            yield Arrived(chunk.encode())
        yield Broken("the stream ended" if reply["end"] == "close" else "the connection was cut")


@dataclass
class Run:
    """The outcome of a rule, and the simulated seconds that it took."""

    updates: list[JobUpdate] = field(default_factory=list[JobUpdate])
    error: ClientError | None = None
    seconds: float = 0.0


def run(rule: Rule, server: Any, *, steps: int = 1000) -> Run:
    """Drive a rule to its end; fail if it takes more steps than that."""
    found = Run()
    step = rule.start(found.seconds)
    for _ in range(steps):
        found.updates += step.updates
        if isinstance(step.then, End):
            found.error = step.then.error
            return found
        if isinstance(step.then, Wait):
            assert step.then.seconds >= 0
            found.seconds += step.then.seconds
            event: ActionResult = Woke()
        else:
            event = server.perform(step.then, found.seconds)
            found.seconds += server.took
        step = rule.receive(event, found.seconds)
    raise AssertionError(f"no end after {steps} steps")


JOB = Monitor(HOST + "/jobs/job_1", MonitorKind.JOB, events=HOST + "/jobs/job_1/events")


def follow(server: Any, monitor: Monitor = JOB, *, not_before: float = 0, **options: Any) -> Run:
    """Follow a job to its end, with options of `Following`."""
    random = Random(1)  # noqa: S311  # only for pauses
    return run(Follower(monitor, Following(**options), random, not_before=not_before), server)


NAMES = sorted(path.stem for path in VECTORS.glob("*.json") if path.stem != "format")


@pytest.fixture(params=NAMES)
def vector(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_the_follower_yields_the_updates_and_the_end_of_each_vector(vector: dict[str, Any]) -> None:
    events = HOST + vector["eventsUrl"]
    monitor = Monitor(HOST + vector["statusUrl"], MonitorKind.JOB, events=events)
    found = follow(Scripted(vector), monitor)
    assert [
        {"status": one.status, "progress": one.progress, "version": one.version}
        for one in found.updates
    ] == vector["updates"]
    end = vector["end"]
    if "error" in end and "status" not in end:
        assert type(found.error).__name__ == end["error"]
    else:
        assert found.error is None
        assert end.items() <= found.updates[-1].document.items()


DISTURBANCES = ["drop", "503", "429", "500", "stale", "unchanged", "page", "cut", "silent"]


@dataclass
class Moody:
    """A server of asyncjobs behind a bad network; fails a test that polls too soon.

    `moods` disturb the first requests; later ones succeed, and the job ends.
    """

    moods: list[str]
    held: bool
    versions: int
    never_ends: bool = False
    polled: bool = False
    asked: int = 0
    took: float = 0.0
    now: float = 0.0
    earliest: float = 0.0
    _stream: list[ActionResult] = field(default_factory=list[ActionResult])
    _told: bool = False

    def perform(self, action: Ask | Read, now: float) -> ActionResult:
        self.now, self.took = now, 0.0
        if isinstance(action, Read):
            return self._piece()
        assert now >= self.earliest, "asked before Retry-After"
        mood = self.moods[self.asked] if self.asked < len(self.moods) else "well"
        self.asked += 1
        if mood == "drop":
            return Broken("no route", connected=False)
        if mood in {"503", "429", "500"}:
            pause = {"503": 7, "429": 3}.get(mood)
            return self._answer(action, int(mood), b"{}", pause=pause)
        if mood == "page":
            # Only instead of events: instead of a status it ends the following.
            return self._answer(action, 200 if action.stream else 502, b"<p>", html=True)
        if action.stream:
            self._stream = self._events(mood, int(action.headers.get("last-event-id", 0)))
            return Opened()
        return self._status(action, mood)

    @property
    def version(self) -> int:
        late = self.asked > len(self.moods) and not self.never_ends
        return self.versions if late else min(self.asked, self.versions - 1)

    def _document(self, version: int) -> bytes:
        status = "completed" if version == self.versions else "processing"
        return json.dumps({"jobId": "job_1", "status": status, "progress": version}).encode()

    def _status(self, ask: Ask, mood: str) -> ActionResult:
        version = max(1, self.version - 1) if mood == "stale" else self.version
        known = ask.headers.get("if-none-match") == f'"{version}"'
        more = {"etag": f'"{version}"'}
        waits = self.held and "prefer" in ask.headers
        if waits:
            more["preference-applied"] = ask.headers["prefer"]
            self.took = float(ask.headers["prefer"].removeprefix("wait=")) * known
        pause = None if version == self.versions else 2
        if known:
            return self._answer(ask, 304, b"", pause=pause, held=waits, more=more)
        return self._answer(ask, 200, self._document(version), pause=pause, held=waits, more=more)

    def _answer(
        self,
        ask: Ask,
        status: int,
        body: bytes,
        *,
        pause: int | None = None,
        held: bool = False,
        html: bool = False,
        more: dict[str, str] | None = None,
    ) -> Answered:
        headers = {"content-type": "text/html" if html else "application/json", **(more or {})}
        if pause is not None:
            headers["retry-after"] = str(pause)
        # After the first read the client changes its transport: no second poll. A held read
        # is followed by the next one.
        if pause is not None and not held and (status != 200 or self.polled):
            self.earliest = self.now + pause
        return Answered(ask.url, ask.url, status, headers, body)

    def _events(self, mood: str, after: int) -> list[ActionResult]:
        versions = list(range(after + 1, self.version + 1))
        if mood == "stale":
            versions = [version for one in versions for version in (one, max(1, one - 1), one)]
        text = b"retry: 5000\n\n" + b"".join(
            b"id: %d\ndata: %s\n\n" % (one, self._document(one)) for one in versions
        )
        self._told = mood != "silent"
        if mood == "silent":
            return []
        if mood == "cut":
            text = text[: max(13, len(text) * 2 // 3)]
        return [Arrived(text[at : at + 37]) for at in range(0, len(text), 37)]

    def _piece(self) -> ActionResult:
        if self._stream:
            return self._stream.pop(0)
        self.took = 45.0
        if self._told:
            self.earliest = self.now + self.took + 5
        return Broken("the stream ended")


transports = st.lists(st.sampled_from(Transport), unique=True, min_size=1)
moods = st.lists(st.sampled_from(DISTURBANCES), max_size=12)


@settings(max_examples=300)
@given(transports, moods, st.booleans(), st.integers(1, 12))
def test_versions_increase_and_the_end_comes_once_after_any_disturbances(
    chosen: list[Transport], moods: list[str], held: bool, versions: int
) -> None:
    server = Moody(moods, held, versions)
    server.polled = chosen == [Transport.POLL]
    found = follow(server, transports=chosen)
    assert found.error is None
    seen = [one.version for one in found.updates]
    assert seen == sorted({one for one in seen if one is not None})
    ended = [one.status.terminal for one in found.updates]
    assert ended == [False] * (len(ended) - 1) + [True]
    assert seen[-1] == versions


@settings(max_examples=100)
@given(transports, moods, st.booleans(), st.floats(0, 600))
def test_a_job_that_does_not_end_is_followed_until_the_timeout(
    chosen: list[Transport], moods: list[str], held: bool, timeout: float
) -> None:
    server = Moody(moods, held, 12, never_ends=True)
    found = follow(server, timeout=timeout, transports=chosen)
    assert isinstance(found.error, JobTimeout)
    assert timeout <= found.seconds <= timeout + 46
    # The burst of held reads, one read every two seconds, and the reads lost to the moods.
    assert server.asked <= timeout / 2 + len(moods) + 10


def test_a_quiet_job_costs_a_held_read_each_25_seconds() -> None:
    server = Moody([], held=True, versions=2, never_ends=True)
    found = follow(server, timeout=1000, transports=[Transport.HOLD])
    assert isinstance(found.error, JobTimeout)
    assert server.asked == 1 + 1000 / 25


def test_an_unreachable_server_is_given_up_when_patience_is_over() -> None:
    found = follow(Moody(["drop"] * 1000, held=True, versions=2), patience=timedelta(minutes=1))
    assert isinstance(found.error, ServerUnreachable)
    assert 60 <= found.seconds <= 120


@dataclass
class Overloaded:
    """Answers every request with 503 and a `Retry-After`."""

    pause: str
    asked: int = 0
    took: float = 0.0

    def perform(self, action: Ask | Read, _now: float) -> ActionResult:
        assert isinstance(action, Ask)
        self.asked += 1
        return Answered(action.url, action.url, 503, {"retry-after": self.pause})


@pytest.mark.parametrize("transport", list(Transport))
def test_a_retry_after_beyond_the_patience_gives_the_server_up_at_once(
    transport: Transport,
) -> None:
    server = Overloaded("86400")
    found = follow(server, patience=300, transports=[transport])
    assert isinstance(found.error, ServerUnreachable)
    assert (server.asked, found.seconds) == (1, 0)


def test_a_retry_after_within_the_patience_is_waited_for() -> None:
    server = Overloaded("100")
    found = follow(server, patience=300, transports=[Transport.POLL])
    assert isinstance(found.error, ServerUnreachable)
    assert (server.asked, found.seconds) == (4, 300)


def test_the_own_pauses_of_the_client_end_when_the_patience_is_over() -> None:
    found = follow(Moody(["drop"] * 1000, held=True, versions=2), patience=50)
    assert isinstance(found.error, ServerUnreachable)
    assert found.seconds == pytest.approx(50)


@dataclass
class Recorded:
    """Refuses every request and records it."""

    asks: list[tuple[Ask, float]] = field(default_factory=list[tuple[Ask, float]])
    took: float = 0.0

    def perform(self, action: Ask | Read, now: float) -> ActionResult:
        assert isinstance(action, Ask)
        self.asks.append((action, now))
        return Broken("no route", connected=False)


@pytest.mark.parametrize("transport", list(Transport))
def test_no_request_lasts_longer_than_the_timeout(transport: Transport) -> None:
    server = Recorded()
    found = follow(server, timeout=20, transports=[transport])
    assert isinstance(found.error, JobTimeout)
    assert [ask for ask, now in server.asks if now + max(ask.total, ask.timeout) > 20] == []


def test_a_timeout_names_the_last_failure_if_the_state_is_unknown() -> None:
    found = follow(Recorded(), timeout=5)
    sentence = "The job had not ended after 5 s; its state is unknown (no route)."
    assert str(found.error) == sentence


@pytest.mark.parametrize(
    ("kind", "transports", "pause"),
    [
        (MonitorKind.OPERATION, tuple(Transport), 7),
        (MonitorKind.LOCATION, tuple(Transport), 7),
        (MonitorKind.JOB, (Transport.POLL,), 7),
        (MonitorKind.JOB, tuple(Transport), 0),
    ],
)
def test_the_first_poll_waits_for_the_202s_retry_after(
    kind: MonitorKind, transports: tuple[Transport, ...], pause: float
) -> None:
    server = Recorded()
    monitor = JOB if kind is MonitorKind.JOB else Monitor(JOB.status, kind)
    follow(server, monitor, not_before=7, timeout=20, transports=transports)
    assert server.asks[0][1] == pause
