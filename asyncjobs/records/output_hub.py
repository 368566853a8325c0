"""Distributes the output of jobs to its readers: one hub per process.

All readers of one stream share its chunks and its reads. Appends of this process reach them without
a read; appends of other processes cost one read each, however many readers there are. The hub keeps
only the latest chunks: a reader that is further behind gets its part from the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import anyio

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import (
    Append,
    Appended,
    Chunk,
    OutputPart,
    ReadFrom,
    StreamKind,
    after,
)
from asyncjobs.errors import StoreError, UnknownJob
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.inbox import Inbox, Watching
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal

#: The most bytes of one portion, unless its first chunk is larger.
PORTION_BYTES = 128 * 1024

# The latest chunks that are kept of each stream that has readers.
_KEPT_BYTES = 256 * 1024
_KEPT_CHUNKS = 1000

# The most reads in one call of the store.
_READS_PER_CALL = 50


class OutputSource(Protocol):
    """Reads jobs and their output; the repository does."""

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]: ...

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]: ...


@dataclass(frozen=True, slots=True)
class Portion:
    """The next part of a stream for one reader: the chunks from `position` to `end`.

    `epoch` is that of the last item before `end`; 0 if there is none. `kind` is None while the
    stream does not exist. `tail` is the end of the stream as far as it is known, `up_to_date`
    whether there is nothing after `end` now, and `closed` whether there never will be.
    """

    kind: StreamKind | None
    position: int
    chunks: tuple[Chunk, ...]
    end: int
    epoch: int
    tail: int
    up_to_date: bool
    closed: bool


class OutputHub:
    """Keeps the streams that have readers current; it costs nothing without readers."""

    def __init__(self, source: OutputSource, feed: ChangeFeed, *, poll: float) -> None:
        self._source = source
        self._feed = feed
        self._poll = poll
        self._streams: dict[JobId, dict[str, _Stream]] = {}
        # The readers that need a part from the store, by what they need.
        self._wants: dict[tuple[_Stream, int], list[OutputReader]] = {}
        # Filled by the garbage collector in any thread; `_let_go` applies it on the event loop.
        self._left: deque[tuple[_Stream, Inbox[Portion]]] = deque()
        self._wanted = Signal()
        self._following = False

    def reader(self, job_id: JobId, stream: str, position: int = 0) -> OutputReader:
        """Return a reader of one stream that begins at a position."""
        return OutputReader(self, job_id, stream, position)

    def appended(self, appends: Sequence[Append], answers: Sequence[Appended]) -> None:
        """Give what this process has just appended to the readers of the streams."""
        for append, answer in zip(appends, answers, strict=True):
            one = self._streams.get(append.job_id, {}).get(append.stream)
            if one is None or answer.refusal is not None:
                continue
            begin = answer.end - append.units
            if begin == one.tail and append.units:
                one.kind = append.kind
                one.keep((Chunk(begin, append.units, append.epoch, append.data),))
                one.tail = answer.end
                one.wake()
            elif answer.end > one.tail or one.kind is None:
                self._mark(one)  # other processes have appended as well, or the stream is new

    @property
    def is_closed(self) -> bool:
        """Whether the queue was closed, so that readers end."""
        return self._feed.closed

    @property
    def readers(self) -> int:
        """The number of readers; any thread may read it."""
        # `list` copies in one step that other threads cannot interrupt.
        streams = [
            one for by_name in list(self._streams.values()) for one in list(by_name.values())
        ]
        return sum(len(one.inboxes) for one in streams) - len(self._left)

    @property
    def followed(self) -> int:
        """The number of streams with readers: the listeners of the feed that are the hub's."""
        return sum(map(len, list(self._streams.values())))

    async def run(self) -> None:
        """Read what readers need and what may have changed, until cancelled."""
        next_poll = anyio.current_time() + self._poll
        while True:
            self._let_go()
            if not self._streams:
                await self._wanted.wait()
                next_poll = anyio.current_time() + self._poll
            # A signal that is left over only causes one more turn.
            await self._wanted.wait(max(0.0, next_poll - anyio.current_time()))
            began = anyio.current_time()
            if began >= next_poll:
                self._mark_all()
                next_poll = began + self._poll
            try:
                await self._read()
            except StoreError as error:
                log.warning("The output of jobs could not be read: %s", error)
                await anyio.sleep(self._poll)
                self._wanted.set()
            # Rest as long as the reads took: reads without a break would slow down everything else.
            await anyio.sleep(min(self._poll, anyio.current_time() - began))

    # for readers

    def join(self, job_id: JobId, name: str, inbox: Inbox[Portion]) -> _Stream:
        """Return the stream, and wake the inbox when it grows or ends, until `leave`."""
        self._let_go()
        if not self._following:
            self._following = True
            self._feed.on_notice(self._notice)
        by_name = self._streams.setdefault(job_id, {})
        one = by_name.get(name)
        if one is None:
            one = by_name[name] = _Stream(self, job_id, name)
            self._feed.listen(job_id, one.job_changed)
            # Wakes the loop, which waits without a limit while there are no streams.
            self._wanted.set()
        one.inboxes[inbox] = None
        return one

    def leave(self, one: _Stream, inbox: Inbox[Portion]) -> None:
        """Undo `join`; a second call does nothing."""
        one.inboxes.pop(inbox, None)
        by_name = self._streams.get(one.job_id, {})
        if one.inboxes or by_name.get(one.name) is not one:
            return
        self._feed.unlisten(one.job_id, one.job_changed)
        del by_name[one.name]
        if not by_name:
            del self._streams[one.job_id]
        if not self._streams:
            self._following = False
            self._feed.off_notice(self._notice)

    def leave_later(self, one: _Stream, inbox: Inbox[Portion]) -> None:
        """Schedule `leave`; safe in any thread and at any moment, even in a collector's run."""
        self._left.append((one, inbox))

    def want(self, one: _Stream, position: int, reader: OutputReader) -> None:
        """Read a part that is not kept here, and put it into the reader's inbox."""
        self._wants.setdefault((one, position), []).append(reader)
        self._wanted.set()

    def check(self, one: _Stream) -> None:
        """Read the end of a stream, which may have changed."""
        self._mark(one)

    async def begin(self, one: _Stream, position: int) -> Portion:
        """Read the first portion of a reader; raise `UnknownJob` and what the store raises."""
        [job] = await self._source.get([one.job_id])
        if job is None:
            raise UnknownJob(one.job_id)
        ended = job.status.terminal
        # After the job: when that has ended, this is all of its output.
        [part] = await self._source.read_output([one.read_from(position)])
        if ended:
            one.closed = True
        return one.portion_of(part, position)

    def _let_go(self) -> None:
        while self._left:
            self.leave(*self._left.popleft())

    def _notice(self, ids: Sequence[JobId]) -> None:
        if not ids:
            self._mark_all()
        for job_id in ids:
            for one in self._streams.get(job_id, {}).values():
                self._mark(one)

    def _mark_all(self) -> None:
        for by_name in self._streams.values():
            for one in by_name.values():
                self._mark(one)

    def _mark(self, one: _Stream) -> None:
        if not one.closed:
            one.stale = True
            self._wanted.set()

    async def _read(self) -> None:
        """Do the reads that are due, several in one call of the store."""
        wants, self._wants = self._wants, {}
        for by_name in tuple(self._streams.values()):
            for one in by_name.values():
                if one.stale:
                    wants.setdefault((one, one.tail), [])
        due = list(wants.items())
        for start in range(0, len(due), _READS_PER_CALL):
            some = due[start : start + _READS_PER_CALL]
            # Noted before the read: what ends or changes during it is read again.
            ending = [one.ending for (one, _), _ in some]
            for (one, _), _ in some:
                one.stale = False
            reads = [one.read_from(position) for (one, position), _ in some]
            try:
                parts = await self._source.read_output(reads)
            except BaseException:
                for (one, position), readers in due[start:]:
                    one.stale = True
                    self._wants.setdefault((one, position), []).extend(readers)
                raise
            for ((one, position), readers), part, ended in zip(some, parts, ending, strict=True):
                one.closed = one.closed or ended
                portion = one.portion_of(part, position)
                for reader in readers:
                    reader.put(portion)
                one.wake()


