"""All of a queue that is bound to one process and event loop, opened and closed as one."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Registry
from asyncjobs.core.job import Delivery, Job, JobStatus, Submission
from asyncjobs.errors import StoreError
from asyncjobs.execution.executor import Executor
from asyncjobs.execution.fetcher import Fetcher, Lanes
from asyncjobs.execution.watchdog import Watchdog
from asyncjobs.protocols import (
    CallbackSender,
    Clock,
    Dispatcher,
    Embedded,
    Store,
    StoreClock,
    check_powers,
    power_of,
)
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.clock import SharedClock
from asyncjobs.records.group_commit import GroupCommitStore
from asyncjobs.records.repository import Repository
from asyncjobs.runtime.callbacks import Callbacks
from asyncjobs.runtime.dispatch import DispatchRetrier
from asyncjobs.runtime.estimates import Estimates
from asyncjobs.runtime.hooks import HookRunner, Hooks
from asyncjobs.runtime.maintenance import Maintenance
from asyncjobs.settings import Settings

log = logging.getLogger("asyncjobs")

# How long handlers that were told to stop may take to do so before the process goes on without.
_LAST_WORDS = 5.0


@dataclass(frozen=True)
class RuntimeParts:
    """What an engine is made of; all of it may outlive the engine."""

    store: Store
    dispatcher: Dispatcher
    registry: Registry
    settings: Settings
    clock: Clock
    hooks: Hooks
    queues: tuple[str, ...] | None = None
    callback_sender: CallbackSender | None = None


class Runtime:
    """The running parts of a queue."""

    def __init__(self, parts: RuntimeParts, tasks: TaskGroup) -> None:
        settings = parts.settings
        self.pid = os.getpid()
        self.settings = settings
        self.dispatcher = parts.dispatcher
        self.feed = ChangeFeed(poll=settings.poll_interval.total_seconds())
        self.hook_runner = HookRunner(parts.hooks)
        self.repository = Repository(
            GroupCommitStore(parts.store, tasks),
            self.feed,
            parts.clock,
            able=parts.store,
            tell=self.hook_runner.notify,
        )
        self.estimates = Estimates(
            lambda which, limit: self.repository.list(which, limit=limit), self.feed
        )
        name = f"{socket.gethostname()}:{self.pid}:{uuid.uuid4().hex[:8]}"
        self.executor = Executor(
            parts.registry, parts.hooks, self.repository, self.feed, settings, name
        )
        self.watchdog = Watchdog(
            settings.block_warning_after, Executor.CALLER, self.executor.heartbeat.attends
        )
        self._grace = anyio.CancelScope()
        self.fetcher: Fetcher | None = None
        if isinstance(parts.dispatcher, Embedded):
            lanes = Lanes(parts.registry, parts.queues)
            self.fetcher = Fetcher(lanes, self.repository, parts.dispatcher, settings)
            self.feed.on_any(self.fetcher.hint)
        self.retrier = DispatchRetrier(parts.dispatcher, settings, tasks)
        self.maintenance = Maintenance(
            parts.registry, self.repository, self.retrier, settings, fetcher=self.fetcher
        )
        self.callbacks = Callbacks(self.repository, parts.callback_sender, settings)
        self.feed.on_any(self.callbacks.hint)

    @property
    def is_ours(self) -> bool:
        """Whether it was opened by this process, and not by the one that forked it."""
        return self.pid == os.getpid()

    @property
    def watchers(self) -> int:
        """How many follow a job here; an attempt, which listens for its own job, is none."""
        return max(0, self.feed.listeners - len(self.executor.heartbeat))

    async def accept(
        self, submission: Submission, run_at: datetime, connection: object = None
    ) -> Job:
        """Store the job of a submission, then dispatch it; or return the one its key names.

        What the transaction of a connection stores is not dispatched: it comes up when it commits.
        """
        if connection is not None:
            job = lifecycle.submit(submission, run_at=run_at)
            return await self.repository.insert_within(connection, job)
        if run_at > submission.created_at or submission.delivery is Delivery.EXTERNAL:
            [stored] = await self.repository.insert([lifecycle.submit(submission, run_at=run_at)])
            return stored
        with self._reservation(submission) as reserved:
            hold = self.settings.redelivery if reserved else timedelta(0)
            [stored] = await self.repository.insert([lifecycle.submit(submission, hold=hold)])
        # Also what was there before and waits: its first submission may have failed to dispatch it.
        if (
            reserved
            and stored.status is JobStatus.PENDING
            and stored.run_at <= self.repository.now()
        ):
            await self.retrier.dispatch([stored])
        return stored

    async def oldest(self, queues: Sequence[str]) -> Mapping[str, timedelta]:
        """Tell for how long the first job of each queue waits; nothing where that is not known."""
        ours = await self.repository.oldest(queues)
        if self.dispatcher.delivery is not Delivery.PUSH:
            return ours
        theirs, none = self.retrier.oldest(self.repository.now()), timedelta(0)
        return {queue: max(ours.get(queue, none), theirs.get(queue, none)) for queue in queues}

    def hurry(self) -> None:
        """Let the grace period be over, now or when it comes."""
        self._grace.cancel()

    async def drain(self) -> None:
        """Begin nothing more, let run what ends in time, give back the rest."""
        if isinstance(self.dispatcher, Embedded) and self.fetcher is not None:
            left = self.dispatcher.close()
            try:
                await self.fetcher.give_back(left)
            except StoreError as error:
                log.warning("Jobs that wait here come up elsewhere later: %s", error)
            with self._grace as grace:
                grace.deadline = anyio.current_time() + self.settings.grace.total_seconds()
                await self.dispatcher.wait_until_idle()
        self.executor.interrupt_all()
        with anyio.move_on_after(_LAST_WORDS):
            await self.executor.heartbeat.wait_until_none()
            await self.callbacks.close()
        self.executor.processes.close()

    def _reservation(self, submission: Submission) -> AbstractContextManager[bool]:
        """Ask for a place here, unless this process leaves jobs of that queue to others."""
        if self.fetcher is not None and not self.fetcher.serves(submission.queue):
            return nullcontext(enter_result=False)
        return self.dispatcher.reservation()


@asynccontextmanager
async def open_runtime(parts: RuntimeParts) -> AsyncGenerator[Runtime]:
    """Open the store, start the loops; on leaving drain, stop the loops and close the store."""
    async with _open_parts(parts), anyio.create_task_group() as tasks:
        runtime = Runtime(parts, tasks)
        async with AsyncExitStack() as stack:
            if isinstance(parts.dispatcher, Embedded):
                await stack.enter_async_context(parts.dispatcher.running(runtime.executor.run))
            stack.enter_context(runtime.watchdog.watching())
            store_clock = power_of(parts.store, StoreClock)
            if isinstance(parts.clock, SharedClock) and store_clock is not None:
                tasks.start_soon(_keep_up, partial(parts.clock.run, store_clock))
            tasks.start_soon(_keep_up, runtime.executor.heartbeat.run)
            tasks.start_soon(_keep_up, runtime.maintenance.run)
            tasks.start_soon(_keep_up, runtime.callbacks.run)
            tasks.start_soon(_keep_up, runtime.estimates.run)
            for loop in (runtime.hook_runner.run, *parts.hooks.loops):
                tasks.start_soon(_keep_up, loop)
            tasks.start_soon(
                _keep_up, lambda: runtime.feed.run(runtime.repository.get, parts.store)
            )
            if runtime.fetcher is not None:
                tasks.start_soon(_keep_up, runtime.fetcher.run)
            try:
                yield runtime
            finally:
                with anyio.CancelScope(shield=True):
                    await runtime.drain()
                    await runtime.hook_runner.finish(_LAST_WORDS)
                runtime.feed.close()
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
    """Run a loop for ever: a bug in one of them must not end the application it lives in."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("A loop of the engine broke off and begins anew")
            await anyio.sleep(1)
