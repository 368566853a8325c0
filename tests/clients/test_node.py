"""npm's @azure/core-lro, eventsource and eventsource-parser, as published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from subprocess import Popen
from typing import Any

import pytest

Node = Callable[..., AbstractContextManager[Popen[str]]]

MODES = ["operation", "location"]


@pytest.fixture(scope="module")
def followed(served: Any, node: Node) -> dict[str, Any]:
    """Follow a job to each of its outcomes in each mode, all at once."""
    with node("lro.mjs", served.url) as process:
        found: dict[str, Any] = json.loads(process.communicate(timeout=120)[0])
    return found


@pytest.mark.parametrize("mode", MODES)
def test_core_lro_returns_the_result(followed: dict[str, Any], mode: str) -> None:
    ended = followed[f"double {mode}"]
    assert ended["result"] == {"doubled": 42}
    # The poller reads the result from its own URL last.
    assert ended["polls"][-1] == "result"
    assert ("operation" in ended["polls"]) is (mode == "operation")


@pytest.mark.parametrize("mode", MODES)
def test_core_lro_raises_the_message_and_code_of_a_failed_job(
    followed: dict[str, Any], mode: str
) -> None:
    ended = followed[f"full {mode}"]
    assert ended["status"] == "failed"
    assert "The disk is full." in ended["error"]
    assert "disk_full" in (ended["error"] if mode == "operation" else ended["code"])


def test_core_lro_distinguishes_cancelled_from_failed(followed: dict[str, Any]) -> None:
    assert followed["gate operation"]["status"] == "canceled"
    # With `Location` there are only success and failure.
    assert followed["gate location"]["status"] == "failed"
    assert followed["gate location"]["code"] == "job_cancelled"


def events_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def assert_whole(events: list[dict[str, Any]], job: Any) -> None:
    """Check that events lead from the waiting job to its end, with increasing versions."""
    assert (events[0]["status"], events[0]["progress"]) == ("processing", 40)
    assert (events[-1]["status"], events[-1]["result"]) == ("completed", {"opened": job.name})
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_eventsource_follows_a_job_to_its_end_and_stops(
    gate: Any, node: Node, proxy: Any, *, cut: bool
) -> None:
    with node("eventsource.mjs", proxy.through(gate.events_url)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if cut:
            proxy.cut()
        gate.release()
        *rest, closed = events_of(process.stdout)
    events = [json.loads(first), *rest]
    assert_whole(events, gate)
    assert closed == {"closed": 204}
    asked = [one.last_event_id for one in gate.served.requests(gate.events_path)]
    assert asked == [None, *[events[0]["id"]] * cut, events[-1]["id"]]


def test_eventsource_parser_reads_a_stream_to_its_end(gate: Any, node: Node) -> None:
    with node("parser.mjs", gate.events_url) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        gate.release()
        events = [json.loads(first), *events_of(process.stdout)]
    assert_whole(events, gate)
