"""Tests of the checker: histories written by hand, and broken stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import UnknownJob
from asyncjobs.protocols import Change
from asyncjobs.stores.memory import MemoryStore
from tests.chaos import application
from tests.chaos.application import Errand
from tests.chaos.checker import violations
from tests.chaos.recording import Event, Notes, Recorded, read_notes, state_of
from tests.waiting import PATIENCE_SECONDS

Story = list[Event]

ONE, TWO = 101, 102


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# histories written by hand


def state(revision: int, status: str, **more: Any) -> Event:
    """Describe the only job of a history at a revision."""
    plain: Event = {"version": revision, "attempt": int(revision > 1), "losses": 0, "failures": 0}
    plain |= {"worker": None, "token": None, "result": None, "error": None}
    plain |= {"max_deliveries": 3, "max_attempts": 1}
    return {**plain, "job": "j", "revision": revision, "status": status, **more}


def write(pid: int, at: float, state: Event, *, done: bool | None = True) -> Story:
    """Return the notes of one write; `done=None` if its outcome is unknown."""
    call = f"{pid}-{at}"
    states = [{**state, "expected": state["revision"] - 1}]
    asked = {"what": "asked", "pid": pid, "at": at, "call": call, "states": states}
    answer = {"what": "answered", "pid": pid, "at": at + 0.5, "call": call, "done": [done]}
    return [asked] if done is None else [asked, answer]


def read(asked: float, at: float, found: Event | None) -> Event:
    return {"what": "read", "asked": asked, "at": at, "jobs": ["j"], "states": [found]}


def trace(what: str, attempt: int = 1, nonce: str = "n1", worker: int = ONE) -> Event:
    return {"what": what, "job": "j", "attempt": attempt, "nonce": nonce, "worker": worker}


def seen(*states: Event) -> Story:
    return [{**state, "what": "seen", "watcher": 1} for state in states]


NEW = state(1, "pending")
BEGUN = state(2, "processing", token="t1", worker="host:101:x")
RESULT = {"attempt": 1, "nonce": "n1", "worker": ONE}
DONE = state(3, "completed", result=RESULT)
LOST = state(3, "pending", losses=1)
AGAIN = state(4, "processing", token="t2", worker="host:102:y", attempt=2)
DONE_TWICE = state(5, "completed", attempt=2, result={**RESULT, "attempt": 2, "nonce": "n2"})

ACCEPTED: Event = {"what": "accepted", "job": "j", "key": "k"}
SUBMITTED = [*write(100, 1, NEW), ACCEPTED]
TOOK = [*SUBMITTED, *write(ONE, 2, BEGUN), trace("begin")]
ENDED = [*TOOK, trace("end"), *write(ONE, 3, DONE)]


def final(state: Event) -> Event:
    return {"what": "final", **state}


SOUND: dict[str, Story] = {
    "completed": [*ENDED, final(DONE)],
    "answers are lost": [
        *SUBMITTED,
        *write(ONE, 2, BEGUN, done=None),
        trace("begin"),
        trace("end"),
        *write(ONE, 3, DONE, done=None),
        final(DONE),
    ],
    "who loses a race is told so": [*ENDED, *write(TWO, 3, LOST, done=False), final(DONE)],
    "a slow read brings the older state": [
        *ENDED,
        read(2.1, 9, BEGUN),
        read(2.2, 4, DONE),
        read(9.5, 9.6, DONE),
        final(DONE),
    ],
    "a read before the insert finds nothing": [read(0, 0.5, None), *ENDED, final(DONE)],
    "versions are skipped by who follows": [*ENDED, *seen(NEW, DONE), final(DONE)],
    "a job that comes up again is taken again": [
        *[{"what": "taken", "now": now, "until": now + 5, "jobs": [["j", 1]]} for now in (0, 5)],
        *ENDED,
        final(DONE),
    ],
    "another job that nobody accepted": [*ENDED, final(DONE), trace("begin") | {"job": "other"}],
}


@pytest.mark.parametrize("name", SOUND)
def test_a_correct_history_is_accepted(name: str) -> None:
    assert violations(SOUND[name]) == []


UNSOUND: dict[str, tuple[Story, str]] = {
    "never stored": ([ACCEPTED], "never ended"),
    "never ended": ([*TOOK, final(BEGUN)], "never ended"),
    "twins": ([*ENDED, final(DONE), ACCEPTED | {"job": "twin"}], "made 2 jobs"),
    "two winners": ([*ENDED, *write(TWO, 3.1, LOST), final(DONE)], "replaced 2 times"),
    "written after the end": ([*ENDED, *write(TWO, 4, AGAIN), final(AGAIN)], "processing then"),
    "a version is left out": (
        [*SUBMITTED, *write(ONE, 2, BEGUN | {"version": 3}), final(DONE)],
        "was followed by",
    ),
    "two states of one version": (
        [*SUBMITTED, *write(ONE, 2, BEGUN | {"version": 1}), final(DONE)],
        "is pending and processing",
    ),
    "a revision that nobody wrote": ([*TOOK, trace("end"), final(DONE)], "nobody wrote"),
    "a write that is gone": ([*ENDED, final(BEGUN)], "and the end is 2"),
    "another end than was written": (
        [*ENDED, final(DONE | {"result": {**RESULT, "worker": TWO}})],
        "not end as it was written",
    ),
    "the result of an attempt that lost the job": (
        [
            *TOOK,
            *write(TWO, 3, LOST),
            *write(TWO, 4, AGAIN),
            trace("begin", 2, "n2", TWO),
            trace("end"),
            *write(ONE, 5, state(5, "completed", attempt=2, result=RESULT)),
            final(state(5, "completed", attempt=2, result=RESULT)),
        ],
        "that of attempt 1, not 2",
    ),
    "a process writes what another has begun": (
        [
            *TOOK,
            *write(TWO, 3, LOST),
            *write(TWO, 4, AGAIN),
            trace("begin", 2, "n2", TWO),
            trace("end", 2, "n2", TWO),
            *write(ONE, 5, DONE_TWICE),
            final(DONE_TWICE),
        ],
        "whose token was recorded",
    ),
    "a result from nowhere": ([*TOOK, *write(ONE, 3, DONE), final(DONE)], "no attempt ended with"),
    "an attempt is made twice": ([*ENDED, trace("begin"), final(DONE)], "begun 2 times"),
    "an attempt that is not recorded": ([*ENDED, trace("begin", 2), final(DONE)], "and 1 recorded"),
    "too many losses": ([*ENDED, final(DONE | {"losses": 4})], "delivered 4 times"),
    "too many failures": ([*ENDED, final(DONE | {"failures": 1})], "tried again after 1"),
    "given up too soon": ([*ENDED, final(DONE | {"error": "worker_lost"})], "after 0 losses"),
    "an older state later": ([*ENDED, read(4, 5, BEGUN), final(DONE)], "2 was read after 3"),
    "gone": ([*ENDED, read(4, 5, None), final(DONE)], "then it was not"),
    "another end": (
        [*ENDED, read(4, 5, DONE | {"status": "failed", "revision": 4}), final(DONE)],
        "then it was failed",
    ),
    "a version shown again": ([*ENDED, *seen(BEGUN, NEW, DONE), final(DONE)], "was shown after"),
    "an end not shown": ([*ENDED, *seen(NEW, BEGUN), final(DONE)], "never saw its end"),
    "taken twice": (
        [
            *[{"what": "taken", "now": now, "until": 5, "jobs": [["j", 1]]} for now in (0, 1)],
            *ENDED,
            final(DONE),
        ],
        "taken twice",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_each_violation_in_a_history_is_reported(name: str) -> None:
    story, sentence = UNSOUND[name]
    assert any(sentence in found for found in violations(story)), violations(story)


# stores that are broken


class Blind(MemoryStore):
    """Writes whatever revision is expected."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return [await self._overwrite(change.job) for change in changes]

    async def _overwrite(self, job: Job) -> bool:
        done = False
        while not done:
            [stored] = await self.get([job.id])
            if stored is None:
                return False
            [done] = await super().replace([Change(job, stored.revision)])
        return done


