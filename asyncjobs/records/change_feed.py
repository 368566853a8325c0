"""Distributes the changes of jobs to their watchers: one change feed per process.

Changes made in this process are announced as they are written. Changes of other processes arrive
by the store's notices, if it sends any, and in any case by polling the watched jobs. A change costs
one read, however many watchers the job has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import contextmanager

import anyio

from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import NotOpen, StoreError, UnknownJob, UnreadableJob
from asyncjobs.protocols import ChangeNotices, power_of
from asyncjobs.records.inbox import JobInbox, Watching
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal

_MAX_READ_SIZE = 500

#: Called with states of a job, not always newer ones; None means that no more will come.
Listener = Callable[[Job | None], None]
Read = Callable[[Sequence[JobId]], Awaitable[Sequence[Job | None]]]


class ChangeFeed:
    """Distributes states of jobs to listeners; keeps no history."""

    def __init__(self, *, poll: float) -> None:
        self._poll = poll
        # Ordered sets with fast removal: thousands may watch one job, and leave together.
        self._listeners: dict[JobId, dict[Listener, None]] = {}
        # Filled by the garbage collector in any thread; `_let_go` applies it on the event loop.
        self._left: deque[tuple[JobId, Listener]] = deque()
        self._hints: list[Callable[[Job | None], None]] = []
        self._notice_hints: list[Callable[[Sequence[JobId]], None]] = []
        # The watched jobs that notices have named; `_stale_all` if any job may have changed.
        self._stale_ids: set[JobId] = set()
        self._stale_all = False
        self._stale = Signal()
        self.closed = False

    def announce(self, job: Job) -> None:
        """Send a state that was just written or read to the job's listeners and to every hint."""
        # A copy: a listener may stop listening while it is called.
        for listener in tuple(self._listeners.get(job.id, ())):
            listener(job)
        for hint in self._hints:
            hint(job)

    def forget(self, job_id: JobId) -> None:
        """Notify the job's listeners that the job is gone."""
        for listener in tuple(self._listeners.get(job_id, ())):
            listener(None)

    def on_any(self, hint: Callable[[Job | None], None]) -> None:
        """Call `hint` with every announced state, and with None when another process wrote."""
        self._hints = [*self._hints, hint]

    def off_any(self, hint: Callable[[Job | None], None]) -> None:
        """Undo `on_any`; a second call does nothing."""
        # New lists, because a hint may come while this one is iterated.
        self._hints = [one for one in self._hints if one != hint]

    def on_notice(self, hint: Callable[[Sequence[JobId]], None]) -> None:
        """Call `hint` with the ids in each notice of another process; none means any job."""
        self._notice_hints = [*self._notice_hints, hint]

    def off_notice(self, hint: Callable[[Sequence[JobId]], None]) -> None:
        """Undo `on_notice`; a second call does nothing."""
        self._notice_hints = [one for one in self._notice_hints if one != hint]

    def listen(self, job_id: JobId, listener: Listener) -> None:
        """Call the listener with states of one job, until `unlisten`."""
        self._let_go()
        self._listeners.setdefault(job_id, {})[listener] = None

    def unlisten(self, job_id: JobId, listener: Listener) -> None:
        """Undo `listen`; a second call does nothing."""
        listeners = self._listeners.get(job_id, {})
        listeners.pop(listener, None)
        # Compared by identity: the default above is empty as well, but is not in the dict.
        if not listeners and self._listeners.get(job_id) is listeners:
            del self._listeners[job_id]

    def leave(self, job_id: JobId, listener: Listener) -> None:
        """Schedule `unlisten`; safe in any thread and at any moment, even in a collector's run."""
        self._left.append((job_id, listener))

    @property
    def listeners(self) -> int:
        """The number of listeners; any thread may read it."""
        # `list` copies in one step that other threads cannot interrupt.
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
        """Return a watch of one job, which begins with the state that `read` returns."""
        return Watch(self, job_id, read)

    async def run(self, read: Read, store: object) -> None:
        """Announce the writes of other processes until cancelled."""
        async with anyio.create_task_group() as tasks:
            if (notices := power_of(store, ChangeNotices)) is not None:
                tasks.start_soon(self._follow, notices)
            polled_at = anyio.current_time()
            while True:
                # The wait resets the signal: a notice during the refresh causes another refresh.
                await self._stale.wait(max(0.0, polled_at + self._poll - anyio.current_time()))
                began = anyio.current_time()
                named, self._stale_ids = self._stale_ids, set()
                if self._stale_all or began >= polled_at + self._poll:
                    self._stale_all, polled_at = False, began
                    await self._refresh(read, None)
                else:
                    await self._refresh(read, named)
                # Rest as long as the refresh took: with thousands of watched jobs and constant
                # writes elsewhere, refreshes without a break would slow down everything else.
                await anyio.sleep(min(self._poll, anyio.current_time() - began))

    def notice(self, ids: Sequence[JobId]) -> None:
        """Note that another process has changed these jobs; none means any job."""
        watched = [job_id for job_id in ids if job_id in self._listeners]
        if watched or not ids:
            self._stale_ids.update(watched)
            self._stale_all = self._stale_all or not ids
            self._stale.set()
        for hint in self._notice_hints:
            hint(ids)

    def close(self) -> None:
        """End every watch, including those that begin later."""
        self.closed = True
        for job_id in tuple(self._listeners):
            self.forget(job_id)

    async def _follow(self, store: ChangeNotices) -> None:
        while True:
            try:
                async for ids in store.changes():
                    self.notice(ids)
                    # Hints wait for due jobs, which are not watched: every notice may be one.
                    for hint in self._hints:
                        hint(None)
            except StoreError as error:
                log.warning("The store's change notices were interrupted: %s", error)
            # Also after a normal end: a store whose notices end at once must not cause a busy loop.
            await anyio.sleep(self._poll)

    def _let_go(self) -> None:
        while self._left:
            self.unlisten(*self._left.popleft())

    async def _refresh(self, read: Read, ids: Collection[JobId] | None) -> None:
        """Read the watched jobs of these ids; None means all."""
        self._let_go()
        named = self._listeners if ids is None else ids
        watched = [job_id for job_id in named if job_id in self._listeners]
        for start in range(0, len(watched), _MAX_READ_SIZE):
            ids = watched[start : start + _MAX_READ_SIZE]
            try:
                await self._refresh_some(read, ids)
            except StoreError as error:
                log.warning("Watched jobs could not be read: %s", error)
                # The other batches would fail as well; the next poll reads all of them again.
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


