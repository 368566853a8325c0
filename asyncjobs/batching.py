"""Merges concurrent store calls into few large ones (group commit).

A call that finds the line free goes out at once, with those that are made in the same turn of the
event loop; those that arrive meanwhile go out together when it returns. Nothing ever waits on a
timer, so a quiet process pays no delay and a busy one does few large transactions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from asyncjobs.model import Job, JobId
from asyncjobs.protocols import Change, OpenStore

T = TypeVar("T")
R = TypeVar("R")

_MOST = 512


class _Call(Generic[T, R]):
    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.done = anyio.Event()
        self.results: Sequence[R] = ()
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None


class Merged(Generic[T, R]):
    """One batch function, shared by many callers.

    A caller that is cancelled while its items are under way gets its cancellation once their fate
    is known; the merged calls of the others are not disturbed.
    """

    def __init__(
        self,
        function: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        tasks: TaskGroup,
        most: int = _MOST,
    ) -> None:
        self._function = function
        self._tasks = tasks
        self._most = most
        self._waiting: deque[_Call[T, R]] = deque()
        self._busy = False

    async def __call__(self, items: Sequence[T]) -> Sequence[R]:
        call = _Call[T, R](items)
        self._waiting.append(call)
        with anyio.CancelScope(shield=True):
            if self._busy:
                await call.done.wait()
            else:
                self._busy = True
                # Those who are ready to call, too, come along.
                await anyio.lowlevel.checkpoint()
                await self._flush(self._next())
                if self._waiting:
                    self._tasks.start_soon(self._drain)
                else:
                    self._busy = False
        if call.error is not None:
            # One error for many callers: each would add its own frames to the traceback.
            raise call.error.with_traceback(call.traceback)
        return call.results

    async def _drain(self) -> None:
        with anyio.CancelScope(shield=True):
            while self._waiting:
                await self._flush(self._next())
        self._busy = False

    def _next(self) -> list[_Call[T, R]]:
        calls = [self._waiting.popleft()]
        size = len(calls[0].items)
        while self._waiting and size + len(self._waiting[0].items) <= self._most:
            calls.append(self._waiting.popleft())
            size += len(calls[-1].items)
        return calls

    async def _flush(self, calls: list[_Call[T, R]]) -> None:
        try:
            results = await self._function([item for call in calls for item in call.items])
        except Exception as error:  # noqa: BLE001  # it goes to those who called
            for call in calls:
                call.error, call.traceback = error, error.__traceback__
        else:
            start = 0
            for call in calls:
                call.results = results[start : start + len(call.items)]
                start += len(call.items)
        for call in calls:
            call.done.set()


class BatchingStore:
    """An open store in front of an open store: the same contract, concurrent calls merged."""

    def __init__(self, store: OpenStore, tasks: TaskGroup) -> None:
        self._store = store
        self._insert = Merged(store.insert, tasks)
        self._get = Merged(store.get, tasks)
        self._replace = Merged(store.replace, tasks)

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._insert(jobs)

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._get(ids)

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._replace(changes)

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._store.take(lanes, now=now, until=until, limit=limit)

    async def delete(self, ids: Sequence[JobId], /) -> None:
        await self._store.delete(ids)
