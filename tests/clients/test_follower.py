"""The follower against servers that are written down, or made up, in no time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import ClientError
from asyncjobs.client.exchange import (
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Event,
    Opened,
    Read,
    Rule,
    Wait,
    Woke,
)
from asyncjobs.client.follower import Follower, Following
from asyncjobs.client.monitors import Kind, Monitor

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
    _stream: Iterator[Event] = field(default_factory=lambda: iter(()))

    def perform(self, action: Ask | Read, now: float) -> Event:
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

    def _pieces(self, reply: dict[str, Any]) -> Iterator[Event]:
        for chunk in reply["chunks"]:
            yield Arrived(chunk.encode())
        yield Broken("the stream ended" if reply["end"] == "close" else "the connection was cut")


@dataclass
class Run:
    """What a following has come to, and how long it would have taken."""

    updates: list[JobUpdate] = field(default_factory=list[JobUpdate])
    error: ClientError | None = None
    seconds: float = 0.0


def run(rule: Rule, server: Any, *, steps: int = 1000) -> Run:
    """Drive a rule to its end; fails if it takes more steps than that."""
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
            event: Event = Woke()
        else:
            event = server.perform(step.then, found.seconds)
        step = rule.receive(event, found.seconds)
    raise AssertionError(f"no end after {steps} steps")


def follower_of(vector: dict[str, Any], options: Following | None = None) -> Follower:
    monitor = Monitor(HOST + vector["statusUrl"], Kind.JOB, events=HOST + vector["eventsUrl"])
    return Follower(monitor, options or Following(), Random(1))  # noqa: S311  # pauses


NAMES = sorted(path.stem for path in VECTORS.glob("*.json") if path.stem != "format")


@pytest.fixture(params=NAMES)
def vector(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_a_vector_is_told_as_it_says(vector: dict[str, Any]) -> None:
    found = run(follower_of(vector), Scripted(vector))
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