class _Stream:
    """One stream that has readers: the latest chunks, and what is known of its end."""

    __slots__ = (
        "_bytes", "_chunks", "_hub", "closed", "ending", "epoch", "gone", "inboxes", "job_id",
        "kind", "loaded", "name", "stale", "tail",
    )  # fmt: skip

    def __init__(self, hub: OutputHub, job_id: JobId, name: str) -> None:
        self._hub = hub
        self.job_id = job_id
        self.name = name
        self.kind: StreamKind | None = None
        self.inboxes: dict[Inbox[Portion], None] = {}
        #: The known end of the stream, and the epoch of the item before it.
        self.tail = 0
        self.epoch = 0
        #: The end of the chunks that are kept here, the latest ones as a rule.
        self.loaded = 0
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        #: Whether its end must be read again.
        self.stale = False
        #: Whether the job has ended, so that the next read is the last one.
        self.ending = False
        #: Whether all of it is known to be stored.
        self.closed = False
        #: Whether the job was deleted, or the queue was closed.
        self.gone = False

    def read_from(self, position: int) -> ReadFrom:
        """Return the request for the portion at a position."""
        return ReadFrom(self.job_id, self.name, position, PORTION_BYTES)

    def job_changed(self, job: Job | None) -> None:
        """Note a state of the job; None if it is gone."""
        if job is None:
            self.gone = True
            self.wake()
        elif job.status.terminal and not self.ending:
            self.ending = True
            self._hub.check(self)

    def wake(self) -> None:
        """Wake all readers."""
        # A copy: a reader may leave while it is woken.
        for inbox in tuple(self.inboxes):
            inbox.wake()

    def keep(self, chunks: Sequence[Chunk]) -> None:
        """Keep chunks for all readers; those that do not follow the kept ones replace them."""
        if chunks[0].position != self.loaded:
            self._chunks.clear()
            self._bytes = 0
        for chunk in chunks:
            self._chunks.append(chunk)
            self._bytes += len(chunk.data)
        self.loaded, self.epoch = chunks[-1].end, max(self.epoch, chunks[-1].epoch)
        while len(self._chunks) > 1 and (
            self._bytes > _KEPT_BYTES or len(self._chunks) > _KEPT_CHUNKS
        ):
            self._bytes -= len(self._chunks.popleft().data)

    def portion_of(self, part: OutputPart | None, position: int) -> Portion:
        """Note what the store returned for a position; return it as a portion."""
        if part is None:
            return self._portion(position, (), self.epoch)
        self.kind = part.kind
        if part.end >= self.tail:
            self.tail, self.epoch = part.end, max(self.epoch, part.epoch)
        chunks = part.chunks
        # Readers of older parts come one by one; the end of the stream is what all of them read.
        if chunks and chunks[-1].end > self.loaded:
            new = [one for one in chunks if one.position >= self.loaded] or chunks
            if new[0].position == self.loaded or new[-1].end == part.end:
                self.keep(new)
        return self._portion(position, _trimmed(part.kind, chunks, position), part.epoch)

    def next(self, position: int) -> Portion | None:
        """Return what is kept here after a position; None if the store must be read."""
        if position >= self.tail:
            return self._portion(position, (), self.epoch)
        kept = self._chunks
        if self.kind is None or not kept or not kept[0].position <= position < self.loaded:
            return None
        # From the end: nearly all readers lack only the latest chunks.
        count = size = 0
        for count, chunk in enumerate(reversed(kept), 1):  # noqa: B007
            if chunk.position <= position:
                break
        found: list[Chunk] = []
        for chunk in islice(kept, len(kept) - count, None):
            if found and size + len(chunk.data) > PORTION_BYTES:
                break
            found.append(chunk)
            size += len(chunk.data)
        return self._portion(position, _trimmed(self.kind, tuple(found), position), self.epoch)

    def _portion(self, position: int, chunks: tuple[Chunk, ...], epoch: int) -> Portion:
        end = chunks[-1].end if chunks else position
        up_to_date = end >= self.tail
        return Portion(
            self.kind,
            position,
            chunks,
            end,
            chunks[-1].epoch if chunks else epoch,
            self.tail,
            up_to_date,
            self.closed and up_to_date,
        )


