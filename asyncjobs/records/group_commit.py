"""Merges concurrent store calls into a few large ones (group commit).

Calls made in the same turn of the event loop are sent together. Calls that arrive while one is
under way are sent together as soon as it returns. There are no timers: a quiet process has no
delay, and a busy one makes a few large transactions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from asyncjobs.core.job import Job, JobId
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import ConfigurationError, NotOpen, StoreUnavailable
from asyncjobs.protocols import Change, InlineReads, OpenStore, OutputStreams, power_of
from asyncjobs.records.waiting import Answer, start_call

T = TypeVar("T")
R = TypeVar("R")

# The most items in one call of the store, unless a single caller sends more.
_MAX_BATCH_SIZE = 512

_LOOK_SECONDS = 0.005


class _Call(Answer[Sequence[R]], Generic[T, R]):
    """The answer that one caller waits for, and the items of its call."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[T]) -> None:
        super().__init__()
        self.items = items


class GroupCommit(Generic[T, R]):
    """One batch function, shared by many callers.

    The function runs in its own task, so the end of one caller does not affect the others. A caller
    that is cancelled while its items are under way gets its cancellation once their result is
    known, or after `limit`; the items are processed in any case.
    """

    def __init__(
        self,
        function: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        tasks: TaskGroup,
        limit: timedelta = timedelta(seconds=10),
        max_batch_size: int = _MAX_BATCH_SIZE,
    ) -> None:
        self._function = function
        self._tasks = tasks
        #: The longest wait of a call in seconds; calls that already wait keep their limit.
        self.limit = limit.total_seconds()
        self._max_batch_size = max_batch_size
        self._waiting: deque[_Call[T, R]] = deque()
        self._busy = False

    async def __call__(self, items: Sequence[T]) -> Sequence[R]:
        call: _Call[T, R] = _Call(items)
        self._waiting.append(call)
        # A task that is already running takes this call with its next batch.
        if not self._busy:
            self._begin()
        try:
            if await call.wait(self.limit):
                return call.get()
        finally:
            # Items that are not under way yet are not sent for a caller that is gone.
            if not call.given and call in self._waiting:
                self._waiting.remove(call)
        raise StoreUnavailable("of this queue", f"no answer within {self.limit:g} s")

    def _begin(self) -> None:
        self._busy = True  # before the task starts, which may happen at once
        try:
            start_call(self._drain, self._fail_if_ended, self._tasks)
        except RuntimeError as error:  # the event loop or the task group has ended
            self._busy = False
            self._fail_all(NotOpen("The store"))
            raise NotOpen("The store") from error

    async def _drain(self) -> None:
        calls: list[_Call[T, R]] = []
        try:
            # Shielded: callers still wait for these items when the task group is cancelled.
            with anyio.CancelScope(shield=True):
                while self._waiting:
                    calls = self._next()
                    await self._flush(calls)
        finally:
            # These calls are answered, and ignore a second answer. Only if the event loop is torn
            # down in the middle of a call are they not, and then they must fail with the others.
            self._waiting.extendleft(calls)
            self._fail_if_ended()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._busy

    def _fail_if_ended(self) -> None:
        if self._busy:
            self._busy = False
            self._fail_all(StoreUnavailable("of this process", "the event loop has ended"))

    def _fail_all(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().fail(error)

    def _next(self) -> list[_Call[T, R]]:
        # The first call is sent at any size: the items of one caller stay in one call.
        calls = [self._waiting.popleft()]
        size = len(calls[0].items)
        while self._waiting and size + len(self._waiting[0].items) <= self._max_batch_size:
            calls.append(self._waiting.popleft())
            size += len(calls[-1].items)
        return calls

    async def _flush(self, calls: list[_Call[T, R]]) -> None:
        try:
            results = await self._function([item for call in calls for item in call.items])
        except Exception as error:  # noqa: BLE001  # raised in the callers
            await self._settle(calls, error)
        else:
            start = 0
            for call in calls:
                call.succeed(results[start : start + len(call.items)])
                start += len(call.items)

    async def _settle(self, calls: list[_Call[T, R]], error: Exception) -> None:
        """Fail the calls; unless the store is unavailable, only the ones that cause an error."""
        if len(calls) == 1 or isinstance(error, StoreUnavailable):
            for call in calls:
                call.fail(error)
        else:
            # Repeat each call alone: one caller's bad item must not fail the calls of others.
            for call in calls:
                await self._flush([call])


class GroupCommitStore:
    """An open store in front of another one: the same contract, with concurrent calls merged.

    Each call raises `StoreUnavailable` after `limit`. It has the power `OutputStreams` if the other
    store has it, and no other power.
    """

    def __init__(
        self, store: OpenStore, tasks: TaskGroup, limit: timedelta = timedelta(seconds=10)
    ) -> None:
        self._store = store
        self._bound = Bound(limit.total_seconds(), tasks)
        self._insert = GroupCommit(store.insert, tasks, limit)
        self._read = GroupCommit(store.get, tasks, limit)
        self._replace = GroupCommit(store.replace, tasks, limit)
        self._inline = power_of(store, InlineReads) is not None
        streams = power_of(store, OutputStreams)
        self.powers: frozenset[type] = frozenset({OutputStreams} if streams else ())
        self._streams = streams or NO_STREAMS
        self._append = GroupCommit(self._streams.append, tasks, limit)
        self._outputs = GroupCommit(self._streams.outputs, tasks, limit)
        self._merged = (self._insert, self._read, self._replace, self._append, self._outputs)

    def set_limit(self, seconds: float) -> None:
        """Set the limit of later calls, in seconds; a queue that closes has less time."""
        self._bound.seconds = seconds
        for merged in self._merged:
            merged.limit = seconds

    async def finish(self) -> None:
        """Return when no call is under way, or after the limit."""
        with anyio.move_on_after(self._bound.seconds):
            while any(one.busy for one in self._merged):  # noqa: ASYNC110  # once, at the end
                await anyio.sleep(_LOOK_SECONDS)

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._insert(jobs)

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        # Merging costs more than a read that never waits.
        return await (self._store.get(ids) if self._inline else self._read(ids))

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._replace(changes)

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._bound.wait_for(
            lambda: self._store.take(lanes, now=now, until=until, limit=limit)
        )

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._bound.wait_for(lambda: self._store.delete(ids))

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        return await self._append(appends)

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await self._bound.wait_for(lambda: self._streams.begin_epoch(job_id, epoch))

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        if self._inline:
            return await self._streams.read_output(reads)
        return await self._bound.wait_for(lambda: self._streams.read_output(reads))

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        return await (self._streams.outputs(ids) if self._inline else self._outputs(ids))


class _NoStreams:
    @staticmethod
    async def append(*_: object) -> NoReturn:
        raise ConfigurationError("The store does not keep the output of jobs.")

    begin_epoch = read_output = outputs = append


#: The streams of a store that keeps no output: each call raises `ConfigurationError`.
NO_STREAMS: OutputStreams = _NoStreams()


class Bound:
    """Waits at most `seconds` for each call of a store, then raises `StoreUnavailable`.

    If there is a task group, each call runs in its own task: stores shield work that has begun, and
    if the server stops responding, only a timeout of the driver ends it. Work that has begun
    continues without its caller; a call that waits for its turn in the store is cancelled.
    """

    def __init__(self, seconds: float, tasks: TaskGroup | None = None) -> None:
        #: The limit of later calls; calls that already wait keep theirs.
        self.seconds = seconds
        self._tasks = tasks
        # The calls under way that further callers may share.
        self._shared: dict[Hashable, _BoundCall[Any]] = {}

    async def wait_for(
        self, function: Callable[[], Awaitable[R]], *, shared_as: Hashable | None = None
    ) -> R:
        """Return what the function returns, or raise what it raises.

        Callers with an equal `shared_as` share one call while it is under way.
        """
        if self._tasks is None:
            with anyio.move_on_after(self.seconds):
                return await function()
        else:
            # `Answer.wait` delays a cancellation, so a cancelled caller must not begin a call.
            await anyio.lowlevel.checkpoint_if_cancelled()
            shared: _BoundCall[R] | None = self._shared.get(shared_as)
            call = self._begin(function, self._tasks) if shared is None else shared
            if shared_as is not None:
                self._shared[shared_as] = call
            call.callers += 1
            try:
                if await call.wait(self.seconds):
                    return call.get()
            finally:
                call.callers -= 1
                # Removed with its last caller, before it may be cancelled: a later caller must
                # begin a call of its own. A call that is not shared has no entry.
                if not call.callers and self._shared.get(shared_as) is call:
                    del self._shared[shared_as]
            # Other callers of the same call may have more time left.
            if not call.callers:
                call.scope.cancel()
        raise StoreUnavailable("of this queue", f"no answer within {self.seconds:g} s")

    def _begin(self, function: Callable[[], Awaitable[R]], tasks: TaskGroup) -> _BoundCall[R]:
        call: _BoundCall[R] = _BoundCall()
        try:
            start_call(partial(_make, function, call), call.end, tasks)
        except RuntimeError as error:
            raise NotOpen("The store") from error
        return call


class _BoundCall(Answer[R]):
    """The answer of a call in its own task, and the number of callers that wait for it."""

    __slots__ = ("callers", "scope")

    def __init__(self) -> None:
        super().__init__()
        self.callers = 0
        self.scope = anyio.CancelScope()

    def end(self) -> None:
        """Fail the call if it has no answer yet."""
        if not self.given:
            self.fail(StoreUnavailable("of this process", "the event loop has ended"))


async def _make(function: Callable[[], Awaitable[R]], call: _BoundCall[R]) -> None:
    try:
        with call.scope:
            call.succeed(await function())
    except Exception as error:  # noqa: BLE001  # raised in the callers
        call.fail(error)
    finally:
        # Without an answer the call was cancelled, and no caller may wait until its limit.
        call.end()
