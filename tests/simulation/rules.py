"""Rules for a simulated world in addition to those of the chaos tests.

In a simulation every write is certain, and so are the times at which handlers started and stopped
and machines were in trouble (cut off, paused, stopping, killed). This allows stricter rules.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tests.chaos import checker
from tests.chaos.checker import TERMINAL, Life, Lives
from tests.chaos.recording import Event

#: Deadlines are enforced by machines that may all be away for some time, or be slow.
LATE_SECONDS = 180.0

#: Handlers that ignore stop requests: another attempt may start beside them.
STUBBORN = frozenset({"swallow", "swallow all"})

#: How long a trouble may have effects: a lease, and some slow calls.
AFTERMATH_SECONDS = 45.0


def violations(history: Sequence[Event]) -> list[str]:
    """Return all violations in a simulated history, as sentences."""
    found = checker.violations(history)
    found += [event["words"] for event in history if event["what"] == "wrong"]
    lives = checker.lives_of(history)
    found += _suspects_side_by_side(history, lives)
    troubles = _Troubles(history)
    for life in lives.values():
        writes = _with_acceptance(sorted(life.written, key=lambda write: int(write["revision"])))
        pairs = [*pairwise(writes)]
        runs = _runs(history, life)
        for rule in (_fences, _leases, _releases):
            found += [f"{life.job}: {wrong}" for wrong in rule(pairs)]
        found += [f"{life.job}: {wrong}" for wrong in _losses(pairs, troubles)]
        found += [f"{life.job}: {wrong}" for wrong in _deadline(life)]
        found += [f"{life.job}: {wrong}" for wrong in _side_by_side(runs, pairs)]
    return found


def _with_acceptance(writes: list[Event]) -> list[Event]:
    """Insert the state before the start of a job that was stored as started."""
    if not writes or writes[0]["expected"] != 0 or writes[0]["status"] != "processing":
        return writes
    [started, *_] = writes
    before = {"revision": started["revision"] - 1, "attempt": started["attempt"] - 1}
    return [{**started, **before, "status": "pending", "token": None, "until": None}, *writes]


class _Troubles:
    """When each machine was in trouble."""

    def __init__(self, history: Sequence[Event]) -> None:
        self._times: dict[int, list[tuple[float, float]]] = defaultdict(list)
        begun: dict[tuple[int, str], float] = {}
        for event in history:
            match event["what"]:
                case "trouble" if event["kind"] != "stopping":  # these must do no harm
                    begun.setdefault((event["pid"], event["kind"]), event["at"])
                case "calm":
                    since = begun.pop((event["pid"], event["kind"]), event["at"])
                    self._times[event["pid"]].append((since, event["at"]))
                case _:
                    pass
        for (pid, _), since in begun.items():
            self._times[pid].append((since, math.inf))

    def explain(self, pid: int, begin: float, end: float) -> bool:
        """Return whether a machine was in trouble between two moments, or shortly before."""
        return any(
            since <= end and begin <= until + AFTERMATH_SECONDS for since, until in self._times[pid]
        )


def _fences(pairs: Sequence[tuple[Event, Event]]) -> Iterator[str]:
    """Each start makes the next attempt; no other move does."""
    for before, after in pairs:
        starts = before["status"] == "pending" and after["status"] == "processing"
        if after["attempt"] != before["attempt"] + starts:
            yield f"attempt {before['attempt']} was followed by {after['attempt']}"
        if after["revision"] != before["revision"] + 1 and after["expected"] != before["revision"]:
            yield f"revision {before['revision']} was followed by {after['revision']}"


def _leases(pairs: Sequence[tuple[Event, Event]]) -> Iterator[str]:
    """An attempt keeps its token; only its own machine ends it before its lease has lapsed."""
    holder: int | None = None
    for before, after in pairs:
        if before["status"] == "pending" and after["status"] == "processing":
            holder = after["pid"]
            if after["token"] is None or after["until"] <= after["at"] - AFTERMATH_SECONDS:
                yield f"attempt {after['attempt']} began without a lease"
        if before["status"] != "processing":
            continue
        if after["status"] == "processing":
            if after["token"] != before["token"]:
                yield f"attempt {after['attempt']} has another token"
            continue
        lapsed = after["at"] >= min(before["until"], before["deadline"])
        if after["pid"] != holder and not lapsed:
            yield f"machine {after['pid']} ended attempt {after['attempt']} of machine {holder}"


def _losses(pairs: Sequence[tuple[Event, Event]], troubles: _Troubles) -> Iterator[str]:
    """An attempt is lost only if its machine was in trouble."""
    begun: Event | None = None
    for before, after in pairs:
        if before["status"] == "pending" and after["status"] == "processing":
            begun = after
        if after["losses"] == before["losses"]:
            continue
        if begun is None or not troubles.explain(begun["pid"], begun["at"], after["at"]):
            yield f"attempt {after['attempt']} was lost without a reason"


def _releases(pairs: Sequence[tuple[Event, Event]]) -> Iterator[str]:
    """A job is released up to its limit, and fails at the next release."""
    for before, after in pairs:
        if after["releases"] > after["max_releases"] and after["status"] != "failed":
            yield f"it was given back {after['releases']} times"
        if after["releases"] - before["releases"] not in {0, 1}:
            yield f"it was given back {before['releases']} times, then {after['releases']}"


def _deadline(life: Life) -> Iterator[str]:
    """A job that has not ended by its deadline ends soon after it."""
    final = life.final
    if final is None or final["status"] not in TERMINAL:
        return
    [*_, end] = sorted(life.written, key=lambda write: int(write["revision"]))
    if end["at"] > end["deadline"] + LATE_SECONDS:
        yield f"it ended {end['at'] - end['deadline']:.0f} s after its deadline"


def _runs(history: Sequence[Event], life: Life) -> list[tuple[Event, float]]:
    """Pair the starts of handlers with their stops; killed ones stop with the machine."""
    stops = {e["nonce"]: e["at"] for e in history if e["what"] == "stop" and e["job"] == life.job}
    killed = {
        event["pid"]: event["at"]
        for event in history
        if event["what"] == "trouble" and event["kind"] == "killed"
    }
    return [
        (begin, stops.get(begin["nonce"], killed.get(begin["pid"], math.inf)))
        for begin in life.begun
    ]


def _side_by_side(
    runs: Sequence[tuple[Event, float]], pairs: Sequence[tuple[Event, Event]]
) -> Iterator[str]:
    """Two handlers of a job run at a time only if the first one's lease lapsed meanwhile."""
    given_up = {
        before["attempt"]
        for before, after in pairs
        if before["status"] == "processing"
        and after["status"] != "processing"
        and after["at"] >= min(before["until"], before["deadline"])
    }
    for (one, stopped), (other, _) in pairwise(
        sorted(runs, key=lambda run: int(run[0]["attempt"]))
    ):
        explained = one["does"] in STUBBORN or one["attempt"] in given_up
        if other["at"] < stopped and not explained:
            yield f"attempt {other['attempt']} began while {one['attempt']} ran"


def _suspects_side_by_side(history: Sequence[Event], lives: Lives) -> Iterator[str]:
    """No suspect runs beside another one in a machine."""
    open_ones: dict[int, dict[str, str]] = defaultdict(dict)
    for event in history:
        match event["what"]:
            case "begin" if _is_suspect(lives[event["job"]], event["attempt"]):
                others = open_ones[event["pid"]]
                if others:
                    yield f"{event['job']} began beside {[*others.values()]}, and all are suspects"
                others[event["nonce"]] = event["job"]
            case "stop":
                open_ones[event["pid"]].pop(event["nonce"], None)
            case _:
                pass


def _is_suspect(life: Life, attempt: int) -> bool:
    return any(
        0 < write["losses"] >= write["max_deliveries"] - 1
        for write in life.written
        if write["status"] == "processing" and write["attempt"] == attempt
    )
