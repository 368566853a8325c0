"""Answers reads of output: once, held until there is more, or as a stream of events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio

from asyncjobs.core.handlers import Handler
from asyncjobs.core.job import RESERVED_PREFIX, Job, JobId
from asyncjobs.core.output import (
    DEFAULT_STREAM,
    ReadFrom,
    StreamInfo,
    StreamKind,
    checked_stream_name,
)
from asyncjobs.errors import InvalidQuery
from asyncjobs.http import sse
from asyncjobs.http.headers import matches
from asyncjobs.http.messages import NoChunks, Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.output import (
    BEYOND,
    BODY_BYTES,
    LONGEST,
    OutputQuery,
    StreamAddress,
    body_of,
    by_epoch,
    check_position,
    content_type_of,
    cursor_at,
    etag_of_portion,
    event_headers_of,
    events_of,
    headers_of,
    least_cursor,
    output_query_of,
    portion_of,
)
from asyncjobs.http.problems import no_such_stream, too_many_held
from asyncjobs.http.streams import Frames, Streams
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.output_hub import OutputReader, Portion

# How many jobs that have ended are kept with their streams.
_MAX_ENDED = 1000

_NO_STORE = ("Cache-Control", "no-store")
# One user's data, to be checked each time: it may have grown, or be deleted with its job.
_REVALIDATE = ("Cache-Control", "private, no-cache")


class Wish(NamedTuple):
    """What a request asks for, how many connections its server may hold, and for how long."""

    query: str
    headers: Mapping[str, str]
    room: int
    is_head: bool
    lasts: float


@dataclass(frozen=True, slots=True)
class _Stream:
    """The stream that is read, and what its handler declares it to be."""

    job: Job
    address: StreamAddress
    declared: StreamKind | None

    def kind(self, portion: Portion) -> StreamKind | None:
        return portion.kind or self.declared


class OutputAnswers:
    """The answers to reads of output of one mount."""

    def __init__(self, jobs: AsyncJobs, options: MountOptions, streams: Streams) -> None:
        self._jobs = jobs
        self._options = options
        self._streams = streams
        self._events = _EventCache()
        self._ended: OrderedDict[tuple[JobId, int], Sequence[StreamInfo]] = OrderedDict()

    async def answer(self, job: Job, name: str, wish: Wish) -> Response:
        """Answer a read of a stream of a job that the caller may see; raise `InvalidQuery`.

        A stream that does not exist is empty: open while the job may still emit, then closed.
        """
        try:
            checked_stream_name(name)
        except ValueError:
            return no_such_stream("No stream of output can have this name.")
        if not self._jobs.keeps_output:
            return no_such_stream("The store of this server keeps no output.")
        address = StreamAddress.of(job.id, name)
        stream = _Stream(job, address, self._declared(job, name))
        asked = output_query_of(wish.query, address)
        if wish.is_head:
            return await self._size(stream)
        if asked.live is None:
            return await self._once(stream, asked, wish.headers.get("if-none-match"))
        reader = self._jobs.output_reader(job.id, name, await self._begin(stream, asked))
        crowded = not self._streams.has_room(wish.room)
        self._streams.hold(reader)
        if asked.live == "sse":
            return await self._as_events(stream, asked, reader, crowded=crowded, lasts=wish.lasts)
        try:
            return await self._when_more(stream, asked, reader, crowded=crowded)
        finally:
            self._streams.let_go(reader)
            await reader.aclose()

    async def streams_of(self, job: Job) -> Sequence[StreamInfo]:
        """Return the streams of a job for its document; the store is asked only if it may have any.

        Those of a job that has ended are kept, for clients that read its status repeatedly.
        """
        if not self.may_have(job) or not job.attempt:
            return ()
        key = (job.id, job.revision)
        known = self._ended.get(key)
        if known is None:
            [known] = await self._jobs.outputs([job.id])
            if job.status.terminal:
                self._ended[key] = known
                if len(self._ended) > _MAX_ENDED:
                    self._ended.popitem(last=False)
        return known

    def may_have(self, job: Job) -> bool:
        """Return whether a job can emit anything, now or later."""
        return self._jobs.keeps_output and not job.type.startswith(RESERVED_PREFIX)

    def _declared(self, job: Job, name: str) -> StreamKind | None:
        registry = self._jobs.registry
        handler: Handler[Any, Any] | None = registry.handler(job.type)
        if name != DEFAULT_STREAM or handler is None or handler.items is None:
            return None
        return handler.items.kind

    async def _read(self, stream: _Stream, position: int) -> Portion:
        address = stream.address
        part = await self._jobs.read_output(
            ReadFrom(address.job_id, address.name, position, BODY_BYTES)
        )
        # The job was read before: if it had ended, nothing was appended since.
        return portion_of(part, position, ended=stream.job.status.terminal)

    async def _tail(self, stream: _Stream) -> Portion:
        beyond = await self._read(stream, BEYOND)
        closed = stream.job.status.terminal
        return Portion(
            beyond.kind, beyond.tail, (), beyond.tail, beyond.epoch, beyond.tail, True, closed
        )  # fmt: skip

    async def _begin(self, stream: _Stream, asked: OutputQuery) -> int:
        if asked.position is None:
            return (await self._tail(stream)).end
        if asked.position > BEYOND:
            check_position(asked.position, BEYOND)
        return asked.position

    async def _size(self, stream: _Stream) -> Response:
        """Answer HEAD, which asks for the end of the stream and not for a body."""
        tail = await self._tail(stream)
        described = ("Content-Type", content_type_of(stream.kind(tail)))
        headers = (described, *headers_of(stream.address, tail), _NO_STORE)
        return StreamingResponse(HTTPStatus.OK, headers, chunks=NoChunks())

    async def _once(self, stream: _Stream, asked: OutputQuery, known: str | None) -> Response:
        now = asked.position is None
        if asked.position is None:
            portion = await self._tail(stream)
        else:
            portion = await self._read(stream, await self._begin(stream, asked))
            check_position(portion.position, portion.tail)
            portion = next(by_epoch(portion))
        etag = etag_of_portion(portion)
        fresh = (_NO_STORE,) if now else (("ETag", etag), _REVALIDATE)
        headers = (*headers_of(stream.address, portion), *fresh)
        if not now and matches(known, etag):
            return Response(HTTPStatus.NOT_MODIFIED, headers)
        return self._whole(stream, portion, headers)

    def _whole(
        self, stream: _Stream, portion: Portion, headers: tuple[tuple[str, str], ...]
    ) -> Response:
        kind = stream.kind(portion)
        described = ("Content-Type", content_type_of(kind))
        empty = b"[]" if kind is StreamKind.JSON else b""
        body = body_of(portion) if portion.chunks else empty
        return Response(HTTPStatus.OK, (described, *headers), body)

    async def _first(self, reader: OutputReader) -> Portion:
        try:
            portion = await reader.first()
            check_position(portion.position, portion.tail)
        except (InvalidQuery, StopAsyncIteration):
            await reader.aclose()
            raise
        return portion

    async def _when_more(
        self, stream: _Stream, asked: OutputQuery, reader: OutputReader, *, crowded: bool
    ) -> Response:
        """Answer as soon as there is something after the position; 204 if that takes too long."""
        try:
            portion = await self._first(reader)
        except StopAsyncIteration:  # the queue is about to close
            return too_many_held(self._pause())
        wait = self._options.max_wait.total_seconds()
        if not portion.chunks and not portion.closed:
            if crowded or not wait:
                return too_many_held(self._pause())
            with anyio.move_on_after(wait):
                later = await anext(reader, None)
                if later is None:
                    await self._jobs.find(stream.job.id)  # raises `UnknownJob` if it was deleted
                portion = later or portion
        portion = next(by_epoch(portion))
        now = self._jobs.clock.now()
        cursor = cursor_at(now, least_cursor(now, asked.cursor))
        headers = (*headers_of(stream.address, portion, cursor), _NO_STORE)
        if portion.chunks:
            return self._whole(stream, portion, headers)
        return Response(HTTPStatus.NO_CONTENT, headers)

    async def _as_events(
        self,
        stream: _Stream,
        asked: OutputQuery,
        reader: OutputReader,
        *,
        crowded: bool,
        lasts: float,
    ) -> Response:
        """Return the stream of events. Without room, clients get what there is, and reconnect."""
        try:
            portion = await self._first(reader)
        except StopAsyncIteration:  # the queue is about to close
            return too_many_held(self._pause())
        if stream.kind(portion) is None and not portion.closed and not crowded:
            # The headers depend on the kind, and the first item decides it.
            with anyio.move_on_after(self._options.max_wait.total_seconds()):
                portion = await anext(reader, portion)
        kind = stream.kind(portion)
        least = least_cursor(self._jobs.clock.now(), asked.cursor)

        def encode(portion: Portion) -> bytes:
            if (portion.kind or kind) is not kind:
                raise StopAsyncIteration  # not as declared: the client reconnects
            cursor = cursor_at(self._jobs.clock.now(), least)
            return self._events.get(stream.address, portion, cursor)

        headers = event_headers_of(kind)
        first = encode(portion)
        if crowded or (kind is None and not portion.closed):
            await reader.aclose()
            pause = self._pause() if crowded else 1
            headers = (*headers, ("Retry-After", str(pause)))
            return Response(HTTPStatus.OK, headers, sse.retry(pause) + first)
        frames = Frames(
            reader, self._options, encode, first, lasts=min(LONGEST.total_seconds(), lasts)
        )
        return StreamingResponse(HTTPStatus.OK, headers, chunks=frames)

    def _pause(self) -> int:
        pacing = self._options.pacing
        return pacing.seconds(pacing.max_delay)


_MAX_CACHE_BYTES = 4 * 1024 * 1024


class _EventCache:
    """Shares the bytes of events among the readers of a stream."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, address: StreamAddress, portion: Portion, cursor: int) -> bytes:
        key = (
            address.job_id, address.name, portion.position, portion.end, portion.up_to_date,
            portion.closed, cursor,
        )  # fmt: skip
        text = self._kept.get(key)
        if text is None:
            text = self._kept[key] = events_of(address, portion, cursor)
            self._bytes += len(text)
            while self._bytes > _MAX_CACHE_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
        return text
