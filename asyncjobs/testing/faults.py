"""A wrapper around any store that fails when a test wants it to."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.labels import Tally
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import (
    Change,
    ChangeNotices,
    Listing,
    OutputStreams,
    Page,
    Selection,
    Store,
    StoreClock,
    Tallies,
    Transactions,
)

T = TypeVar("T")

_POWERS: frozenset[type] = frozenset(
    {ChangeNotices, Listing, OutputStreams, StoreClock, Tallies, Transactions}
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults to inject: shares of all calls, from 0 to 1.

    `before` fails without making the call, `after` makes it and loses the answer. Each call is
    delayed by up to `delay` seconds. `only` names the affected methods, `most` limits the number of
    faults. `Faults()` injects none; `Faults(before=1, after=1)` also fails the calls in progress.
    """

    before: float = 0.0
    after: float = 0.0
    delay: float = 0.0
    only: Collection[str] | None = None
    most: int | None = None


class Fate(StrEnum):
    """The outcome of a call."""

    ANSWERED = "answered"
    NOT_DONE = "not done"
    ANSWER_LOST = "answer lost"
    RAISED = "raised"  # by the wrapped store, or the caller was cancelled


@dataclass(frozen=True, slots=True)
class StoreCall:
    """One call of a method, with the ids it was given, and its outcome."""

    method: str
    ids: tuple[JobId, ...]
    fate: Fate


class FaultyStore:
    """Passes calls on to a store, and fails before or after some of them, depending on the seed.

    A fault raises `StoreUnavailable`, like a lost connection. Opening and closing do not fail. It
    declares exactly the powers of the wrapped store. For a store's changes, `before` breaks the
    stream off and `after` loses a batch. `calls` are the calls so far. Faults may be changed at any
    time by setting `faults`, even during calls; the count for `most` then starts again.
    """

    def __init__(self, store: Store, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.store = store
        self.calls: list[StoreCall] = []
        self.faults = faults or Faults()
        self._chance = random.Random(seed)  # noqa: S311  # repeatable faults, no secrets

    @property
    def powers(self) -> frozenset[type]:
        """The powers of the wrapped store that this wrapper passes on."""
        return _POWERS & self.store.powers

    @property
    def filters(self) -> frozenset[str]:
        """The filters of the wrapped store, if it can list."""
        return frozenset(getattr(self.store, "filters", ()))

    @property
    def faults(self) -> Faults:
        """The current faults."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._left = faults.most

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self.store.__aexit__(kind, error, traceback)

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        ids = [job.id for job in jobs]
        return await self._call("insert", ids, lambda: self.store.insert(jobs))

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._call("get", ids, lambda: self.store.get(ids))

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        ids = [change.job.id for change in changes]
        return await self._call("replace", ids, lambda: self.store.replace(changes))

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._call(
            "take", (), lambda: self.store.take(lanes, now=now, until=until, limit=limit)
        )

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._call("delete", ids, lambda: self.store.delete(ids))

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        store: Any = self.store
        page: Page = await self._call(
            "list", (), lambda: store.list(which, limit=limit, after=after)
        )
        return page

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        store: Any = self.store
        count: int = await self._call(
            "count_before", [job.id], lambda: store.count_before(job, until=until, most=most)
        )
        return count

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        store: Any = self.store
        moments: Sequence[datetime | None] = await self._call(
            "first_due", (), lambda: store.first_due(lanes)
        )
        return moments

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        store: Any = self.store
        tallies: Sequence[Tally] = await self._call("tally", (), lambda: store.tally(labels))
        return tallies

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        store: Any = self.store
        appended: Sequence[Appended] = await self._call(
            "append", [one.job_id for one in appends], lambda: store.append(appends)
        )
        return appended

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        store: Any = self.store
        await self._call("begin_epoch", [job_id], lambda: store.begin_epoch(job_id, epoch))

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        store: Any = self.store
        parts: Sequence[OutputPart | None] = await self._call(
            "read_output", [one.job_id for one in reads], lambda: store.read_output(reads)
        )
        return parts

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        store: Any = self.store
        infos: Sequence[Sequence[StreamInfo]] = await self._call(
            "outputs", ids, lambda: store.outputs(ids)
        )
        return infos

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        store: Any = self.store
        stored: Sequence[Job] = await self._call(
            "insert_within",
            [job.id for job in jobs],
            lambda: store.insert_within(connection, jobs),
        )
        return stored

    async def now(self) -> datetime:
        store: Any = self.store
        now: datetime = await self._call("now", (), store.now)
        return now

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        store: Any = self.store
        async with aclosing(store.changes()) as changes:
            async for ids in changes:
                fate = self._fate("changes")
                self._note("changes", ids, fate)
                if fate is Fate.NOT_DONE:
                    raise _lost("the stream of changes was interrupted")
                if fate is Fate.ANSWERED:
                    yield ids

    async def _call(self, method: str, ids: Sequence[JobId], call: Callable[[], Awaitable[T]]) -> T:
        fate = Fate.RAISED
        try:
            if self.faults.delay:
                await anyio.sleep(self._chance.uniform(0, self.faults.delay))
            if self._strikes(method, self.faults.before):
                fate = Fate.NOT_DONE
                raise _lost(f"{method} was lost on the way there")
            answer = await call()
            if self._strikes(method, self.faults.after):
                fate = Fate.ANSWER_LOST
                raise _lost(f"the answer to {method} was lost")
            fate = Fate.ANSWERED
            return answer
        finally:
            self._note(method, ids, fate)

    def _fate(self, method: str) -> Fate:
        if self._strikes(method, self.faults.before):
            return Fate.NOT_DONE
        return Fate.ANSWER_LOST if self._strikes(method, self.faults.after) else Fate.ANSWERED

    def _strikes(self, method: str, share: float) -> bool:
        meant = self.faults.only is None or method in self.faults.only
        if not meant or self._left == 0 or self._chance.random() >= share:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def _note(self, method: str, ids: Sequence[JobId], fate: Fate) -> None:
        self.calls.append(StoreCall(method, tuple(ids), fate))


def _lost(reason: str) -> StoreUnavailable:
    return StoreUnavailable("faulty", reason)
