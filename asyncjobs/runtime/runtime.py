"""The parts of a queue that belong to one process and event loop, opened and closed together."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.events import Event
from asyncjobs.core.handlers import Registry
from asyncjobs.core.job import Delivery, Job, JobStatus, Submission
from asyncjobs.core.schedules import Declared, Tick, submission_at
from asyncjobs.core.submission import Terms
from asyncjobs.errors import StoreError
from asyncjobs.execution.executor import Executor
from asyncjobs.execution.fetcher import Fetcher, Lanes
from asyncjobs.execution.resources import Lifespan, Resources, lifespan_path
from asyncjobs.execution.starts import Start
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.execution.watchdog import Watchdog
from asyncjobs.files.storage import FileStorage
from asyncjobs.protocols import (
    CallbackSender,
    Clock,
    Dispatcher,
    Embedded,
    Page,
    Selection,
    Store,
    StoreClock,
    check_powers,
    power_of,
)
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.clock import SharedClock
from asyncjobs.records.group_commit import GroupCommitStore
from asyncjobs.records.list_feed import ListFeed
from asyncjobs.records.logging import log
from asyncjobs.records.output_hub import OutputHub
from asyncjobs.records.repository import Repository
from asyncjobs.runtime.batches import Batches
from asyncjobs.runtime.callbacks import Callbacks
from asyncjobs.runtime.dispatch import DispatchRetrier
from asyncjobs.runtime.estimates import Estimates
from asyncjobs.runtime.hooks import HookRunner, Hooks
from asyncjobs.runtime.maintenance import Maintenance
from asyncjobs.runtime.schedules import Schedules
from asyncjobs.settings import Settings

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# Seconds after the grace period: how long a write may take; until when handlers must have stopped
# and outcomes be written; until when hooks are called; until when the store has closed.
_LAST_WRITE_SECONDS = 2.5
_LAST_WORDS_SECONDS = 3.5
_CLOSE_HOOKS_SECONDS = 4.0
# The minimum left for the application's lifespan and the last hooks if all of that is used up.
_LAST_SECONDS = 0.3


@dataclass(frozen=True)
class RuntimeParts:
    """The parts of a runtime; all of them may outlive it."""

    store: Store
    dispatcher: Dispatcher
    registry: Registry
    settings: Settings
    clock: Clock
    hooks: Hooks
    queues: tuple[str, ...] | None = None
    lifespan: Lifespan | None = None
    queue: AsyncJobs | None = None
    callback_sender: CallbackSender | None = None
    files: FileStorage | None = None
    #: Whether nothing runs by itself, neither handlers nor maintenance: for tests of applications.
    by_hand: bool = False
    #: The schedules by name; more may be declared while the queue is open.
    schedules: Mapping[str, Declared] = field(default_factory=dict[str, Declared])


class Runtime:
    """The running parts of a queue."""

    def __init__(self, parts: RuntimeParts, tasks: TaskGroup) -> None:
        settings = parts.settings
        self._parts = parts
        self._tasks = tasks
        self.pid = os.getpid()
        self.settings = settings
        self.dispatcher = parts.dispatcher
        # Checked once: `isinstance` with a protocol looks up each attribute.
        self._embedded = parts.dispatcher if isinstance(parts.dispatcher, Embedded) else None
        self.feed = ChangeFeed(poll=settings.poll_interval.total_seconds())
        self.hook_runner = HookRunner(parts.hooks)
        self.hooks = parts.hooks
        self._store = GroupCommitStore(parts.store, tasks, settings.store_timeout)
        self.repository = self._repository_of(parts, tasks)
        self.estimates = Estimates(self._latest, self.feed)
        self.lists = ListFeed(self._latest, self.feed, poll=settings.poll_interval.total_seconds())
        self.hub = OutputHub(
            self.repository, self.feed, poll=settings.poll_interval.total_seconds()
        )
        self.repository.on_append = self.hub.appended
        path = lifespan_path(parts.lifespan, parts.registry)
        self.resources = Resources(parts.lifespan, tasks, path, parts.queue)
        self.resources.on_loss = self._stop_handlers
        self.executor = Executor(
            parts.registry,
            parts.hooks,
            self.repository,
            self.feed,
            settings,
            tasks,
            self.resources,
        )
        self.watchdog = Watchdog(
            settings.block_warning_after, Executor.CALLER, self.executor.running
        )
        self._grace = anyio.CancelScope()
        self._changing = anyio.Lock()
        #: Takes jobs for the handlers of this process; None before they begin, or if none run here.
        self.fetcher: Fetcher | None = None
        #: Set when handlers have ended here for good.
        self.drained = anyio.Event()
        self._hooks_until = 0.0
        self.retrier = DispatchRetrier(parts.dispatcher, settings, tasks)
        self.maintenance = Maintenance(
            parts.registry,
            self.repository,
            self.retrier,
            settings,
            lambda: self.fetcher,
            partial(self.hook_runner.room, Event.FORGOTTEN),
        )
        self.callbacks = Callbacks(self.repository, parts.callback_sender, settings)
        self.feed.on_any(self.callbacks.hint)
        self.schedules = Schedules(
            parts.schedules, self.repository, settings, self.submit_scheduled
        )
        self.batches = Batches(self.repository, self.feed, settings)

    def _repository_of(self, parts: RuntimeParts, tasks: TaskGroup) -> Repository:
        made = Repository(
            self._store,
            self.feed,
            parts.clock,
            base=parts.store,
            limit=parts.settings.store_timeout,
            tasks=tasks,
            audience=self.hook_runner,
        )
        made.files = parts.files
        return made

    @property
    def watchers(self) -> int:
        """How many callers follow a job, a list or an output here.

        Attempts that listen for their own job do not count, nor does the hub of outputs.
        """
        jobs = self.feed.listeners - len(self.executor.heartbeat) - self.hub.followed
        return max(0, jobs) + self.lists.watchers + self.hub.readers

    async def _latest(self, which: Selection, limit: int) -> Page:
        return await self.repository.list(which, limit=limit)

    async def begin(self) -> None:
        """Start the handlers of this process, once, if the dispatcher runs any.

        If it raises `ResourcesUnavailable`, no job begins.
        """
        dispatcher = self._embedded
        async with self._changing:
            if self.fetcher is not None or dispatcher is None:
                return
            await self.resources.open()
            lanes = Lanes(self._parts.registry, self._parts.queues)
            self.fetcher = Fetcher(lanes, self.repository, dispatcher, self.settings)
            self.feed.on_any(self.fetcher.hint)
            self.executor.on_suspect_end = self.fetcher.suspect_ended
            dispatcher.open(self.executor.begin)
            self._tasks.start_soon(_keep_up, self.fetcher.run)

    async def accept(
        self, submissions: Sequence[Submission], run_at: datetime, connection: object = None
    ) -> Sequence[Job]:
        """Store the jobs of submissions to one type in one store call, then dispatch them.

        Returns each job as it was accepted, or the one with the same idempotency key. Jobs stored
        in the transaction of a connection are not dispatched; they are found when it commits.
        """
        if not submissions:
            return ()
        first = submissions[0]
        later = run_at > first.created_at or first.delivery is Delivery.EXTERNAL
        if connection is not None or later:
            jobs = [lifecycle.submit(one, run_at=run_at) for one in submissions]
            if connection is not None:
                return await self.repository.insert_within(connection, jobs)
            return await self.repository.insert(jobs)
        if self._embedded is None:
            return await self._accept_elsewhere(submissions)
        if self.fetcher is None or not self.fetcher.serves(first.queue):
            return await self.repository.insert([lifecycle.submit(one) for one in submissions])
        return await self._accept_here(self._embedded, self.fetcher, submissions)

    async def submit_scheduled(self, schedule: Declared, tick: Tick) -> Job:
        """Store the job of a schedule, or return the one that the tick has already."""
        kind, now = schedule.kind, self.repository.now()
        estimate = self.estimates.of(kind.name, kind.estimate)
        terms = Terms(now, self.dispatcher.delivery, estimate)
        with self.hooks.spans.submitting(kind.name, kind.policy.queue, None) as traceparent:
            submission = submission_at(schedule, tick, terms, traceparent)
            [job] = await self.accept([submission], now)
        return job

    async def _accept_elsewhere(self, submissions: Sequence[Submission]) -> Sequence[Job]:
        """Store due jobs; dispatch the first ones, as many as the dispatcher has places for."""
        places = self.dispatcher.reserve(len(submissions))
        hold = self.settings.redelivery
        jobs = [lifecycle.submit(one, hold=hold) for one in submissions[:places]]
        jobs += [lifecycle.submit(one) for one in submissions[places:]]
        try:
            stored = await self.repository.insert(jobs)
        finally:
            self.dispatcher.release(places)
        if places:
            await self._dispatch(stored[:places])
        return stored

    async def _accept_here(
        self, dispatcher: Embedded, fetcher: Fetcher, submissions: Sequence[Submission]
    ) -> Sequence[Job]:
        """Store due jobs: the first already started, the next held here, as there is room.

        Any process may take the rest.
        """
        jobs = [lifecycle.submit(one) for one in submissions]
        starts = self._prepare(dispatcher, jobs)
        places = self.dispatcher.reserve(len(jobs) - len(starts))
        kept = range(len(starts), len(starts) + places)
        for place in kept:
            jobs[place] = lifecycle.submit(submissions[place], hold=self.settings.redelivery)
        try:
            started = {job.id: job for _, job in starts}
            stored = list(await self.repository.insert(jobs, started))
        except BaseException as error:
            unknown = isinstance(error, StoreError) or not isinstance(error, Exception)
            let_go = self.executor.doubt if unknown else self.executor.drop
            for start, _ in starts:
                let_go(start)
            raise
        finally:
            self.dispatcher.release(places)
        # Includes stored jobs that still wait: their first submission may have failed to dispatch
        # them.
        waiting = [stored[place] for place in kept]
        for place, (start, job) in enumerate(starts):
            found = stored[place]
            self.executor.launch(start, found)
            if found.id == job.id:
                stored[place] = jobs[place]
            else:
                waiting.append(found)
        now = self.repository.now()
        waiting = [job for job in waiting if _may_be_dispatched(job, now)]
        refused = [job for job in waiting if not dispatcher.offer(job)]
        if refused:
            # The dispatcher is closing. Jobs stored earlier are held by another process.
            held = {jobs[place].id for place in kept}
            await _give_back(fetcher, [job for job in refused if job.id in held])
        return stored

    async def _dispatch(self, jobs: Sequence[Job]) -> None:
        """Dispatch those of some stored jobs that are due."""
        now = self.repository.now()
        due = [job for job in jobs if _may_be_dispatched(job, now)]
        if due:
            await self.retrier.dispatch(due)

    def _prepare(self, dispatcher: Embedded, jobs: Sequence[Job]) -> list[tuple[Start, Job]]:
        """Start the first of some new jobs, as many as there are free slots here."""
        starts: list[tuple[Start, Job]] = []
        if not lifecycle.may_be_stored_started(jobs[0]):
            return starts
        for job in jobs:
            freed = dispatcher.claim(job.id)
            start = None if freed is None else self.executor.prepare(job, freed)
            if start is None:
                break
            starts.append(start)
        return starts

    async def oldest(self, queues: Sequence[str]) -> Mapping[str, timedelta]:
        """Return how long the first job of each queue has waited, as far as it is known."""
        ours = await self.repository.oldest(queues)
        if self.dispatcher.delivery is not Delivery.PUSH:
            return ours
        theirs, none = self.retrier.oldest(self.repository.now()), timedelta(0)
        return {queue: max(ours.get(queue, none), theirs.get(queue, none)) for queue in queues}

    async def run(self, job: Job) -> BaseException | None:
        """Run one attempt of a job that an engine delivered; return what its handler raised."""
        unhandled = self._parts.registry.handler(job.type) is None
        if unhandled and job.delivery is Delivery.PUSH:
            await self.maintenance.leave_to_others(job)
            return None
        return await self.executor.run(job)

    def hurry(self) -> None:
        """End the grace period, now or as soon as it begins."""
        self._grace.cancel()

    async def drain(self) -> None:
        """Begin no more jobs, let running ones end in time, give back the rest; once.

        Ends a few seconds after the grace period, whatever handlers and the store do. The queue
        still accepts jobs.
        """
        async with self._changing:
            if self.drained.is_set():
                return
            began = anyio.current_time()
            grace = self.settings.grace.total_seconds()
            usual = self.settings.store_timeout.total_seconds()
            self._store.set_limit(min(grace + _LAST_WRITE_SECONDS, usual))
            with anyio.CancelScope(deadline=began + grace + _LAST_WORDS_SECONDS) as limit:
                async with anyio.create_task_group() as tasks:
                    if self._embedded is not None and self.fetcher is not None:
                        tasks.start_soon(_give_back, self.fetcher, self._embedded.close())
                        with self._grace as scope:
                            scope.deadline = began + grace
                            await self._embedded.wait_until_idle()
                    self._store.set_limit(_LAST_WRITE_SECONDS)
                    limit.deadline = anyio.current_time() + _LAST_WORDS_SECONDS
                    self.executor.interrupt_all()
                    await self.executor.wait_until_none()
            self.executor.abandon_all()
            await self._close_processes()
            left = began + grace + _LAST_WORDS_SECONDS - anyio.current_time()
            await self.resources.close(max(left, _LAST_SECONDS))
            self._hooks_until = began + grace + _CLOSE_HOOKS_SECONDS
            self._store.set_limit(usual)
            self.drained.set()

    async def finish(self) -> None:
        """End what runs after the handlers: callbacks and hooks. Returns within seconds."""
        self._store.set_limit(_LAST_WRITE_SECONDS)
        until = max(self._hooks_until, anyio.current_time() + _LAST_SECONDS)
        with anyio.CancelScope(deadline=until):
            await self.schedules.close()
            await self.callbacks.close()
        await self.hook_runner.finish(max(until - anyio.current_time(), 0.0))
        await self._store.finish()

    async def _close_processes(self) -> None:
        close = self.executor.processes.close
        if self.resources.import_path is None:
            close()
        else:  # closing waits for the processes
            await in_new_thread(close, "asyncjobs processes").result()

    def _stop_handlers(self) -> None:
        """Begin no more jobs here, since the handlers' shared resources are gone."""
        log.critical("This process starts no more jobs: the lifespan of the handlers has ended")
        self._tasks.start_soon(self.drain)


