"""Answers that take a while: event streams, WebSockets, and requests held until a job changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet, ref

import anyio

from asyncjobs.core.job import Job, JobId, parse_job_id
from asyncjobs.errors import StoreUnavailable, UnknownJob
from asyncjobs.http import sse
from asyncjobs.http.documents import DocumentCache, ListEvents, with_pace
from asyncjobs.http.messages import EVENT_LOOP_ROOM, Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions
from asyncjobs.protocols import Page, Selection
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.change_feed import Watch
from asyncjobs.records.inbox import Watching
from asyncjobs.records.waiting import event_loop_clock, running_asyncio_loop

T = TypeVar("T")
W = TypeVar("W", bound=Watching[Any])

#: Returns the job if the caller may see it; raises `UnknownJob` if not.
Check = Callable[[Job], Job]


@dataclass(frozen=True)
class Close:
    """The end of a WebSocket (RFC 6455, section 7.4)."""

    code: int
    reason: str


_FINISHED = Close(1000, "The job is finished.")
_GOING_AWAY = Close(1001, "Connect again to continue.")
_UNKNOWN = Close(1008, "Job not found")
_AWAY = Close(1013, "Jobs cannot be read at the moment; try again later.")
_SHED = Close(1013, "Too many connections; try again later.")


class Streams:
    """The streams and held requests of one mount."""

    def __init__(self, jobs: AsyncJobs, options: MountOptions, documents: DocumentCache) -> None:
        self._jobs = jobs
        self._options = options
        self._documents = documents
        # Weak references: a stream that is no longer iterated must not count.
        self._held: WeakSet[Watching[Any]] = WeakSet()
        self._ended = False

    def begin(self) -> None:
        """Let new streams last for `max_stream_duration`."""
        self._ended = False

    def end(self) -> None:
        """End all streams, because the server stops; new ones end at once."""
        self._ended = True
        for watch in [*self._held]:
            watch.finish()

    def has_room(self, room: int) -> bool:
        """Return whether one more connection may be held, on a server with this much room."""
        return len(self._held) < self._options.held_at_most(room)

    async def next_change(self, job: Job, seconds: float) -> Job:
        """Return the job when its version changes, or its newest state after `seconds`."""
        with self._holding(job.id) as watch:
            newest = await watch.first()
            if newest.version == job.version:
                with anyio.move_on_after(seconds):
                    newest = await anext(watch, newest)
            return newest

    async def ended(self, job_id: JobId, seconds: float) -> Job:
        """Return the job when it is terminal, or its newest state after `seconds`."""
        with self._holding(job_id) as watch:
            job = await watch.first()
            with anyio.move_on_after(seconds):
                async for newest in watch:
                    job = newest
            return job

    async def events(
        self,
        job_id: JobId,
        check: Check,
        after: int,
        room: int = EVENT_LOOP_ROOM,
        base: str = "",
        lasts: float = inf,
    ) -> Response:
        """Return the stream of a job's events after version `after`.

        `base` is the URL of the list, below which the job's files are. The stream lasts for
        `lasts` seconds at most. Without room, clients get
        the current state and reconnect as often as they would poll.
        """
        crowded = not self.has_room(room)
        watch = self._watch(job_id)
        job = check(await watch.first())
        if job.status.terminal and job.version == after:
            # The only answer that makes EventSource stop (HTML, section 9.2.3).
            return Response(HTTPStatus.NO_CONTENT, (("Cache-Control", "no-store"),))
        if crowded:
            # Not 429 or 503: EventSource does not reconnect after these.
            pacing = self._options.pacing
            pause = pacing.seconds(pacing.max_delay)
            snapshot = sse.retry(pause) + self._documents.event(job, base)
            headers = (*sse.HEADERS, ("Retry-After", str(pause)))
            return Response(HTTPStatus.OK, headers, snapshot)
        first = sse.retry(self._options.pacing.seconds())
        if job.version != after:
            first += self._documents.event(job, base)
        encode = partial(self._documents.event, base=base)
        frames = Frames(watch, self._options, encode, first, lasts=lasts)
        return StreamingResponse(HTTPStatus.OK, sse.HEADERS, chunks=frames)

    async def list_events(
        self,
        watched: tuple[Selection, int] | None,
        events: ListEvents,
        room: int = EVENT_LOOP_ROOM,
        lasts: float = inf,
    ) -> Response:
        """Return the stream of a list's events: its jobs, and how many at most.

        None is an empty list. Such clients, and those without room, get the current list and
        reconnect as often as they would poll.
        """
        headers = (*sse.HEADERS, ("Vary", "Accept"))
        crowded = not self.has_room(room)
        page, watch = Page([]), None
        if watched is not None:
            which, limit = watched
            watch = self.hold(self._jobs.subscribe_list(which, limit=limit))
            page = await anext(watch, page)
        if watch is None or crowded:
            if watch is not None:
                await watch.aclose()
            pacing = self._options.pacing
            pause = pacing.seconds(pacing.max_delay)
            snapshot = sse.retry(pause) + events.events(page)
            return Response(HTTPStatus.OK, (*headers, ("Retry-After", str(pause))), snapshot)
        first = sse.retry(self._options.pacing.seconds()) + events.events(page)
        frames = Frames(watch, self._options, events.events, first, lasts=lasts)
        return StreamingResponse(HTTPStatus.OK, headers, chunks=frames)

    async def socket(
        self,
        job_id: JobId,
        check: Check,
        after: int,
        room: int = EVENT_LOOP_ROOM,
        base: str = "",
        lasts: float = inf,
    ) -> AsyncGenerator[bytes | Close | None]:
        """Yield a job's documents for a WebSocket, None when it is quiet, and finally a `Close`."""
        if parse_job_id(job_id) is None:
            yield _UNKNOWN
            return
        crowded = not self.has_room(room)
        watch = self._watch(job_id)
        try:
            job = check(await watch.first())
        except UnknownJob:
            yield _UNKNOWN
            return
        except StoreUnavailable:
            yield _AWAY
            return
        if job.version != after:
            yield self._text(job, base)
        if crowded and not job.status.terminal:
            yield _SHED
            return
        async for newest in _Changes(watch, self._options, lasts):
            job = newest or job
            yield self._text(job, base) if newest else None
        yield _FINISHED if job.status.terminal else _GOING_AWAY

    def _text(self, job: Job, base: str) -> bytes:
        return with_pace(self._documents.document(job, base), None)

    @contextmanager
    def _holding(self, job_id: JobId) -> Generator[Watch]:
        watch = self._watch(job_id)
        try:
            yield watch
        finally:
            self.let_go(watch)

    def _watch(self, job_id: JobId) -> Watch:
        return self.hold(self._jobs.subscribe(job_id))

    def let_go(self, watch: Watching[Any]) -> None:
        """Undo `hold`."""
        self._held.discard(watch)

    def hold(self, watch: W) -> W:
        """Count what is followed for a connection, and end it with the streams."""
        self._held.add(watch)
        if self._ended:
            watch.finish()
        return watch


