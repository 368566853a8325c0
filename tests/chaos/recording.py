"""Records the calls of a store and their answers: one line of JSON each.

Every process writes its own file. All use one clock, the time since the machine booted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asyncjobs.core.job import Job, JobId
from asyncjobs.protocols import Change, ChangeNotices, InlineReads, StoreClock, power_of

#: The powers that a recorded store may have.
_POWERS = frozenset({ChangeNotices, InlineReads, StoreClock})

#: One line of a history.
Event = dict[str, Any]


class Notes:
    """The notes of this process; a note that was returned survives the death of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: tuple[int, int] | None = None
        self._numbers = count()

    def write(self, what: str, **facts: Any) -> None:
        """Write one line atomically, even if the process is killed."""
        line = json.dumps({"what": what, "pid": os.getpid(), "at": self.now(), **facts})
        os.write(self._descriptor(), f"{line}\n".encode())

    def now(self) -> float:
        """Return the time of the clock that all notes share."""
        return time.monotonic()

    def number(self) -> str:
        """Return a new id for a call."""
        return f"{os.getpid()}-{id(self)}-{next(self._numbers)}"

    def _descriptor(self) -> int:
        if self._file is None or self._file[0] != os.getpid():
            path = self._folder / f"notes-{os.getpid()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.getpid(), os.open(path, flags, 0o644)
        return self._file[1]


def read_notes(folder: Path) -> list[Event]:
    """Read the notes of all processes, sorted by time."""
    lines = (line for path in folder.glob("notes-*") for line in path.read_text().splitlines())
    events: list[Event] = [json.loads(line) for line in lines]
    return sorted(events, key=lambda event: float(event["at"]))


def state_of(job: Job) -> Event:
    """Return the state of a job as a history holds it."""
    return {
        "job": job.id,
        "revision": job.revision,
        "version": job.version,
        "status": job.status.value,
        "attempt": job.attempt,
        "losses": job.losses,
        "failures": job.failures,
        "worker": job.lease.worker if job.lease else None,
        "token": job.lease.token if job.lease else None,
        "until": job.lease.until.timestamp() if job.lease else None,
        "result": job.result,
        "error": job.error.code if job.error else None,
        "asked_to_stop": job.cancel_requested_at is not None,
        "releases": job.releases,
        "deadline": job.deadline.timestamp(),
        "max_deliveries": job.max_deliveries,
        "max_releases": job.max_releases,
        "max_attempts": job.retry.max_attempts,
    }


class Recorded:
    """A store that records every call that reads or writes jobs; it cannot list them."""

    def __init__(self, store: Any, notes: Notes) -> None:
        self.store = store
        self.notes = notes
        self.powers: frozenset[type] = store.powers & _POWERS

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.store.__aexit__(kind, error, traceback)

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        call = self._asked([{**state_of(job), "expected": 0} for job in jobs])
        stored: Sequence[Job] = await self.store.insert(jobs)
        pairs = zip(jobs, stored, strict=True)
        self.notes.write("answered", call=call, done=[job.id == found.id for job, found in pairs])
        return stored

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        call = self._asked(
            [{**state_of(one.job), "expected": one.expected_revision} for one in changes]
        )
        done: Sequence[bool] = await self.store.replace(changes)
        self.notes.write("answered", call=call, done=list(done))
        return done

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        asked = self.notes.now()
        found: Sequence[Job | None] = await self.store.get(ids)
        states = [state_of(job) if job else None for job in found]
        self.notes.write("read", asked=asked, jobs=list(ids), states=states)
        return found

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        taken: Sequence[Job] = await self.store.take(lanes, now=now, until=until, limit=limit)
        if taken:
            hold = {"now": now.timestamp(), "until": until.timestamp()}
            self.notes.write("taken", **hold, jobs=[[job.id, job.revision] for job in taken])
        return taken

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        answers: Sequence[bool] = await self.store.delete(ids)
        return answers

    async def changes(self) -> AsyncIterator[Sequence[JobId]]:
        notices = power_of(self.store, ChangeNotices)
        if notices is not None:
            async for ids in notices.changes():
                yield ids

    async def now(self) -> datetime:
        clock = power_of(self.store, StoreClock)
        return datetime.now(UTC) if clock is None else await clock.now()

    def _asked(self, states: Sequence[Event]) -> str:
        """Record a write before it is made: a process that is killed later may have made it."""
        call = self.notes.number()
        self.notes.write("asked", call=call, states=states)
        return call


def states_in(event: Event) -> Iterator[tuple[str, Event | None]]:
    """Pair the ids of a read with the states that it returned."""
    yield from zip(event["jobs"], event["states"], strict=True)