class Watch(Watching[Job]):
    """Yields the job's state, then its newest state at each change, up to a terminal one."""

    __slots__ = ("_feed", "_job_id", "_read")

    def __init__(self, feed: ChangeFeed, job_id: JobId, read: Read) -> None:
        super().__init__(JobInbox())
        self._feed = feed
        self._job_id = job_id
        self._read = read

    async def first(self) -> Job:
        """Return the job's current state; raise `NotOpen` if the feed was just closed."""
        async for job in self:
            return job
        raise NotOpen("AsyncJobs")

    async def within(self, seconds: float | None) -> Job | None:
        """Return the next state like `anext`, or None if there is none within that time.

        The time does not bound the first read of the job.
        """
        if not self._begun:
            await self._begin()
        if self.is_quiet:
            await self.wait(seconds)
        return self.take()

    @property
    def is_quiet(self) -> bool:
        """Whether the next state has not arrived yet; valid once the first state was read."""
        return not self._ended and self._inbox.is_empty

    def take(self) -> Job | None:
        """Return the next state, None if none is there; raise `StopAsyncIteration` at the end."""
        job = super().take()
        if job is not None and job.status.terminal:
            self._end()
        return job

    async def _begin(self) -> None:
        self._begun = True
        if self._feed.closed:
            self._end()
            return
        # Listen before reading: a change between the two would be lost otherwise.
        self._feed.listen(self._job_id, self._inbox.put)
        [job] = await self._read([self._job_id])
        if job is None:
            self._end()
            raise UnknownJob(self._job_id)
        self._inbox.put(job)

    def _leave(self) -> None:
        self._feed.unlisten(self._job_id, self._inbox.put)

    def _leave_later(self) -> None:
        self._feed.leave(self._job_id, self._inbox.put)
