"""Checks a history: the notes of submitters, workers, readers and handlers of one run.

`violations` is a pure function. It knows the guarantees of a store, not its implementation. If
the outcome of a call is unknown, because its process was killed or its answer lost, other
evidence can show that the call took effect; the missing answer alone is never a violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from asyncjobs.core.lifecycle import TRANSITIONS
from tests.chaos.recording import Event, states_in

TERMINAL = frozenset({"completed", "failed", "cancelled"})

#: The statuses that one write may lead to, by status.
STEPS = frozenset(
    (before.value, after.value)
    for steps in TRANSITIONS.values()
    for before, afters in steps.items()
    for after in afters
)

#: Two states of a job are the same if these fields are equal.
SAME = ("status", "version", "revision", "attempt", "result", "error")


@dataclass
class Life:
    """The history of one job."""

    job: str
    final: Event | None = None
    #: The certain writes, and the possible ones.
    written: list[Event] = field(default_factory=list[Event])
    perhaps: list[Event] = field(default_factory=list[Event])
    #: (asked, answered, state) of each read, and of each write with an answer.
    seen: list[tuple[float, float, Event | None]] = field(
        default_factory=list[tuple[float, float, Event | None]]
    )
    taken: list[tuple[float, float, int]] = field(default_factory=list[tuple[float, float, int]])
    begun: list[Event] = field(default_factory=list[Event])
    ended: list[Event] = field(default_factory=list[Event])
    watched: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def at(self, revision: int) -> Event | None:
        """Return the state at a revision; None if several are possible."""
        for writes in (self.written, self.perhaps):
            states = [write for write in writes if write["revision"] == revision]
            if states:
                return states[0] if len(states) == 1 else None
        return None

    def before(self, write: Event) -> Event | None:
        """Return the state that a write replaced, or None if it is unknown."""
        return self.at(write["expected"])


class Lives(dict[str, Life]):
    """The known facts about each job."""

    def __missing__(self, job: str) -> Life:
        self[job] = Life(job)
        return self[job]


def violations(history: Sequence[Event]) -> list[str]:
    """Return all violations in a history, as sentences."""
    accepted = [event for event in history if event["what"] == "accepted"]
    lives = lives_of(history)
    found = [f"the key {key} made {n} jobs" for key, n in _twins(accepted)]
    for job in dict.fromkeys(event["job"] for event in accepted):
        final = lives[job].final
        if final is None or final["status"] not in TERMINAL:
            found.append(f"{job}: accepted, but never ended")
    rules = (_one_writer, _steps, _no_hole, _end, _limits, _attempts, _reads, _watches, _takes)
    for life in lives.values():
        found += [f"{life.job}: {wrong}" for rule in rules for wrong in rule(life)]
    return found


def lives_of(history: Sequence[Event]) -> Lives:
    """Sort a history by job."""
    lives = Lives()
    answers = {event["call"]: event for event in history if event["what"] == "answered"}
    for event in history:
        match event["what"]:
            case "asked":
                _sort_writes(lives, event, answers.get(event["call"]))
            case "read" | "taken":
                _sort_answers(lives, event)
            case "begin":
                lives[event["job"]].begun.append(event)
            case "end":
                lives[event["job"]].ended.append(event)
            case "seen":
                lives[event["job"]].watched[event["watcher"]].append(event)
            case "final":
                lives[event["job"]].final = event
            case _:
                pass
    return lives


def _sort_writes(lives: Lives, asked: Event, answer: Event | None) -> None:
    for index, state in enumerate(asked["states"]):
        life, write = lives[state["job"]], {**state, "pid": asked["pid"], "at": asked["at"]}
        if answer is None:
            life.perhaps.append(write)
        elif answer["done"][index]:
            life.written.append(write)
            life.seen.append((asked["at"], answer["at"], write))


def _sort_answers(lives: Lives, event: Event) -> None:
    if event["what"] == "read":
        for job, state in states_in(event):
            lives[job].seen.append((event["asked"], event["at"], state))
    else:
        for job, revision in event["jobs"]:
            lives[job].taken.append((event["now"], event["until"], revision))


def _twins(accepted: Sequence[Event]) -> Iterator[tuple[str, int]]:
    """Find keys that named more than one job, or none the second time."""
    jobs: dict[str, set[str]] = defaultdict(set)
    for event in accepted:
        jobs[event["key"]].add(event["job"])
    yield from ((key, len(made)) for key, made in jobs.items() if len(made) > 1)


def _one_writer(life: Life) -> Iterator[str]:
    """Of all writes that expect the same revision, one succeeds."""
    for expected, times in Counter(write["expected"] for write in life.written).items():
        if times > 1:
            yield f"revision {expected} was replaced {times} times"


def _steps(life: Life) -> Iterator[str]:
    """A write is a legal move from the preceding state; none follows the end."""
    for after in life.written:
        before = life.before(after)
        if before is None:
            continue
        if (before["status"], after["status"]) not in STEPS:
            yield f"it was {before['status']}, and {after['status']} then"
        if after["version"] - before["version"] not in {0, 1}:
            yield f"version {before['version']} was followed by {after['version']}"
        if after["status"] != before["status"] and after["version"] == before["version"]:
            yield f"version {after['version']} is {before['status']} and {after['status']}"


def _no_hole(life: Life) -> Iterator[str]:
    """All writes form a chain from the first revision to the last."""
    if life.final is None:
        return
    links = [(write["expected"], write["revision"]) for write in life.written + life.perhaps]
    reached = {0}
    for expected, revision in sorted(links):
        if expected in reached:
            reached.add(revision)
    last = life.final["revision"]
    if last not in reached:
        yield f"nobody wrote revision {last}"
    for write in life.written:
        if write["revision"] not in reached or write["revision"] > last:
            yield f"revision {write['revision']} was written, and the end is {last}"
    end = life.at(last)
    if end is not None and not same(end, life.final):
        yield "it does not end as it was written"


def _end(life: Life) -> Iterator[str]:
    """A result belongs to the attempt that held the lease when it was written."""
    final = life.final
    if final is None or final["status"] != "completed":
        return
    result = final["result"]
    if result["attempt"] != final["attempt"]:
        yield f"the result is that of attempt {result['attempt']}, not {final['attempt']}"
    traces = [end for end in life.ended if end["nonce"] == result["nonce"]]
    if [end["attempt"] for end in traces] != [result["attempt"]]:
        yield "no attempt ended with that result"
    begun = _start(life, final["attempt"])
    end = life.at(final["revision"])
    before = None if end is None else life.before(end)
    if begun is None or end is None or before is None:
        return
    if before["token"] != begun["token"] or begun["pid"] != result["worker"]:
        yield "the outcome is not that of the attempt whose token was recorded"
    if end["pid"] != begun["pid"]:
        yield "another process than the attempt's wrote its outcome"


def _start(life: Life, attempt: int) -> Event | None:
    """Find the write that began an attempt, or None if it is unknown."""
    for write in life.written + life.perhaps:
        before = life.before(write)
        begins = write["status"] == "processing" and before and before["status"] == "pending"
        if begins and write["attempt"] == attempt:
            return write
    return None


def _limits(life: Life) -> Iterator[str]:
    """Losses and failures stay within the limits of the job."""
    final = life.final
    if final is None:
        return
    if final["losses"] > final["max_deliveries"]:
        yield f"it was delivered {final['losses']} times"
    if final["failures"] >= final["max_attempts"]:
        yield f"it was tried again after {final['failures']} failures"
    given_back = final.get("releases", 0) > final.get("max_releases", 0)
    lost = final["error"] == "worker_lost" and not given_back
    if lost and final["losses"] != final["max_deliveries"]:
        yield f"it was given up after {final['losses']} losses"


def _attempts(life: Life) -> Iterator[str]:
    """No attempt runs twice, and none is unknown to the store."""
    begun = Counter(event["attempt"] for event in life.begun)
    for attempt, times in begun.items():
        if times > 1:
            yield f"attempt {attempt} was begun {times} times"
    if life.final is None:
        return
    if begun and max(begun) > life.final["attempt"]:
        yield f"attempt {max(begun)} was begun, and {life.final['attempt']} recorded"


def _reads(life: Life) -> Iterator[str]:
    """A read after an answer returns no older state, and after the end no newer one.

    Of two overlapping reads, the second may return the older state.
    """
    answers = sorted(
        ((answered, state) for _, answered, state in life.seen if state is not None),
        key=lambda one: one[0],
    )
    known: Event | None = None
    index = 0
    for asked, _, state in sorted(life.seen, key=lambda one: one[0]):
        while index < len(answers) and answers[index][0] < asked:
            newer = answers[index][1]
            if known is None or newer["revision"] >= known["revision"]:
                known = newer
            index += 1
        if known is None:
            continue
        if state is None:
            yield "it was there, and then it was not"
        elif state["revision"] < known["revision"] or state["version"] < known["version"]:
            yield f"revision {state['revision']} was read after {known['revision']}"
        elif known["status"] in TERMINAL and not same(known, state):
            yield f"it had ended as {known['status']}, and then it was {state['status']}"


def _watches(life: Life) -> Iterator[str]:
    """A follower sees versions grow, and the end once, as the last state."""
    for events in life.watched.values():
        for before, after in pairwise(events):
            if after["version"] <= before["version"] or before["status"] in TERMINAL:
                yield f"version {after['version']} was shown after {before['version']}"
        if events[-1]["status"] not in TERMINAL:
            yield "who followed it never saw its end"


def _takes(life: Life) -> Iterator[str]:
    """A taken job is not taken again before it is due again."""
    for (_, until, revision), (now, _, again) in pairwise(sorted(life.taken)):
        if revision == again and now < until:
            yield f"revision {revision} was taken twice"


def same(one: Event, other: Event) -> bool:
    """Return whether two states of a job are the same."""
    return all(one[name] == other[name] for name in SAME)
