"""Writes what one attempt emits: encoded by its handler, joined, fenced, stored in order.

The items of an attempt that wait for the store are written together. An append whose answer was
lost is repeated at the position that it had, so that no item is stored twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from anyio import from_thread, to_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken

from asyncjobs.core.job import Job, Policy
from asyncjobs.core.output import (
    DEFAULT_STREAM,
    MAX_STREAMS,
    Append,
    Appended,
    ItemType,
    KindName,
    Refusal,
    StreamInfo,
    StreamKind,
    checked_stream_name,
    dump_item,
    kind_of_item,
)
from asyncjobs.errors import InvalidOutput, JobCancelled, NotAwaited, OutputTooLarge, StoreError
from asyncjobs.execution.calls import Calls
from asyncjobs.execution.tasks import current_loop
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import Repository
from asyncjobs.records.waiting import Signal, start_call

# The most bytes of one chunk, unless a single JSON value is larger, and of one call of the store.
_CHUNK_BYTES = 256 * 1024
_CALL_BYTES = 1024 * 1024

# How much may wait for the store before `emit` waits, if items are collected.
_MAX_WAITING_BYTES = 1024 * 1024
_MAX_WAITING_ITEMS = 10_000

# How long a loop of `emit` may keep the event loop before other tasks run.
_TURN_SECONDS = 0.005

# The attempt no longer owns the job.
_LOST = frozenset({Refusal.GONE, Refusal.ENDED, Refusal.STALE})

# How often an append is repeated after another writer has moved the end of the stream.
_MAX_MOVES = 5

# How long the rest is waited for when the handler has raised, in seconds.
_LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One emitted item as bytes."""

    stream: str
    kind: StreamKind
    items: int
    data: bytes


class Sink(Protocol):
    """Stores pieces in the order of the calls; returns when they are stored, or collected.

    Raises `InvalidOutput`, `OutputTooLarge`, `StoreError`, and `JobCancelled` if the attempt no
    longer owns the job.
    """

    async def write(self, piece: Piece) -> None: ...

    def write_and_block(self, piece: Piece) -> None:
        """Do as `write`, in another thread than that of the event loop."""
        ...


class Emission:
    """An item on its way: await it in `async def`. In `def` it is already stored."""

    __slots__ = ("_output", "_piece")

    def __init__(self, output: Output | None = None, piece: Piece | None = None) -> None:
        self._output = output
        self._piece = piece

    def __await__(self) -> Generator[Any, Any, None]:
        if self._output is not None and self._piece is not None:
            piece, self._piece = self._piece, None
            self._output.awaited(id(self))
            return self._output.write(piece).__await__()
        return _nothing().__await__()

    def __del__(self) -> None:
        # Maybe in the run of the collector, in any thread.
        if self._output is not None and self._piece is not None:
            self._output.dropped(id(self))


async def _nothing() -> None:
    pass


_STORED = Emission()


class Output(Calls):
    """The streams of one attempt, as its handler sees them."""

    def __init__(self, sink: Sink, items: ItemType | None, home: object | None = None) -> None:
        """Encode by the type of the unnamed stream.

        `home` is the event loop in which the sink can be awaited. In another one its blocking call
        is made in a thread.
        """
        super().__init__()
        self._sink = sink
        self._items = items
        self._home = home
        self._kinds: dict[str, StreamKind] = {}

    def stream(self, name: str, kind: KindName | None, check: Callable[[], None]) -> OutputStream:
        """Return a stream, of that kind if one is given; see `JobContext.stream`.

        `check` is called before each item, and raises if the handler must stop.
        """
        checked_stream_name(name)
        if kind is not None:
            chosen = StreamKind(kind)
            typed = self._items.kind if self._items and name == DEFAULT_STREAM else chosen
            if self._kind(name, typed) is not chosen:
                raise InvalidOutput(name, f"it is a stream of {self._kinds[name].value}")
        return OutputStream(name, self, check)

    def emit(self, name: str, item: Any) -> Emission:
        """Store an item; in an event loop, when the returned object is awaited."""
        self.check()
        typed = self._items if name == DEFAULT_STREAM else None
        kind = self._kind(name, typed.kind if typed else None, item)
        data = dump_item(name, kind, item) if typed is None else typed.dump(name, item)
        piece = Piece(name, kind, 1, data)
        if current_loop() is None:
            if data:
                self._sink.write_and_block(piece)
            return _STORED
        emission = Emission(self, piece)
        self._pending[id(emission)] = name  # as `made` does, for each item
        return emission

    def not_awaited(self, name: str) -> NotAwaited:
        return NotAwaited("job.emit(item)", f"An item of the stream {name!r}")

    async def write(self, piece: Piece) -> None:
        """Store the item of an emission that is being awaited."""
        if not piece.data:
            return
        if self._home is not None and current_loop() is self._home:
            await self._sink.write(piece)
        else:
            await to_thread.run_sync(self._sink.write_and_block, piece)

    def _kind(self, name: str, chosen: StreamKind | None, item: Any = None) -> StreamKind:
        known = self._kinds.get(name)
        if known is None:
            known = self._kinds[name] = chosen or kind_of_item(item)
        return known