def _may_be_dispatched(job: Job, now: datetime) -> bool:
    """Return whether a job waits to begin now and need not run alone."""
    alone = job.delivery is Delivery.PULL and lifecycle.is_suspect(job)
    return job.status is JobStatus.PENDING and job.run_at <= now and not alone


async def _give_back(fetcher: Fetcher, jobs: Sequence[Job]) -> None:
    try:
        await fetcher.give_back(jobs)
    except StoreError as error:
        log.warning("Waiting jobs could not be given back; others take them later: %s", error)


@asynccontextmanager
async def open_runtime(parts: RuntimeParts) -> AsyncGenerator[Runtime]:
    """Open the store and start the loops; on exit drain, stop the loops and close the store.

    No handler runs before `Runtime.begin`.
    """
    async with _open_parts(parts), anyio.create_task_group() as tasks:
        runtime = Runtime(parts, tasks)
        async with AsyncExitStack() as stack:
            stack.enter_context(runtime.watchdog.watching())
            store_clock = power_of(parts.store, StoreClock)
            if isinstance(parts.clock, SharedClock) and store_clock is not None:
                tasks.start_soon(_keep_up, partial(parts.clock.run, store_clock))
            tasks.start_soon(_keep_up, runtime.executor.heartbeat.run)
            tasks.start_soon(_keep_up, runtime.executor.run_loops)
            if not parts.by_hand:
                tasks.start_soon(_keep_up, runtime.maintenance.run)
                tasks.start_soon(_keep_up, runtime.schedules.run)
                if runtime.repository.counts:
                    tasks.start_soon(_keep_up, runtime.batches.run)
            tasks.start_soon(_keep_up, runtime.callbacks.run)
            tasks.start_soon(_keep_up, runtime.estimates.run)
            tasks.start_soon(_keep_up, runtime.lists.run)
            tasks.start_soon(_keep_up, runtime.hub.run)
            for loop in (runtime.hook_runner.run, *parts.hooks.loops):
                tasks.start_soon(_keep_up, loop)
            tasks.start_soon(
                _keep_up, lambda: runtime.feed.run(runtime.repository.get, parts.store)
            )
            try:
                yield runtime
            finally:
                with anyio.CancelScope(shield=True):
                    await runtime.drain()
                    await runtime.finish()
                runtime.feed.close()
                runtime.lists.close()
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def _open_parts(parts: RuntimeParts) -> AsyncGenerator[None]:
    check_powers(parts.store)
    store_clock = power_of(parts.store, StoreClock)
    async with parts.store, parts.dispatcher:
        if isinstance(parts.clock, SharedClock) and store_clock is not None:
            await parts.clock.compare(store_clock)
        yield


async def _keep_up(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop forever; a bug in it must not end the application it runs in."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("An internal loop failed and is restarted")
            await anyio.sleep(1)
