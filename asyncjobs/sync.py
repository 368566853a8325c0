"""The synchronous interface: the methods of a queue for code that cannot await."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

import anyio
from anyio import from_thread
from anyio.lowlevel import EventLoopToken

from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.core.output import (
    DEFAULT_STREAM,
    OutputItem,
    checked_position,
    checked_stream_name,
    numbered_items,
)
from asyncjobs.core.schedules import Schedule
from asyncjobs.core.submission import BatchTerms, EnqueueTerms, ManyTerms, Owner
from asyncjobs.errors import BlockingCall, ConfigurationError, NotOpen, UnknownJob
from asyncjobs.execution.tasks import current_loop
from asyncjobs.handles import BatchHandle
from asyncjobs.portal import Call, portal_for
from asyncjobs.protocols import JobHandle, Page, Selection
from asyncjobs.settings import Seconds, seconds

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

# How long another thread may take to open the queue.
_OPENING_SECONDS = 30.0
_LOOK_SECONDS = 0.005

_PAGE_SIZE = 200

# Calls in progress: an event loop keeps only weak references to its tasks.
_calls: set[asyncio.Task[object]] = set()


class SyncJobs:
    """The methods of a queue, each of which blocks until it is done: `jobs.sync.enqueue(...)`.

    For `def` routes and handlers, threads, scripts, a shell or a notebook. If the queue is open in
    this process, it is used in its event loop. Otherwise it is opened in the background to submit,
    read, wait and cancel, and runs no handler; it is closed when the process ends, the queue is
    opened in another way, or a block `with jobs.sync:` ends. Each method raises what the method of
    `AsyncJobs` raises, and `BlockingCall` in the thread of the queue's own event loop, where it
    would wait for itself.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs

    def __enter__(self) -> Self:
        self._event_loop("open")
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the queue if it was opened here and the application does not use it otherwise."""
        portal = portal_for(self._jobs)
        if portal.only_submits:
            portal.close()

    @overload
    def enqueue(
        self, handler: JobType[None, R], payload: None = None, /, **terms: Unpack[EnqueueTerms]
    ) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(
        self, handler: JobType[P, R], payload: P, /, **terms: Unpack[EnqueueTerms]
    ) -> SyncJobHandle[R]: ...

    @overload
    def enqueue(
        self, handler: str, payload: Any = None, /, **terms: Unpack[EnqueueTerms]
    ) -> SyncJobHandle[Any]: ...

    def enqueue(
        self, handler: JobType[Any, Any] | str, payload: Any = None, /, **terms: Any
    ) -> SyncJobHandle[Any]:
        """Store a job durably, then dispatch it; see `AsyncJobs.enqueue`."""
        call = partial(self._jobs.enqueue, handler, payload, **terms)
        return SyncJobHandle(self, self.call("enqueue", call))

    @overload
    def enqueue_many(
        self, handler: JobType[P, R], payloads: Iterable[P], /, **terms: Unpack[ManyTerms]
    ) -> Sequence[SyncJobHandle[R]]: ...

    @overload
    def enqueue_many(
        self, handler: str, payloads: Iterable[Any], /, **terms: Unpack[ManyTerms]
    ) -> Sequence[SyncJobHandle[Any]]: ...

    def enqueue_many(
        self, handler: JobType[Any, Any] | str, payloads: Iterable[Any], /, **terms: Any
    ) -> Sequence[SyncJobHandle[Any]]:
        """Store a job for each payload, in one call; see `AsyncJobs.enqueue_many`."""
        call = partial(self._jobs.enqueue_many, handler, payloads, **terms)
        return [SyncJobHandle(self, one) for one in self.call("enqueue_many", call)]

    @overload
    def enqueue_batch(
        self, handler: JobType[P, Any], payloads: Iterable[P], /, **terms: Unpack[BatchTerms]
    ) -> SyncBatchHandle: ...

    @overload
    def enqueue_batch(
        self, handler: str, payloads: Iterable[Any], /, **terms: Unpack[BatchTerms]
    ) -> SyncBatchHandle: ...

    def enqueue_batch(
        self, handler: JobType[Any, Any] | str, payloads: Iterable[Any], /, **terms: Any
    ) -> SyncBatchHandle:
        """Store a batch and a job for each payload; see `AsyncJobs.enqueue_batch`."""
        call = partial(self._jobs.enqueue_batch, handler, payloads, **terms)
        return SyncBatchHandle(self, self.call("enqueue_batch", call))

    def batch(
        self, batch_id: JobId, /, *, user_id: str | Owner | None = Owner.ANY
    ) -> SyncBatchHandle:
        """Return the handle of a batch; see `AsyncJobs.batch`."""
        call = partial(self._jobs.batch, batch_id, user_id=user_id)
        return SyncBatchHandle(self, self.call("batch", call))

    def add_to_batch(
        self, batch_id: JobId, handler: JobType[P, Any] | str, payloads: Iterable[P], /
    ) -> Job:
        """Add jobs to a batch; see `AsyncJobs.add_to_batch`."""
        call = partial(self._jobs.add_to_batch, batch_id, handler, payloads)
        return self.call("add_to_batch", call)

    def jobs_of_batch(
        self, batch_id: JobId, /, *, status: JobStatus | None = None
    ) -> Iterator[Job]:
        """Yield the jobs of a batch, the newest first; see `AsyncJobs.jobs_of_batch`."""
        which, after = Selection(batch=batch_id, status=status), None
        while True:
            page = self.list(which, limit=_PAGE_SIZE, after=after)
            yield from page.jobs
            if (after := page.next) is None:
                return

    def get(self, job_id: JobId, /) -> Job | None:
        """Return the job as it is now; None if the id never existed or the job was deleted."""
        return self.call("get", partial(self._jobs.get, job_id))

    def find(self, job_id: JobId, /, *, user_id: str | Owner | None = Owner.ANY) -> Job:
        """Return the job as it is now; see `AsyncJobs.find`."""
        return self.call("find", partial(self._jobs.find, job_id, user_id=user_id))

    def list(self, which: Selection, /, *, limit: int = 50, after: str | None = None) -> Page:
        """Return jobs, the newest first; see `AsyncJobs.list`."""
        return self.call("list", partial(self._jobs.list, which, limit=limit, after=after))

    def position(self, job: Job, /) -> int | None:
        """Return the job's position in its queue; see `AsyncJobs.position`."""
        return self.call("position", partial(self._jobs.position, job))

    def wait(self, job_id: JobId, /, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it is terminal, or its current state after `timeout`."""
        return self._follow("wait", partial(self._jobs.wait, job_id), timeout, None)

    def next_change(
        self, job_id: JobId, /, *, after: int | None = None, timeout: Seconds | None = None
    ) -> Job:
        """Return the job when it has changed, or its current state after `timeout`."""
        known = self.find(job_id).version if after is None else after
        change = partial(self._jobs.next_change, job_id, after=known)
        return self._follow("next_change", change, timeout, known)

    def subscribe(self, job_id: JobId, /) -> Iterator[Job]:
        """Yield the job now and at each visible change, to its end; see `JobQueue.subscribe`."""
        job = self.find(job_id)
        yield job
        with suppress(UnknownJob):  # deleted meanwhile
            while not job.status.terminal:
                job = self.next_change(job_id, after=job.version)
                yield job

    def output(
        self, job_id: JobId, stream: str = DEFAULT_STREAM, *, after: int | None = None
    ) -> Iterator[OutputItem]:
        """Yield the items of a job's output, to its end; see `AsyncJobs.output`."""
        checked_stream_name(stream)
        return self._items(job_id, stream, 0 if after is None else checked_position(after))

    def _items(self, job_id: JobId, stream: str, position: int) -> Iterator[OutputItem]:
        known = False
        while True:
            read = partial(self._jobs.next_output, job_id, stream, position)
            try:
                portion = self.call("output", read)
            except UnknownJob:
                if known:  # deleted meanwhile
                    return
                raise
            # None if the queue was closed; the next call uses the one that is open then.
            if portion is not None:
                known, position = True, portion.end
                if portion.kind is not None:
                    yield from numbered_items(portion.kind, portion.chunks)
                if portion.closed:
                    return

    def cancel(self, job_id: JobId, /, *, version: int | None = None) -> Job:
        """Cancel a waiting job or ask a running one to stop; see `JobQueue.cancel`."""
        return self.call("cancel", partial(self._jobs.cancel, job_id, version=version))

    def retry(self, job_id: JobId, /) -> SyncJobHandle[Any]:
        """Run an ended job or batch again as a new one; see `AsyncJobs.retry`."""
        handle = self.call("retry", partial(self._jobs.retry, job_id))
        if isinstance(handle, BatchHandle):
            return SyncBatchHandle(self, handle)
        return SyncJobHandle(self, handle)

    def update_progress(self, job_id: JobId, percent: int, /, message: str | None = None) -> Job:
        """Report progress of work done elsewhere; see `JobQueue.update_progress`."""
        call = partial(self._jobs.update_progress, job_id, percent, message)
        return self.call("update_progress", call)

    def complete(self, job_id: JobId, result: Any = None, /) -> Job:
        """Record the result of work done elsewhere; see `JobQueue.complete`."""
        return self.call("complete", partial(self._jobs.complete, job_id, result))

    def fail(self, job_id: JobId, message: str, /, *, code: str = "job_failed") -> Job:
        """Record the failure of work done elsewhere; see `JobQueue.fail`."""
        return self.call("fail", partial(self._jobs.fail, job_id, message, code=code))

    def stop(self, job_id: JobId, /) -> Job:
        """Record that work done elsewhere has stopped; see `AsyncJobs.stop`."""
        return self.call("stop", partial(self._jobs.stop, job_id))

    def schedules(self) -> Sequence[Schedule]:
        """Return all schedules of the store, by name; see `AsyncJobs.schedules`."""
        return self.call("schedules", self._jobs.schedules)

    def enqueue_ticks(self) -> Sequence[Job]:
        """Enqueue the jobs of due ticks and return them; see `AsyncJobs.enqueue_ticks`."""
        return self.call("enqueue_ticks", self._jobs.enqueue_ticks)

    def pause_schedule(self, name: str, /) -> None:
        """Let a schedule enqueue no jobs until it is resumed; see `AsyncJobs.pause_schedule`."""
        self.call("pause_schedule", partial(self._jobs.pause_schedule, name))

    def resume_schedule(self, name: str, /) -> None:
        """Let a paused schedule go on; see `AsyncJobs.resume_schedule`."""
        self.call("resume_schedule", partial(self._jobs.resume_schedule, name))

    def run_schedule_now(self, name: str, /) -> SyncJobHandle[Any]:
        """Enqueue a job of a schedule now; see `AsyncJobs.run_schedule_now`."""
        call = partial(self._jobs.run_schedule_now, name)
        return SyncJobHandle(self, self.call("run_schedule_now", call))

    def remove_schedule(self, name: str, /) -> None:
        """Forget a schedule that no code declares any more; see `AsyncJobs.remove_schedule`."""
        self.call("remove_schedule", partial(self._jobs.remove_schedule, name))

    def call(self, verb: str, function: Callable[[], Awaitable[T]]) -> T:
        """Await a function's result in the event loop of the queue; errors name `verb`."""
        with portal_for(self._jobs).gate:
            return _run(function, self._event_loop(verb))

    def _follow(
        self,
        verb: str,
        function: Callable[..., Awaitable[Job]],
        timeout: Seconds | None,
        known: int | None,
    ) -> Job:
        """Wait for a change; start again if the queue is closed here and opened elsewhere."""
        give_up_at = math.inf if timeout is None else time.monotonic() + seconds(timeout)
        while True:
            with portal_for(self._jobs).gate:
                token = self._event_loop(verb)
            left = None if timeout is None else max(0.0, give_up_at - time.monotonic())
            try:
                job = _run(partial(function, timeout=left), token)
            except (NotOpen, RuntimeError, CancelledError):
                if self._jobs.event_loop is token:
                    raise
                continue
            changed = job.status.terminal or known not in (None, job.version)
            if changed or time.monotonic() >= give_up_at or self._jobs.event_loop is token:
                return job

    def _event_loop(self, verb: str) -> EventLoopToken:
        """Return the event loop in which the queue is open, after opening it if it is not."""
        give_up_at = time.monotonic() + _OPENING_SECONDS
        while True:
            found = self._jobs.event_loop
            if found is not None:
                _check_other_loop(found, verb)
                return found
            try:
                portal_for(self._jobs).start(run_handlers=False)
            except ConfigurationError:  # it is being opened or closed elsewhere
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(_LOOK_SECONDS)


class SyncJobHandle(Generic[R]):
    """One job of a queue, for code that cannot await. Iterate over it for the job's states.

    `job` is the job as it was accepted. The methods read the store each time.
    """

    __slots__ = ("_door", "_handle", "job")

    def __init__(self, door: SyncJobs, handle: JobHandle[R]) -> None:
        self.job = handle.job
        self._door = door
        self._handle = handle

    def __repr__(self) -> str:
        return f"<SyncJobHandle {self.job.id} ({self.job.type})>"

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self.job.id

    def belongs_to(self, queue: object) -> bool:
        """Return whether the handle was made by this queue."""
        return self._handle.belongs_to(queue)

    def wait(self, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it has ended, or its current state after `timeout`."""
        return self._door.wait(self.id, timeout=timeout)

    def result(self, *, timeout: Seconds | None = None) -> R:
        """Wait for the end of the job and return its result; raises as `JobHandle.result`."""
        self.wait(timeout=timeout)
        return self._door.call("result", partial(self._handle.result, timeout=0))

    def output(
        self, stream: str = DEFAULT_STREAM, *, after: int | None = None
    ) -> Iterator[OutputItem]:
        """Yield the items that the job emits, to its end; see `AsyncJobs.output`."""
        return self._door.output(self.id, stream, after=after)

    def cancel(self) -> Job:
        """Cancel a waiting job or ask a running one to stop; see `JobQueue.cancel`."""
        return self._door.cancel(self.id)

    def __iter__(self) -> Iterator[Job]:
        """Yield the job now and at each visible change; see `JobQueue.subscribe`."""
        return self._door.subscribe(self.id)


class SyncBatchHandle(SyncJobHandle[dict[str, int]]):
    """One batch of a queue, for code that cannot await; see `BatchHandle`."""

    __slots__ = ()

    def __init__(self, door: SyncJobs, handle: BatchHandle) -> None:
        super().__init__(door, handle)

    def __repr__(self) -> str:
        return f"<SyncBatchHandle {self.job.id}>"

    def add(self, handler: JobType[P, Any] | str, payloads: Iterable[P], /) -> Job:
        """Add jobs of any handler; return the batch with its new total."""
        return self._door.add_to_batch(self.id, handler, payloads)

    def jobs(self, *, status: JobStatus | None = None) -> Iterator[Job]:
        """Yield the jobs of the batch, the newest first, without their payloads and results."""
        return self._door.jobs_of_batch(self.id, status=status)

    def retry_failed(self) -> SyncBatchHandle:
        """Run the failed and cancelled jobs again; see `BatchHandle.retry_failed`."""
        return self._door.batch(self._door.retry(self.id).id)


def _run(function: Callable[[], Awaitable[T]], token: EventLoopToken) -> T:
    loop = token.native_token
    if not isinstance(loop, asyncio.AbstractEventLoop) or _is_of_anyio():
        return _run_by_anyio(function, token)
    call = Call(function)
    try:
        loop.call_soon_threadsafe(call.begin, _calls)
        call.wait(loop)
    except BaseException:  # Ctrl-C, for example: the call must not go on unobserved
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(call.cancel)
        raise
    return call.result()


def _is_of_anyio() -> bool:
    """Return whether anyio must make the call: this thread runs its task, or works for one."""
    if current_loop() is not None:
        return True
    try:
        from_thread.check_cancelled()  # a cancellation of the task must reach the call
    except RuntimeError:
        return False
    except BaseException:  # noqa: BLE001  # it is cancelled already
        return True
    return True


def _run_by_anyio(function: Callable[[], Awaitable[T]], token: EventLoopToken) -> T:
    scopes: list[anyio.CancelScope] = []

    async def call() -> T:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            return await function()
        raise AssertionError("cancelled only if nothing waits for it")

    try:
        return from_thread.run(call, token=token)
    except BaseException:  # Ctrl-C, for example: the call must not go on unobserved
        with suppress(RuntimeError):  # the event loop has ended
            from_thread.run_sync(_cancel_all, scopes, token=token)
        raise


def _cancel_all(scopes: Sequence[anyio.CancelScope]) -> None:
    for scope in scopes:
        scope.cancel()


def _check_other_loop(queue: EventLoopToken, verb: str) -> None:
    if current_loop() is queue.native_token:
        raise BlockingCall(verb)