class Generous(MemoryStore):
    """Hands out jobs twice."""

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken = await super().take(lanes, now=now, until=until, limit=limit)
        return [*taken, *taken]


class Forgetful(MemoryStore):
    """Reports that it stored the sixth job, and did not."""

    def __init__(self) -> None:
        super().__init__()
        self.inserts = 0

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        self.inserts += 1
        return jobs if self.inserts == 6 else await super().insert(jobs)


class Stale(MemoryStore):
    """Returns the final state of a job once, and then the job as it was inserted."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[JobId, Job] = {}
        self.read: set[JobId] = set()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        self.first.update((job.id, job) for job in jobs)
        return await super().insert(jobs)

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        found = await super().get(ids)
        answer = [self.first[job.id] if job and job.id in self.read else job for job in found]
        self.read.update(job.id for job in found if job and job.status.terminal)
        return answer


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    monkeypatch.setenv(application.NOTES, str(tmp_path))
    application.notes.cache_clear()
    yield application.notes()
    application.notes.cache_clear()


async def history_on(store: MemoryStore, notes: Notes, folder: Path, seconds: float) -> Story:
    """Let two workers race for some jobs, then drain the rest, for `seconds` at most."""
    web, one, two = (application.queue_on(Recorded(store, notes)) for _ in range(3))
    async with web, one.as_worker(), two.as_worker(), anyio.create_task_group() as tasks:
        made = [await web.enqueue("errand", Errand(seconds=0.02)) for _ in range(10)]
        for job in made:
            notes.write("accepted", job=job.id, key=job.id)
        for worker in (one, two):
            for job in made[:5]:
                tasks.start_soon(worker.run, job.id)
        with anyio.move_on_after(seconds):
            for job in made:
                with suppress(UnknownJob):  # one store forgets a job
                    await web.wait(job.id)
                    await web.find(job.id)
        for stored in await web.store.get([job.id for job in made]):
            if stored is not None:
                notes.write("final", **state_of(stored))
        tasks.cancel_scope.cancel()
    return read_notes(folder)


@pytest.mark.anyio
async def test_a_correct_store_has_a_history_without_violations(
    notes: Notes, tmp_path: Path
) -> None:
    assert violations(await history_on(MemoryStore(), notes, tmp_path, PATIENCE_SECONDS)) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Blind, "times"),
        (Generous, "taken twice"),
        (Forgetful, "never ended"),
        (Stale, "was read after"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
async def test_a_broken_store_is_detected(
    notes: Notes, tmp_path: Path, broken: Callable[[], MemoryStore], sentence: str
) -> None:
    found = violations(await history_on(broken(), notes, tmp_path, seconds=5))
    assert any(sentence in one for one in found), found