def _trimmed(kind: StreamKind, chunks: tuple[Chunk, ...], position: int) -> tuple[Chunk, ...]:
    """Return the chunks without what is before the position."""
    if not chunks or chunks[0].position >= position:
        return chunks
    first = after(kind, chunks[0], position)
    return (first, *chunks[1:]) if first.units else chunks[1:]


class OutputReader(Watching[Portion]):
    """Yields the portions of a stream from a position on, up to the closed one.

    The first portion comes at once and may be empty; later ones have chunks or are the closed one.
    The iteration ends without a closed portion if the job is deleted or the queue closes.
    """

    __slots__ = ("_asked", "_hub", "_key", "_stream")

    def __init__(self, hub: OutputHub, job_id: JobId, stream: str, position: int) -> None:
        super().__init__(Inbox[Portion]())
        self._hub = hub
        self._key = (job_id, stream, position)
        self._stream: _Stream | None = None
        # The position for which the store's part was last asked.
        self._asked: int | None = None

    async def __anext__(self) -> Portion:
        return await super().__anext__() if self._begun else await self.first()

    async def first(self) -> Portion:
        """Return the first portion; raise `UnknownJob` and what the store raises.

        Raises `StopAsyncIteration` if the queue was just closed.
        """
        await self._begin()
        if self._stream is None:
            raise StopAsyncIteration
        try:
            portion = await self._hub.begin(self._stream, self.position)
        except BaseException:
            self._end()
            raise
        return self._passed(portion)

    @property
    def position(self) -> int:
        """Where the next portion begins."""
        return self._key[2]

    def take(self) -> Portion | None:
        """Return the next portion, None if none is there; raise `StopAsyncIteration` at the end.

        Call it before `wait`, which is not woken for what was there before.
        """
        one = self._stream
        if self._ended or one is None or self._inbox.ended:
            self._end()
            raise StopAsyncIteration
        position = self._key[2]
        portion = self._inbox.take()
        if portion is not None:
            self._asked = None
        if portion is None or not (portion.chunks or portion.closed):
            portion = one.next(position)
        if one.gone and (portion is None or not portion.chunks):
            self._end()
            raise StopAsyncIteration
        if portion is None:
            if self._asked != position:
                self._asked = position
                self._hub.want(one, position, self)
            return None
        return self._passed(portion) if portion.chunks or portion.closed else None

    def put(self, portion: Portion) -> None:
        """Receive a part that this reader wanted.

        The read of another reader may have given it that part before: then it is further on.
        """
        if not self._ended and portion.position == self._key[2]:
            self._inbox.put(portion)

    async def _begin(self) -> None:
        self._begun = True
        if self._hub.is_closed:
            self._end()
            return
        # Joined before reading: a change between the two would be lost otherwise.
        job_id, name, _ = self._key
        self._stream = self._hub.join(job_id, name, self._inbox)

    def _passed(self, portion: Portion) -> Portion:
        job_id, name, _ = self._key
        self._key = (job_id, name, portion.end)
        if portion.closed:
            self._end()
        return portion

    def _leave(self) -> None:
        if self._stream is not None:
            self._hub.leave(self._stream, self._inbox)

    def _leave_later(self) -> None:
        if self._stream is not None:
            self._hub.leave_later(self._stream, self._inbox)