class OutputStream:
    """One stream of a running job."""

    __slots__ = ("_check", "_output", "name")

    def __init__(self, name: str, output: Output, check: Callable[[], None]) -> None:
        #: The stream's name.
        self.name = name
        self._output = output
        self._check = check

    def emit(self, item: Any) -> Emission:
        """Add an item to the stream; see `JobContext.emit`."""
        self._check()
        return self._output.emit(self.name, item)


@dataclass(frozen=True)
class Holder:
    """What a writer must know of its attempt, and `lose`, called if it no longer owns the job."""

    job: Job
    policy: Policy
    lapsed: Callable[[], bool]
    stopping: Callable[[], bool]
    lose: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Run:
    """Pieces of one stream that are stored together; `append` may be a part of a single one."""

    append: Append
    pieces: Sequence[Piece]


class OutputWriter:
    """The sink of one attempt, in the event loop that runs it."""

    def __init__(
        self,
        holder: Holder,
        repository: Repository,
        tasks: TaskGroup,
        pause: float,
        loop: EventLoopToken,
    ) -> None:
        """While the store is away and the lease holds, try again after `pause` seconds."""
        self._holder = holder
        self._repository = repository
        self._tasks = tasks
        self._pause = pause
        self._loop = loop
        self._every = holder.policy.emit_every.total_seconds()
        # Pieces are numbered: all up to `_stored` are stored, those up to `_taken` are under way.
        self._waiting: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._added = self._taken = self._stored = 0
        # Other threads add pieces as well.
        self._lock = Lock()
        self._under_way: list[_Run] = []
        # What was taken last, in the order of the calls.
        self._last_taken: list[Piece] = []
        # Where each stream ends. A first attempt begins with empty ones.
        self._ends: dict[str, int] | None = {} if holder.job.attempt == 1 else None
        self._busy = False
        self._turn = Signal()
        self._turn_ends = 0.0
        self._collecting = False
        self._full = Signal()
        self._error: BaseException | None = None
        self._raised = False
        self._closed = False

    async def write(self, piece: Piece) -> None:
        number = self._add(piece)
        if self._every:
            self._collect()
            if not self._is_full:
                # Other tasks must run, among them the one that stores.
                if (now := monotonic()) >= self._turn_ends:
                    await anyio.lowlevel.checkpoint()
                    self._turn_ends = now + _TURN_SECONDS
                return
            self._full.set()
            await self._stored_until(lambda: not self._is_full)
        else:
            await self._stored_until(lambda: self._stored >= number)

    def write_and_block(self, piece: Piece) -> None:
        if not self._every:
            from_thread.run(self.write, piece, token=self._loop)
            return
        # Without a call into the event loop for each item: that takes longer than the item.
        self._add(piece)
        if self._is_full or not self._collecting:
            from_thread.run(self._hurry, token=self._loop)

    async def close(self, error: BaseException | None) -> None:
        """Store the rest, before the outcome is recorded; raise what could not be stored.

        If the handler has raised, that error counts, and the rest is waited for only shortly.
        """
        if isinstance(error, GeneratorExit):  # ended by force: nothing can be awaited
            self._closed = True
            return
        try:
            if error is None:
                await self._finish()
                if self._error is not None and not self._raised:
                    raise self._error
                return
            with anyio.move_on_after(_LAST_SECONDS, shield=True):
                try:
                    await self._finish()
                except (Exception, JobCancelled) as failed:  # noqa: BLE001  # the first error counts
                    fields = log_fields(self._holder.job)
                    log.warning("The last output was not stored: %s", failed, extra=fields)
        finally:
            self._closed = True

    async def _finish(self) -> None:
        last = self._added
        if self._stored < last and self._error is None:
            self._full.set()
            await self._stored_until(lambda: self._stored >= last)

    @property
    def _is_full(self) -> bool:
        left = self._added - self._taken
        return self._waiting_bytes >= _MAX_WAITING_BYTES or left >= _MAX_WAITING_ITEMS

    def _add(self, piece: Piece) -> int:
        if self._error is not None:
            self._raised = True
            raise self._error
        if self._closed:
            raise JobCancelled(self._holder.job.id)
        with self._lock:
            self._waiting.append(piece)
            self._waiting_bytes += len(piece.data)
            self._added += 1
            return self._added

    async def _hurry(self) -> None:
        self._collect()
        if self._is_full:
            self._full.set()
            await self._stored_until(lambda: not self._is_full)

    def _collect(self) -> None:
        """Start the task that stores what was collected."""
        if not self._collecting:
            self._collecting = True
            start_call(self._store_collected, self._stop_collecting, self._tasks)

    def _stop_collecting(self) -> None:
        self._collecting = False

    async def _store_collected(self) -> None:
        try:
            while self._stored < self._added and self._error is None:
                if not self._is_full:
                    await self._full.wait(self._every)
                last = self._added
                await self._stored_until(lambda: self._stored >= last)  # noqa: B023  # awaited here
        except (Exception, JobCancelled) as error:  # noqa: BLE001  # raised in the handler
            self._error = self._error or error
        finally:
            self._collecting = False
        # A thread may have added a piece after the last look.
        if self._stored < self._added and self._error is None:
            self._collect()

    async def _stored_until(self, enough: Callable[[], bool]) -> None:
        """Write in turns with other tasks until it is enough; raise what made that impossible."""
        while not enough():
            if self._error is not None:
                self._raised = True
                raise self._error
            if self._busy:
                await self._turn.wait()
                continue
            self._busy = True
            try:
                await self._store_some()
            except StoreError:
                raise
            except (Exception, JobCancelled) as error:  # noqa: BLE001  # raised below
                self._error = error
                continue
            finally:
                self._busy = False
                self._turn.set()

    async def _store_some(self) -> None:
        """Store what waits, up to a limit. What is under way stays so until its answer is known."""
        moves = 0
        if not self._under_way:
            self._under_way = self._next()
        while True:
            await self._know_ends()
            placed = self._placed()
            answers = await self._patiently(lambda: self._repository.append(placed))  # noqa: B023  # awaited here
            refused = next((one.refusal for one in answers if one.refusal is not None), None)
            self._note(answers)
            if refused is None:
                self._stored = self._taken
                return
            if refused is Refusal.FULL and await self._shorten():
                continue
            if refused is not Refusal.MOVED or (moves := moves + 1) > _MAX_MOVES:
                error = await self._error_of(refused, self._under_way[0].append)
                self._note_stored()
                raise error
            # Another writer appends to the stream as well.
            self._ends = None

    async def _shorten(self) -> bool:
        """Split the first run, which is too large, after what fits; return False if nothing does.

        What waits together is refused together.
        """
        run, policy = self._under_way[0], self._holder.policy
        infos: Sequence[StreamInfo]
        [infos] = await self._patiently(lambda: self._repository.outputs([run.append.job_id]))
        if len(infos) >= MAX_STREAMS and run.append.stream not in {info.name for info in infos}:
            return False
        items = policy.max_output_items - sum(info.items for info in infos)
        size = policy.max_output_bytes - sum(info.bytes for info in infos)
        separator, count = int(run.append.kind is StreamKind.JSON), 0
        # Not all of them: the whole run was refused.
        for piece in run.pieces[:-1]:
            size -= len(piece.data) + (separator if count else 0)
            if size < 0 or count >= items:
                break
            count += 1
        if not count:
            return False
        self._under_way[:1] = self._runs(run.pieces[:count]) + self._runs(run.pieces[count:])
        return True

    def _note_stored(self) -> None:
        """Count what is stored although the rest cannot be."""
        left = {id(piece) for run in self._under_way for piece in run.pieces}
        whole = next(i for i, piece in enumerate(self._last_taken) if id(piece) in left)
        self._stored = self._taken - len(self._last_taken) + whole

    def _next(self) -> list[_Run]:
        """Take waiting pieces, joined by stream."""
        size = 0
        # Of each stream the pieces of each chunk, and the bytes of the last chunk.
        joined: dict[str, list[list[Piece]]] = {}
        sizes: dict[str, int] = {}
        self._last_taken = []
        with self._lock:
            while self._waiting and (not size or size + len(self._waiting[0].data) <= _CALL_BYTES):
                piece = self._waiting.popleft()
                length = len(piece.data)
                size += length
                self._taken += 1
                self._last_taken.append(piece)
                runs = joined.setdefault(piece.stream, [])
                here = sizes.get(piece.stream, 0) + length + 1
                if not runs or here > _CHUNK_BYTES:
                    runs.append([])
                    here = length
                sizes[piece.stream] = here
                runs[-1].append(piece)
            self._waiting_bytes -= size
        return [one for runs in joined.values() for run in runs for one in self._runs(run)]

    def _runs(self, run: Sequence[Piece]) -> list[_Run]:
        job, policy, first = self._holder.job, self._holder.policy, run[0]
        separator = b"," if first.kind is StreamKind.JSON else b""
        data = separator.join(one.data for one in run)
        parts = [data] if first.kind is StreamKind.JSON else _cut(first.kind, data)
        return [
            _Run(
                Append(
                    job_id=job.id,
                    stream=first.stream,
                    kind=first.kind,
                    epoch=job.attempt,
                    # Parts of one item count as one.
                    items=len(run) if place == 0 else 0,
                    data=part,
                    max_items=policy.max_output_items,
                    max_bytes=policy.max_output_bytes,
                ),
                run,
            )
            for place, part in enumerate(parts)
        ]

    def _placed(self) -> list[Append]:
        """Return what is under way with the positions where it belongs."""
        ends = dict(self._ends or {})
        placed: list[Append] = []
        for run in self._under_way:
            one = run.append
            position = ends.get(one.stream, 0)
            ends[one.stream] = position + one.units
            placed.append(_at(one, position))
        return placed

    def _note(self, answers: Sequence[Appended]) -> None:
        """Drop what is stored from what is under way."""
        left: list[_Run] = []
        for run, answer in zip(self._under_way, answers, strict=True):
            if answer.refusal is not None:
                left.append(run)
            elif self._ends is not None:
                self._ends[run.append.stream] = answer.end
        self._under_way = left

    async def _know_ends(self) -> None:
        if self._ends is None:
            job_id = self._holder.job.id
            [infos] = await self._patiently(lambda: self._repository.outputs([job_id]))
            self._ends = {
                one.name: one.items if one.kind is StreamKind.JSON else one.bytes for one in infos
            }

    async def _patiently(self, call: Callable[[], Awaitable[Sequence[Any]]]) -> Sequence[Any]:
        """Call the store, again while it is away and the lease holds."""
        while True:
            try:
                return await call()
            except StoreError:
                if self._holder.lapsed() or self._holder.stopping():
                    raise
                await anyio.sleep(self._pause)

    async def _error_of(self, refusal: Refusal, one: Append) -> BaseException:
        job, policy = self._holder.job, self._holder.policy
        if refusal in _LOST:
            self._holder.lose()
            return JobCancelled(job.id)
        infos: Sequence[StreamInfo]
        [infos] = await self._patiently(lambda: self._repository.outputs([job.id]))
        kinds = {info.name: info.kind.value for info in infos}
        if refusal is Refusal.KIND:
            return InvalidOutput(one.stream, f"it is a stream of {kinds.get(one.stream)}")
        if refusal is Refusal.MOVED:
            return InvalidOutput(one.stream, "another program writes to it all the time")
        if one.stream not in kinds and len(kinds) >= MAX_STREAMS:
            return OutputTooLarge(MAX_STREAMS, "streams")
        if sum(info.items for info in infos) + one.items > policy.max_output_items:
            return OutputTooLarge(policy.max_output_items, "items", "Policy.max_output_items")
        return OutputTooLarge(policy.max_output_bytes, "bytes", "Policy.max_output_bytes")


