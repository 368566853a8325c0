"""`AsyncJobs`: the job queue of this library, made of a store, a dispatcher and job types."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import anyio
from anyio.lowlevel import EventLoopToken

from asyncjobs.batches import Batching
from asyncjobs.core import lifecycle
from asyncjobs.core.events import Event, EventName
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import (
    Delivery,
    Job,
    JobId,
    JobStatus,
    Policy,
)
from asyncjobs.core.options import checked_option, checked_part
from asyncjobs.core.submission import (
    Accepted,
    Caller,
    EnqueueOptions,
    EnqueueTerms,
    ManyTerms,
    Owner,
    checked_options,
    owned_by,
)
from asyncjobs.declarations import Registrar
from asyncjobs.dispatchers import dispatcher_from_name
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.downloads import Files
from asyncjobs.errors import (
    ConfigurationError,
    IllegalMove,
    NotOpen,
    PreconditionFailed,
    WrongEventLoop,
)
from asyncjobs.execution.resources import Lifespan, checked_lifespan
from asyncjobs.files import storage_of
from asyncjobs.files.choice import FilesAt
from asyncjobs.lists import Lists
from asyncjobs.outputs import Outputs
from asyncjobs.portal import portal_for
from asyncjobs.protocols import (
    CallbackSender,
    Clock,
    Dispatcher,
    Embedded,
    JobHandle,
    Store,
    StoreClock,
)
from asyncjobs.records.change_feed import Watch
from asyncjobs.records.clock import SharedClock, SystemClock
from asyncjobs.records.logging import log
from asyncjobs.records.repository import Repository
from asyncjobs.reports import Reports
from asyncjobs.runtime.acceptance import accept_jobs, expected_duration
from asyncjobs.runtime.hooks import Hook, Hooks
from asyncjobs.runtime.host import Opening, RunHandlers, RuntimeHost
from asyncjobs.runtime.runtime import Runtime, RuntimeParts
from asyncjobs.schedules import Scheduling
from asyncjobs.settings import Seconds, Settings, seconds
from asyncjobs.stores import store_from_url
from asyncjobs.sync import SyncJobs

P = TypeVar("P")
R = TypeVar("R")
H = TypeVar("H", bound=Hook)

# Runtimes that a fork copied into this process. They are kept, because garbage collection would
# close their connections, which harms the parent's.
_inherited: list[object] = []


class AsyncJobs(Registrar, Reports, Outputs, Batching, Lists, Scheduling, Files):
    """A job queue: register handlers on it, enter it with `async with`, enqueue jobs.

    `store` is a URL (`sqlite:///jobs.db`, `memory://`) or a store. `dispatcher` is an object, or
    the name of one: "local" runs jobs in this process, "worker" leaves them to `asyncjobs worker`
    processes. `policy` holds the limits of handlers that set none of their own. `callbacks` calls
    the URLs of jobs that have ended (`asyncjobs.webhooks.Webhooks` does). `lifespan` returns an
    async context manager that yields the handlers' shared resources, their `job.resources`: each
    process enters it before its first handler begins, and leaves it after its last has ended.
    `files` is where the files of jobs are stored: a folder, or the URL of an object store
    (`s3://bucket/prefix`, of the extra `objects`); the default is a folder beside an SQLite
    database. A queue is open at most once per process; it can be opened again after it was closed,
    and in a forked child.
    """

    def __init__(  # noqa: PLR0913  # one parameter per part
        self,
        store: str | Store,
        *,
        dispatcher: Dispatcher | str = "local",
        policy: Policy | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        callbacks: CallbackSender | None = None,
        lifespan: Lifespan | None = None,
        files: FilesAt | None = None,
    ) -> None:
        super().__init__(checked_option("policy", policy, Policy, "a Policy", Policy()))
        self.hooks = Hooks()
        self.settings = checked_option("settings", settings, Settings, "Settings", Settings())
        self._store: Store = _store_of(store)
        self.file_storage = storage_of(files, self._store)
        self._given_clock = _checked_clock(clock)
        self.clock: Clock = clock or _clock_of(self._store)
        self._by_hand: bool = False
        self._dispatcher: Dispatcher = _dispatcher_of(dispatcher)
        self._callbacks = _checked_callbacks(callbacks)
        self.lifespan = checked_lifespan(lifespan)
        self._host: RuntimeHost | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def open(self, *, run_handlers: RunHandlers = True) -> Opening[Self]:
        """Open the queue in this event loop: await it, or use it in `async with`.

        For frameworks with start and stop hooks: another task may call `close`. With
        `run_handlers=False` the queue submits, reads, waits and cancels, but runs no handler in
        this process; with "later" it runs them after `start_handlers`. Raises `ConfigurationError`
        if it is open already, `StoreUnavailable` or `SchemaError` for the store, and
        `ResourcesUnavailable` for the handlers' shared resources.
        """
        return Opening(self, partial(self._open, self._dispatcher, None, run_handlers=run_handlers))

    async def start_handlers(self) -> None:
        """Start the handlers of this process if the queue was opened without them; else do nothing.

        Raises `ResourcesUnavailable` if their shared resources cannot be opened.
        """
        await self._here.begin()

    async def drain(self) -> None:
        """Begin no more jobs in this process, and let running ones end within the grace period.

        Then the handlers' `lifespan` is left. The queue stays open for everything else.
        """
        await self._here.drain()

    @property
    def is_drained(self) -> bool:
        """Whether this process has run handlers and runs none until the queue is opened again."""
        return self._running.drained.is_set()

    async def until_drained(self) -> None:
        """Return when this process runs no more handlers, because of `drain` or the `lifespan`."""
        await self._running.drained.wait()

    async def close(self) -> None:
        """Begin no more jobs, let running ones end within the grace period, close the store.

        Returns at most five seconds after the grace period. Another task than the one that called
        `open` may call it. If the call is cancelled, the queue closes nevertheless. Raises
        `NotOpen`.
        """
        host = self._host
        if host is None or not host.is_ours:
            raise NotOpen("AsyncJobs")
        if not host.is_here:
            raise WrongEventLoop("AsyncJobs")
        try:
            await host.close()
        finally:
            # Not earlier: jobs that end meanwhile may need the queue.
            if self._host is host and not host.in_use:
                self._host = None

    @asynccontextmanager
    async def as_worker(
        self, *, concurrency: int = 10, queues: Sequence[str] | None = None
    ) -> AsyncGenerator[Self]:
        """Open the queue to run jobs in this process, whatever its dispatcher.

        `asyncjobs worker` does this. `queues` are the queues to serve, an earlier one before a
        later one. Without it, all handlers' queues are served equally, the longest waiting job
        first. Raises `ConfigurationError` for a queue that no handler has, and if an engine runs
        the jobs.
        """
        if self._dispatcher.delivery is not Delivery.PULL:
            raise ConfigurationError("Another engine runs this queue's jobs: start its workers.")
        self.registry.check_queues(queues)
        await self._open(LocalDispatcher(concurrency), queues, run_handlers=True)
        try:
            yield self
        finally:
            await self.close()

    @contextmanager
    def using(
        self,
        store: str | Store = "memory://",
        *,
        clock: Clock | None = None,
        files: FilesAt | None = None,
        run_handlers: bool = False,
    ) -> Generator[Self]:
        """Replace store, clock and file storage in the block, for a test; restore them at the end.

        However the queue is opened in the block, no handler runs by itself: `run_jobs` of
        `asyncjobs.testing` runs the jobs, and waiting for a job without a timeout raises. With
        `run_handlers=True` they run in this process. No engine gets a job. At the end, a queue
        opened by `sync` or Flask is closed. Raises `ConfigurationError` if the queue is open before
        or after the block.
        """
        self.sync.close()
        self._check_closed()
        before = self._store, self.clock, self._dispatcher, self._by_hand, self.file_storage
        self._store = _store_of(store)
        self.file_storage = storage_of(files, self._store)
        self.clock = _checked_clock(clock) or self._given_clock or _clock_of(self._store)
        if not isinstance(self._dispatcher, Embedded):
            self._dispatcher = LocalDispatcher()
        self._by_hand = not run_handlers
        try:
            yield self
        finally:
            self._store, self.clock, self._dispatcher, self._by_hand, self.file_storage = before
            portal_for(self).close()
        self._check_closed("is still open at the end of `using`: close it inside the block")

    @property
    def sync(self) -> SyncJobs:
        """The same methods for code without an event loop, such as `def` functions and scripts."""
        return SyncJobs(self)

    @property
    def event_loop(self) -> EventLoopToken | None:
        """The event loop of this process in which the queue is open, if any."""
        host = self._host
        return host.token if host is not None and host.is_open else None

    @property
    def store(self) -> Store:
        """The store of the jobs; it is open only while the queue is."""
        return self._store

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher, which brings jobs to their workers."""
        return self._dispatcher

    def hurry(self) -> None:
        """Give running jobs back at once instead of waiting for them while the queue closes.

        If the queue is not closing yet, this applies when it does.
        """
        self._anywhere.hurry()

    @property
    def is_open(self) -> bool:
        """Whether the queue is open in this process; an opening by `sync` does not count."""
        return self.event_loop is not None and not portal_for(self).only_submits

    @overload
    def on(self, event: Event | EventName, hook: Hook, /) -> None: ...

    @overload
    def on(self, event: Event | EventName, /) -> Callable[[H], H]: ...

    def on(self, event: Event | EventName, hook: Hook | None = None, /) -> Callable[[H], H] | None:
        """Call a function with a `Transition` at each such event; or decorate one.

        It is called in the process that changed the job, after the write, for one transition at a
        time and at most once for each. An `async def` runs on the event loop, a `def` in a thread.
        Its exceptions are logged. Raises `ConfigurationError` for an unknown event.
        """

        def add(hook: H) -> H:
            self.hooks.add(event, hook)
            return hook

        if hook is None:
            return add
        self.hooks.add(event, hook)
        return None

    @overload
    async def enqueue(
        self, handler: JobType[None, R], payload: None = None, /, **terms: Unpack[EnqueueTerms]
    ) -> JobHandle[R]: ...

    @overload
    async def enqueue(
        self, handler: JobType[P, R], payload: P, /, **terms: Unpack[EnqueueTerms]
    ) -> JobHandle[R]: ...

    @overload
    async def enqueue(
        self, handler: str, payload: Any = None, /, **terms: Unpack[EnqueueTerms]
    ) -> JobHandle[Any]: ...

    async def enqueue(
        self,
        handler: JobType[Any, Any] | str,
        payload: Any = None,
        /,
        *,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        options: EnqueueOptions | None = None,
        connection: object = None,
    ) -> JobHandle[Any]:
        """Store a job durably, then dispatch it; see `JobQueue.enqueue`.

        A handler that takes no payload needs none here. `user_id` is the job's owner. With an
        `idempotency_key`, the same owner's next call for that type returns the existing job as it
        is now; with another payload it raises `IdempotencyConflict`.

        With a `connection` to the store's own database, the job is inserted in the transaction in
        progress there, and exists only if that commits. Raises `UnusableConnection` if this is
        impossible, and `InvalidCallback` for a callback URL that will not be called.
        """
        kind = self.registry.find(handler)
        caller = Caller(user_id, idempotency_key)
        runtime, terms = self._running, checked_options(options)
        [accepted] = await accept_jobs(runtime, kind, [payload], caller, terms, connection)
        return JobHandle(self, accepted.job, kind)

    @overload
    async def enqueue_many(
        self, handler: JobType[P, R], payloads: Iterable[P], /, **terms: Unpack[ManyTerms]
    ) -> Sequence[JobHandle[R]]: ...

    @overload
    async def enqueue_many(
        self, handler: str, payloads: Iterable[Any], /, **terms: Unpack[ManyTerms]
    ) -> Sequence[JobHandle[Any]]: ...

    async def enqueue_many(
        self,
        handler: JobType[Any, Any] | str,
        payloads: Iterable[Any],
        /,
        *,
        user_id: str | None = None,
        options: EnqueueOptions | None = None,
        connection: object = None,
    ) -> Sequence[JobHandle[Any]]:
        """Store a job for each payload, in one call of the store; return handles in their order.

        All payloads are checked first: an invalid one raises `InvalidPayload` or `PayloadTooLarge`,
        and no job is made. Otherwise it behaves like `enqueue`, but without idempotency keys. After
        `StoreUnavailable` some of the jobs may exist.
        """
        kind = self.registry.find(handler)
        runtime, caller, terms = self._running, Caller(user_id), checked_options(options)
        accepted = await accept_jobs(runtime, kind, [*payloads], caller, terms, connection)
        return [JobHandle(self, one.job, kind) for one in accepted]

    async def accept(
        self,
        handler: JobType[P, Any] | str,
        payload: P,
        caller: Caller,
        options: EnqueueOptions,
        connection: object = None,
        /,
    ) -> Accepted:
        """Enqueue a job, and return whether it existed already."""
        kind = self.registry.find(handler)
        runtime = self._running
        [accepted] = await accept_jobs(runtime, kind, [payload], caller, options, connection)
        return accepted

    async def get(self, job_id: JobId, /) -> Job | None:
        """Return the job as it is now; None if the id never existed or the job was deleted."""
        [job] = await self._repository.get([job_id])
        return job

    async def find(self, job_id: JobId, /, *, user_id: str | Owner | None = Owner.ANY) -> Job:
        """Return the job as it is now; raise `UnknownJob` if `get` returns None.

        Raises `UnknownJob` also if it has another owner than a given `user_id`, of which None
        stands for an anonymous caller.
        """
        return owned_by(user_id, await self._repository.find(job_id))

    async def oldest_waiting(self) -> Mapping[str, timedelta]:
        """Return how long the first job that could have begun has waited in each handler's queue.

        The result is empty if the store cannot list jobs. For jobs of another engine, each process
        knows those that it inspected lately: the greatest of their answers counts, and is up to
        `Settings.redelivery` late.
        """
        return await self._running.oldest(self.registry.queues)

    @property
    def running(self) -> Sequence[Job]:
        """The jobs whose handlers run in this process; may be called from any thread."""
        return self._anywhere.executor.running() if self.event_loop else ()

    @property
    def runs_handlers(self) -> bool:
        """Whether handlers take jobs by themselves in this process, or did until `drain`."""
        return self._running.fetcher is not None

    async def sweep(self) -> None:
        """Record missed deadlines, count batches, delete old jobs; an open queue does so itself."""
        await self._running.maintenance.sweep()
        await self._running.batches.look()

    async def until_hooks_called(self) -> None:
        """Return when the hooks were called for all events so far, or after the grace period."""
        runtime = self._running
        await runtime.hook_runner.finish(runtime.settings.grace.total_seconds())

    @property
    def watchers(self) -> int:
        """How many callers follow jobs here: by events, held requests, `subscribe` or `wait`."""
        return self._anywhere.watchers if self.event_loop else 0

    def expected_duration(self, what: JobType[Any, Any] | Job, /) -> timedelta | None:
        """Return how long a job takes, by its handler's estimate and the latest jobs."""
        return expected_duration(self._running, what)

    async def cancel(self, job_id: JobId, /, *, version: int | None = None) -> Job:
        """Cancel a waiting job or ask a running one to stop; see `JobQueue.cancel`."""
        repository = self._repository
        job = _at_version(version, await repository.find(job_id))
        if job.status.terminal or job.cancel_requested_at is not None:
            return job
        try:
            return await repository.advance(
                job, lambda job, now: lifecycle.cancel(_at_version(version, job), now)
            )
        except IllegalMove:  # it ended, or another caller cancelled it meanwhile
            return await repository.find(job_id)

    def subscribe(self, job_id: JobId, /) -> Watch:
        """Yield the job now and at each visible change, to its end; see `JobQueue.subscribe`."""
        return self._repository.watch(job_id)

    async def wait(self, job_id: JobId, /, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it is terminal, or its current state after `timeout`.

        Raises `ConfigurationError` without a timeout if no handler runs by itself: while the
        application starts or stops, and in a block of `using`.
        """
        updates = self.subscribe(job_id)
        job = await updates.first()
        self._here.check_wait(job, timeout)
        with anyio.move_on_after(None if timeout is None else seconds(timeout)):
            async for newest in updates:
                job = newest
        return job

    async def next_change(
        self, job_id: JobId, /, *, after: int | None = None, timeout: Seconds | None = None
    ) -> Job:
        """Return the job when its version differs from `after`, or when it is terminal.

        After `timeout` its current state is returned. `after` defaults to the current version.
        Raises `UnknownJob`.
        """
        updates = self.subscribe(job_id)
        job = await updates.first()
        if job.version == (job.version if after is None else after):
            self._here.check_wait(job, timeout)
            with anyio.move_on_after(None if timeout is None else seconds(timeout)):
                job = await anext(updates, job)
        return job

    async def run(self, job_id: JobId, /) -> BaseException | None:
        """Run one attempt of a job in this process, for an engine that delivered its id.

        Returns the handler's exception, if any, when the outcome is recorded. Does nothing for a
        job that is unknown, or has begun or ended: deliveries may be repeated.
        """
        job = await self.get(job_id)
        if job is None:
            log.warning("The engine delivered an unknown job: %s", job_id, extra={"job_id": job_id})
        elif job.status is JobStatus.PENDING:
            return await self._running.run(job)
        return None

    @property
    def _here(self) -> RuntimeHost:
        host = self._host
        if host is None:
            raise NotOpen("AsyncJobs")
        host.runtime_here()
        return host

    @property
    def _running(self) -> Runtime:
        if self._host is None:
            raise NotOpen("AsyncJobs")
        return self._host.runtime_here()

    @property
    def _repository(self) -> Repository:
        return self._running.repository

    @property
    def _anywhere(self) -> Runtime:
        """The runtime, for methods that any thread may call."""
        if self._host is None:
            raise NotOpen("AsyncJobs")
        return self._host.open_runtime

    async def _open(
        self,
        dispatcher: Dispatcher,
        queues: Sequence[str] | None,
        *,
        run_handlers: RunHandlers,
    ) -> None:
        async with portal_for(self).taken_over():
            self._check_closed()
            if self._host is not None and not self._host.is_ours:
                _inherited.append(self._host)
            self._host = host = RuntimeHost(self._parts(dispatcher, queues))
            try:
                await host.open(run_handlers)
            except BaseException:
                self._host = None
                raise

    def _parts(self, dispatcher: Dispatcher, queues: Sequence[str] | None) -> RuntimeParts:
        served = None if queues is None else tuple(queues)
        registered = (self.registry, self.settings, self.clock, self.hooks)
        return RuntimeParts(
            self._store,
            dispatcher,
            *registered,
            queues=served,
            lifespan=self.lifespan,
            queue=self,
            callback_sender=self._callbacks,
            files=self.file_storage,
            by_hand=self._by_hand,
            schedules=self.declared_schedules,
        )

    def _check_closed(self, found: str = "is already open") -> None:
        if self._host is not None and self._host.in_use:
            raise ConfigurationError(f"This AsyncJobs {found}.")


def _store_of(store: str | Store) -> Store:
    if isinstance(store, str):
        return store_from_url(store)
    wanted = 'a URL, such as "sqlite:///jobs.db", or a store'
    return checked_part("store", store, ("powers", "insert", "take"), wanted)


def _dispatcher_of(dispatcher: str | Dispatcher) -> Dispatcher:
    if isinstance(dispatcher, str):
        return dispatcher_from_name(dispatcher)
    wanted = '"local", "worker" or a dispatcher, such as CeleryDispatcher(app)'
    return checked_part("dispatcher", dispatcher, ("delivery", "dispatch"), wanted)


def _checked_clock(clock: Clock | None) -> Clock | None:
    return clock if clock is None else checked_part("clock", clock, ("now",), "a clock")


def _checked_callbacks(callbacks: CallbackSender | None) -> CallbackSender | None:
    if callbacks is None:
        return None
    return checked_part("callbacks", callbacks, ("check", "send"), "a sender, such as Webhooks()")


def _at_version(version: int | None, job: Job) -> Job:
    if version is not None and job.version != version:
        raise PreconditionFailed(job.id, job.version)
    return job


def _clock_of(store: Store) -> Clock:
    ours = SystemClock()
    return SharedClock(ours) if StoreClock in store.powers else ours