class _Changes:
    """Yields changes until the job or the stream ends, and None when it is quiet."""

    def __init__(self, watch: Watch, options: MountOptions, lasts: float) -> None:
        self._watch = watch
        self._pause = options.keep_alive_interval.total_seconds()
        longest = options.max_stream_duration.total_seconds()
        self._ends_at = anyio.current_time() + min(longest, lasts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job | None:
        left = self._ends_at - anyio.current_time()
        if left <= 0:
            raise StopAsyncIteration
        return await self._watch.within(min(left, self._pause))


class Frames(Generic[T]):
    """The chunks of an event stream: changes until the watch or the stream ends, and comments.

    `encode` returns the events of a state, which may be none.

    One change may wake thousands of streams, so a stream leaves no objects behind except a future:
    objects that outlive a change make the garbage collector scan all streams. Streams of one job
    share the bytes of an event, and the timer is set again only when it fires.
    """

    __slots__ = (
        "__weakref__",
        "_due",
        "_encode",
        "_ends_at",
        "_first",
        "_loop",
        "_now",
        "_pause",
        "_timer",
        "_watch",
    )

    def __init__(
        self,
        watch: Watching[T],
        options: MountOptions,
        encode: Callable[[T], bytes],
        first: bytes,
        *,
        lasts: float = inf,
    ) -> None:
        """End after `max_stream_duration`, or after `lasts` seconds if that is less."""
        self._watch = watch
        self._encode = encode
        self._first: bytes | None = first
        self._loop = running_asyncio_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._now = event_loop_clock()
        self._pause = options.keep_alive_interval.total_seconds()
        self._ends_at = self._now() + min(lasts, options.max_stream_duration.total_seconds())
        # When the next comment is due if nothing happens; None right after a chunk.
        self._due: float | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while (chunk := self.take()) is None:
            await self.wait()
        return chunk

    def take(self) -> bytes | None:
        first, self._first = self._first, None
        if first is not None:
            return first
        state = self._watch.take()
        if state is not None and (events := self._encode(state)):
            self._due = None
            return events
        now = self._now()
        if self._due is not None and now >= self._due:
            self._due = None
            return sse.KEEP_ALIVE
        if now >= self._ends_at:
            raise StopAsyncIteration
        if self._due is None:
            self._due = min(now + self._pause, self._ends_at)
        return None

    def wait(self) -> Awaitable[None]:
        if self._loop is None:
            return self._watch.wait(self._left())
        if self._timer is None:
            self._look_after(self._left(), self._loop)
        return self._watch.wait(None)

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._watch.aclose()

    def look(self) -> None:
        """Wake the stream if it has been quiet long enough; else check again later."""
        self._timer = None
        if self._loop is None or self._due is None:
            return  # it is sending, and sets the timer when it waits
        left = self._left()
        if left > 0:
            self._look_after(left, self._loop)
        else:
            self._watch.wake()

    def _look_after(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        weak: ref[Frames[Any]] = ref(self)
        self._timer = loop.call_later(seconds, _look, weak)

    def _left(self) -> float:
        """Return the time until the next comment is due."""
        return 0.0 if self._due is None else max(self._due - self._now(), 0.0)


def _look(frames: ref[Frames[Any]]) -> None:
    # Weak references: a stream that is no longer iterated must not count.
    found = frames()
    if found is not None:
        found.look()
