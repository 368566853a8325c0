"""Answers that take a while: event streams, WebSockets, and requests held until a job changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self
from weakref import WeakSet

import anyio

from asyncjobs.core.job import Job, JobId, parse_job_id
from asyncjobs.errors import StoreUnavailable, UnknownJob
from asyncjobs.http import sse
from asyncjobs.http.documents import DocumentCache, with_pace
from asyncjobs.http.messages import Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.change_feed import Watch

#: Returns the job if the caller may see it; raises `UnknownJob` if not.
Check = Callable[[Job], Job]

# The retry delay of clients beyond `max_streams`.
_SHED_SECONDS = 30.0


@dataclass(frozen=True)
class Close:
    """The end of a WebSocket (RFC 6455, section 7.4)."""

    code: int
    reason: str


_FINISHED = Close(1000, "The job is finished.")
_GOING_AWAY = Close(1001, "Connect again to go on.")
_UNKNOWN = Close(1008, "Job not found")
_AWAY = Close(1013, "Jobs cannot be read at the moment; try again later.")
_SHED = Close(1013, "Too many are watching; try again later.")


class Streams:
    """The streams and held requests of one mount."""

    def __init__(self, jobs: AsyncJobs, options: MountOptions, documents: DocumentCache) -> None:
        self._jobs = jobs
        self._options = options
        self._documents = documents
        # Weak: a stream that is not iterated any more must not count.
        self._streams: WeakSet[Watch] = WeakSet()
        self._held: WeakSet[Watch] = WeakSet()
        self._ended = False

    def begin(self) -> None:
        """Let new streams last for `max_stream_duration`."""
        self._ended = False

    def end(self) -> None:
        """End all of them, because the server stops; later ones end at once."""
        self._ended = True
        for watch in [*self._streams, *self._held]:
            watch.finish()

    async def next_change(self, job: Job, seconds: float) -> Job:
        """Return the job when its version changes; after that time, the newest state."""
        watch = self._watch(job.id, self._held)
        newest = await watch.first()
        if newest.version == job.version:
            with anyio.move_on_after(seconds):
                newest = await anext(watch, newest)
        return newest

    async def ended(self, job_id: JobId, seconds: float) -> Job:
        """Return the job when it is terminal; after that time, the newest state."""
        watch = self._watch(job_id, self._held)
        job = await watch.first()
        with anyio.move_on_after(seconds):
            async for newest in watch:
                job = newest
        return job

    async def events(self, job_id: JobId, check: Check, after: int) -> Response:
        """Answer with the events of one job that follow version `after`."""
        crowded = len(self._streams) >= self._options.max_streams
        watch = self._watch(job_id, self._streams)
        job = check(await watch.first())
        if job.status.terminal and job.version == after:
            # The one answer that makes EventSource stop (HTML, section 9.2.3).
            return Response(HTTPStatus.NO_CONTENT, (("Cache-Control", "no-store"),))
        if crowded:
            # Not 429 or 503, from which EventSource never recovers.
            snapshot = sse.retry(_SHED_SECONDS) + self._documents.event(job)
            return Response(HTTPStatus.OK, sse.HEADERS, snapshot)
        first = sse.retry(self._options.pacing.seconds())
        if job.version != after:
            first += self._documents.event(job)
        return StreamingResponse(HTTPStatus.OK, sse.HEADERS, chunks=self._frames(watch, first))

    async def socket(
        self, job_id: JobId, check: Check, after: int
    ) -> AsyncGenerator[bytes | Close | None]:
        """Yield a job's documents for a WebSocket, None when it is quiet, and at last a `Close`."""
        if parse_job_id(job_id) is None:
            yield _UNKNOWN
            return
        crowded = len(self._streams) >= self._options.max_streams
        watch = self._watch(job_id, self._streams)
        try:
            job = check(await watch.first())
        except UnknownJob:
            yield _UNKNOWN
            return
        except StoreUnavailable:
            yield _AWAY
            return
        if job.version != after:
            yield self._text(job)
        if crowded and not job.status.terminal:
            yield _SHED
            return
        async for newest in _Changes(watch, self._options):
            job = newest or job
            yield self._text(job) if newest else None
        yield _FINISHED if job.status.terminal else _GOING_AWAY

    async def _frames(self, watch: Watch, first: bytes) -> AsyncGenerator[bytes]:
        yield first
        async for job in _Changes(watch, self._options):
            yield sse.KEEP_ALIVE if job is None else self._documents.event(job)

    def _text(self, job: Job) -> bytes:
        return with_pace(self._documents.document(job), None)

    def _watch(self, job_id: JobId, among: WeakSet[Watch]) -> Watch:
        watch = self._jobs.subscribe(job_id)
        among.add(watch)
        if self._ended:
            watch.finish()
        return watch


class _Changes:
    """Yields changes until the job or the stream ends, and None when it is quiet.

    An iterator, not a generator, because there may be thousands.
    """

    __slots__ = ("_ends_at", "_pause", "_watch")

    def __init__(self, watch: Watch, options: MountOptions) -> None:
        self._watch = watch
        self._pause = options.keep_alive_interval.total_seconds()
        self._ends_at = anyio.current_time() + options.max_stream_duration.total_seconds()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job | None:
        left = self._ends_at - anyio.current_time()
        if left <= 0:
            raise StopAsyncIteration
        return await self._watch.within(min(left, self._pause))
