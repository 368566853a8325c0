"""Keeps lists of jobs current for their watchers: one list feed per process.

A list is read again when a write may have changed it, and in any case at intervals, since other
processes may write without notice. All watchers of one list share its reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count

import anyio

from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import StoreError
from asyncjobs.protocols import Page, Selection
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.inbox import Inbox, Watching
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal

#: Reads the first page of a list: which jobs, and how many at most.
Read = Callable[[Selection, int], Awaitable[Page]]

_Key = tuple[Selection, int]
_Listener = Callable[[Page | None], None]

# The shortest time between two reads of one list, unless polling is faster.
_REST_SECONDS = 1.0


class ListFeed:
    """Distributes the first pages of lists to watchers; it costs nothing without watchers."""

    def __init__(self, read: Read, feed: ChangeFeed, *, poll: float) -> None:
        self._read = read
        self._feed = feed
        self._poll = poll
        self._rest = min(_REST_SECONDS, poll)
        self._lists: dict[_Key, _LiveList] = {}
        # Filled by the garbage collector in any thread; `_let_go` applies it on the event loop.
        self._left: deque[tuple[_Key, _Listener]] = deque()
        self._wanted = Signal()
        self._order = count(1)
        self.closed = False

    def watch(self, which: Selection, limit: int) -> ListWatch:
        """Return a watch of the latest `limit` jobs of a selection."""
        return ListWatch(self, (which, limit))

    async def run(self) -> None:
        """Read lists that may have changed, until cancelled."""
        while True:
            self._let_go()
            now = anyio.current_time()
            due = min((one.due_at(self._poll) for one in self._lists.values()), default=None)
            # A signal that is left over only causes one more turn.
            await self._wanted.wait(None if due is None else max(0.0, due - now))
            for one in tuple(self._lists.values()):
                if one.due_at(self._poll) <= anyio.current_time():
                    await self._reread(one)

    def close(self) -> None:
        """End every watch, including those that begin later."""
        self.closed = True
        for one in tuple(self._lists.values()):
            one.put(None)

    async def join(self, key: _Key, inbox: Inbox[Page]) -> None:
        """Put the list into the inbox now and at each change, until `leave`."""
        self._let_go()
        if not self._lists:
            self._feed.on_any(self._hint)
        one = self._lists.setdefault(key, _LiveList(key))
        one.listeners[inbox.put] = None
        # Always read: the latest page may be as old as the interval of polling.
        await self._refresh(one)
        if inbox.is_empty:
            inbox.put(one.page)
        self._wanted.set()

    def leave(self, key: _Key, listener: _Listener) -> None:
        """Undo `join`; a second call does nothing."""
        one = self._lists.get(key)
        if one is None:
            return
        one.listeners.pop(listener, None)
        if not one.listeners:
            del self._lists[key]
        if not self._lists:
            self._feed.off_any(self._hint)

    @property
    def watchers(self) -> int:
        """The number of watchers; any thread may read it."""
        # `list` copies in one step that other threads cannot interrupt.
        return sum(len(one.listeners) for one in list(self._lists.values())) - len(self._left)

    def leave_later(self, key: _Key, listener: _Listener) -> None:
        """Schedule `leave`; safe in any thread and at any moment, even in a collector's run."""
        self._left.append((key, listener))

    def _let_go(self) -> None:
        while self._left:
            self.leave(*self._left.popleft())

    def _hint(self, job: Job | None) -> None:
        for one in self._lists.values():
            if not one.stale and one.may_have(job):
                one.stale = True
                self._wanted.set()

    async def _reread(self, one: _LiveList) -> None:
        began = anyio.current_time()
        try:
            await self._refresh(one)
        except StoreError as error:
            log.warning("A watched list could not be read: %s", error)
        # Rest as long as the read took: reads without a break would slow down everything else.
        now = anyio.current_time()
        one.read_at, one.rests_until = now, now + max(self._rest, now - began)

    async def _refresh(self, one: _LiveList) -> None:
        order = next(self._order)
        one.stale = False
        which, limit = one.key
        page = await self._read(which, limit)
        # Reads of one list may overtake each other.
        if order > one.order:
            one.order = order
            one.show(page)


class _LiveList:
    """One list with its watchers, as it was last read."""

    __slots__ = ("_ids", "key", "listeners", "order", "page", "read_at", "rests_until", "stale")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.listeners: dict[_Listener, None] = {}
        self.page: Page | None = None
        self._ids: dict[JobId, int] = {}
        self.order = 0
        self.stale = False
        self.read_at = self.rests_until = anyio.current_time()

    def due_at(self, poll: float) -> float:
        """Return when to read it next."""
        return self.rests_until if self.stale else self.read_at + poll

    def may_have(self, job: Job | None) -> bool:
        """Return whether a write may change the list; None is a write of another process."""
        return job is None or job.id in self._ids or self.key[0].fits(job)

    def show(self, page: Page) -> None:
        """Send the page to the watchers if it differs from the one before."""
        ids = {job.id: job.version for job in page.jobs}
        if self.page is None or [*ids.items()] != [*self._ids.items()]:
            self.page, self._ids = page, ids
            self.put(page)

    def put(self, page: Page | None) -> None:
        """Send a page, or the end, to the watchers."""
        # A copy: a watcher may leave while it is called.
        for listener in tuple(self.listeners):
            listener(page)


class ListWatch(Watching[Page]):
    """Yields the first page of a list, then the newest one at each visible change."""

    __slots__ = ("_feed", "_key")

    def __init__(self, feed: ListFeed, key: _Key) -> None:
        super().__init__(Inbox[Page]())
        self._feed = feed
        self._key = key

    async def _begin(self) -> None:
        self._begun = True
        if self._feed.closed:
            self._end()
            return
        try:
            await self._feed.join(self._key, self._inbox)
        except Exception:
            self._end()
            raise

    def _leave(self) -> None:
        self._feed.leave(self._key, self._inbox.put)

    def _leave_later(self) -> None:
        self._feed.leave_later(self._key, self._inbox.put)