def _at(one: Append, position: int) -> Append:
    return Append(
        one.job_id,
        one.stream,
        one.kind,
        one.epoch,
        one.items,
        one.data,
        one.max_items,
        one.max_bytes,
        position,
    )


def _cut(kind: StreamKind, data: bytes) -> list[bytes]:
    """Return the bytes in parts of limited size; a text is not cut inside a character."""
    parts: list[bytes] = []
    start = 0
    while start < len(data):
        end = min(start + _CHUNK_BYTES, len(data))
        # The bytes of a character after its first one begin with the bits 10 (RFC 3629).
        while kind is StreamKind.TEXT and end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(data[start:end])
        start = end
    return parts


class PipeSink:
    """Sends pieces to the parent process, which answers when they are stored or collected."""

    def __init__(self, ask: Callable[[Piece], object]) -> None:
        self._ask = ask

    async def write(self, piece: Piece) -> None:
        await to_thread.run_sync(self._ask, piece)

    def write_and_block(self, piece: Piece) -> None:
        self._ask(piece)


def written_for(sink: Sink, piece: Piece) -> BaseException | None:
    """Store a piece of a child process; return the error that it raises there."""
    try:
        sink.write_and_block(piece)
    except BaseException as error:  # noqa: BLE001  # the child raises it
        return error
    return None
