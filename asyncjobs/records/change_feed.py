"""One change feed per process: whoever watches a job hears of its changes from here.

Changes made in this process are announced as they are written. Those of other processes come by
the store's own notices where it gives any, and by reading the watched jobs now and then in any
case. However many watch a job, a change costs one read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Self

import anyio

from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import NotOpen, StoreError, UnknownJob, UnreadableJob
from asyncjobs.protocols import ChangeNotices, power_of
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal, running_asyncio_loop

_MOST = 500

#: Called with states of a job, not always newer ones; None says that no more will come.
Listener = Callable[[Job | None], None]
Read = Callable[[Sequence[JobId]], Awaitable[Sequence[Job | None]]]


class ChangeFeed:
    """Distributes states of jobs to listeners; keeps no history."""

    def __init__(self, *, poll: float) -> None:
        self._poll = poll
        # Sets that keep their order: thousands may watch one job, and leave at once.
        self._listeners: dict[JobId, dict[Listener, None]] = {}
        self._left: deque[tuple[JobId, Listener]] = deque()
        self._hints: list[Callable[[Job | None], None]] = []
        self._stale = Signal()
        self.closed = False

    def announce(self, job: Job) -> None:
        """Tell of a state that was just written or read."""
        for listener in tuple(self._listeners.get(job.id, ())):
            listener(job)
        for hint in self._hints:
            hint(job)

    def forget(self, job_id: JobId) -> None:
        """Tell that a job is gone."""
        for listener in tuple(self._listeners.get(job_id, ())):
            listener(None)

    def on_any(self, hint: Callable[[Job | None], None]) -> None:
        """Call `hint` with every state announced, and with None when another process wrote."""
        self._hints.append(hint)

    def listen(self, job_id: JobId, listener: Listener) -> None:
        """Call the listener with states of one job, until `unlisten`."""
        self._let_go()
        self._listeners.setdefault(job_id, {})[listener] = None

    def unlisten(self, job_id: JobId, listener: Listener) -> None:
        """Undo `listen`; doing so twice is no error."""
        listeners = self._listeners.get(job_id, {})
        listeners.pop(listener, None)
        if not listeners and self._listeners.get(job_id) is listeners:
            del self._listeners[job_id]

    def leave(self, job_id: JobId, listener: Listener) -> None:
        """Let `unlisten` be done soon; any thread may call it, in the middle of anything."""
        self._left.append((job_id, listener))

    @property
    def listeners(self) -> int:
        """How many listen; may be asked by any thread."""
        # A list, since nothing else can run while one is filled.
        return sum(map(len, list(self._listeners.values()))) - len(self._left)

    @contextmanager
    def listening(self, job_id: JobId, listener: Listener) -> Generator[None]:
        """Call the listener with states of one job inside the block."""
        self.listen(job_id, listener)
        try:
            yield
        finally:
            self.unlisten(job_id, listener)

    def watch(self, job_id: JobId, read: Read) -> Watch:
        """Follow one job, beginning with what `read` says of it."""
        return Watch(self, job_id, read)

    async def run(self, read: Read, store: object) -> None:
        """Keep listeners up to date with what other processes write, until cancelled."""
        async with anyio.create_task_group() as tasks:
            if (notices := power_of(store, ChangeNotices)) is not None:
                tasks.start_soon(self._follow, notices)
            while True:
                await self._stale.wait(self._poll)
                began = anyio.current_time()
                await self._refresh(read)
                # Where thousands are watched, and others write all the time, there is more to do.
                await anyio.sleep(min(self._poll, anyio.current_time() - began))

    def close(self) -> None:
        """End every watch, and those that have not begun."""
        self.closed = True
        for job_id in tuple(self._listeners):
            self.forget(job_id)

    async def _follow(self, store: ChangeNotices) -> None:
        while True:
            try:
                async for ids in store.changes():
                    if not ids or any(job_id in self._listeners for job_id in ids):
                        self._stale.set()
                    for hint in self._hints:
                        hint(None)
            except StoreError as error:
                log.warning("The store's change notices broke off: %s", error)
            await anyio.sleep(self._poll)

    def _let_go(self) -> None:
        while self._left:
            self.unlisten(*self._left.popleft())

    async def _refresh(self, read: Read) -> None:
        self._let_go()
        watched = tuple(self._listeners)
        for start in range(0, len(watched), _MOST):
            ids = watched[start : start + _MOST]
            try:
                await self._refresh_some(read, ids)
            except StoreError as error:
                log.warning("Watched jobs could not be read: %s", error)
                return

    async def _refresh_some(self, read: Read, ids: Sequence[JobId]) -> None:
        try:
            jobs = await read(ids)
        except UnreadableJob as error:
            if len(ids) == 1:
                log.warning("A watched job could not be read: %s", error)
                return
            for job_id in ids:  # one bad row must not hide the others
                await self._refresh_some(read, [job_id])
            return
        for job_id, job in zip(ids, jobs, strict=True):
            if job is None:
                self.forget(job_id)
            else:
                self.announce(job)


class Watch:
    """Yields a job as it stands, then its newest state at each change, to a terminal one.

    An iterator, not an async generator: one that is left in the middle of a loop needs no closing.
    """

    # There may be thousands.
    __slots__ = ("__weakref__", "_begun", "_ended", "_feed", "_inbox", "_job_id", "_read")

    def __init__(self, feed: ChangeFeed, job_id: JobId, read: Read) -> None:
        self._feed = feed
        self._job_id = job_id
        self._read = read
        self._inbox = _Inbox()
        self._begun = False
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        while (job := await self.within(None)) is None:
            pass  # never: it waits for as long as it takes
        return job

    async def first(self) -> Job:
        """Return the job as it stands; raise `NotOpen` where the feed was closed a moment ago."""
        async for job in self:
            return job
        raise NotOpen("AsyncJobs")

    async def within(self, seconds: float | None) -> Job | None:
        """Return the next state as `anext` does, or None if there is none in time.

        The time does not bound the first read of the job.
        """
        if not self._begun:
            await self._begin()
        if self.is_quiet:
            await self.wait(seconds)
        return self.take()

    @property
    def is_quiet(self) -> bool:
        """Whether the next state has still to come; to be asked when the first was read."""
        return not self._ended and self._inbox.is_empty

    def wait(self, seconds: float | None) -> Awaitable[None]:
        """Return when it is not quiet any more, after that time, or at `wake`: await it at once."""
        return self._inbox.wait(seconds)

    def wake(self) -> None:
        """End the `wait` that is under way."""
        self._inbox.wake()

    def take(self) -> Job | None:
        """Return the next state if it is there, else None; raise `StopAsyncIteration` as `anext`.

        With `wait` this is `within` for thousands of watchers: their tasks await a bare future.
        """
        inbox = self._inbox
        job = None if self._ended else inbox.take()
        if job is None:
            if not self._ended and not inbox.ended:
                return None
            self._end()
            raise StopAsyncIteration
        if job.status.terminal:
            self._end()
        return job

    def finish(self) -> None:
        """End the iteration after the state that is there, whoever waits for more."""
        self._inbox.put(None)

    async def aclose(self) -> None:
        """Stop watching; for those who do so by `contextlib.aclosing`."""
        self._end()

    def __del__(self) -> None:
        # Not by `_end`: the collector calls this, maybe while somebody goes through the listeners.
        if self._begun and not self._ended:
            self._feed.leave(self._job_id, self._inbox.put)

    async def _begin(self) -> None:
        self._begun = True
        if self._feed.closed:
            self._end()
            return
        self._feed.listen(self._job_id, self._inbox.put)
        [job] = await self._read([self._job_id])
        if job is None:
            self._end()
            raise UnknownJob(self._job_id)
        self._inbox.put(job)

    def _end(self) -> None:
        self._ended = True
        self._inbox.wake()
        self._feed.unlisten(self._job_id, self._inbox.put)


class _Inbox:
    """Holds the newest state only, so that a slow reader costs no memory."""

    __slots__ = ("_new", "_timer", "_version", "_waiting", "ended")

    def __init__(self) -> None:
        self._new: Job | None = None
        # The newest version that was put here, read or not.
        self._version = 0
        self._waiting: asyncio.Future[None] | Signal | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Whether no more states will come.
        self.ended = False

    @property
    def is_empty(self) -> bool:
        """Whether there is something to wait for."""
        return self._new is None and not self.ended

    def put(self, job: Job | None) -> None:
        if job is None:
            self.ended = True
        elif job.version > self._version:
            self._new, self._version = job, job.version
        else:
            return
        self.wake()

    def take(self) -> Job | None:
        """Return the newest state, once; None if it was taken already."""
        job, self._new = self._new, None
        return job

    def wait(self, seconds: float | None) -> Awaitable[None]:
        """Return when it is not empty any more, or after that time: await it at once."""
        if self._timer is not None:
            self.wake()  # of a wait that was cancelled, the timer is left
        loop = running_asyncio_loop()
        if loop is None:
            self._waiting = signal = Signal()
            return signal.wait(seconds)
        # The future itself, since a coroutine around it takes half as much memory again.
        self._waiting = future = loop.create_future()
        if seconds is not None:
            self._timer = loop.call_later(seconds, self.wake)
        return future

    def wake(self) -> None:
        """End the wait."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        waiting, self._waiting = self._waiting, None
        if isinstance(waiting, Signal):
            waiting.set()
        elif waiting is not None and not waiting.done():
            waiting.set_result(None)
