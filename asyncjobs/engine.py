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

from asyncjobs import lifecycle
from asyncjobs.batching import BatchingStore
from asyncjobs.callbacks import Callbacks
from asyncjobs.clock import SharedClock
from asyncjobs.dispatching import Dispatching
from asyncjobs.errors import StoreError
from asyncjobs.estimates import Estimates
from asyncjobs.feed import Feed
from asyncjobs.hooks import Hooks, Telling
from asyncjobs.housekeeping import Housekeeping
from asyncjobs.ledger import Ledger
from asyncjobs.model import Delivery, Job, JobStatus, Submission
from asyncjobs.protocols import Clock, Clocked, Dispatcher, Embedded, Messenger, Store
from asyncjobs.registry import Registry
from asyncjobs.runner import Runner
from asyncjobs.settings import Settings
from asyncjobs.watchdog import Watchdog
from asyncjobs.worker import Lanes, Worker

log = logging.getLogger("asyncjobs")

# How long handlers that were told to stop may take to do so before the process goes on without.
_LAST_WORDS = 5.0


@dataclass(frozen=True)
class Parts:
    """What an engine is made of; all of it may outlive the engine."""

    store: Store
    dispatcher: Dispatcher
    registry: Registry
    settings: Settings
    clock: Clock
    hooks: Hooks
    queues: tuple[str, ...] | None = None
    messenger: Messenger | None = None


class Engine:
    """The running parts of a queue."""

    def __init__(self, parts: Parts, tasks: TaskGroup) -> None:
        settings = parts.settings
        self.pid = os.getpid()
        self.settings = settings
        self.dispatcher = parts.dispatcher
        self.feed = Feed(poll=settings.poll.total_seconds())
        self.telling = Telling(parts.hooks)
        self.ledger = Ledger(
            BatchingStore(parts.store, tasks),
            self.feed,
            parts.clock,
            able=parts.store,
            tell=self.telling.tell,
        )
        self.estimates = Estimates(
            lambda which, limit: self.ledger.list(which, limit=limit), self.feed
        )
        name = f"{socket.gethostname()}:{self.pid}:{uuid.uuid4().hex[:8]}"
        self.runner = Runner(parts.registry, parts.hooks, self.ledger, self.feed, settings, name)
        self.watchdog = Watchdog(settings.blocked, Runner.CALLER, self.runner.heartbeat.attends)
        self._grace = anyio.CancelScope()
        self.worker: Worker | None = None
        if isinstance(parts.dispatcher, Embedded):
            lanes = Lanes(parts.registry, parts.queues)
            self.worker = Worker(lanes, self.ledger, parts.dispatcher, settings)
            self.feed.on_any(self.worker.hint)
        self.dispatching = Dispatching(parts.dispatcher, settings, tasks)
        self.housekeeping = Housekeeping(
            parts.registry, self.ledger, self.dispatching, settings, worker=self.worker
        )
        self.callbacks = Callbacks(self.ledger, parts.messenger, settings)
        self.feed.on_any(self.callbacks.hint)

    @property
    def is_ours(self) -> bool:
        """Whether it was opened by this process, and not by the one that forked it."""
        return self.pid == os.getpid()

    @property
    def watchers(self) -> int:
        """How many follow a job here; an attempt, which listens for its own job, is none."""
        return max(0, self.feed.listeners - len(self.runner.heartbeat))

    async def accept(
        self, submission: Submission, run_at: datetime, connection: object = None
    ) -> Job:
        """Store the job of a submission, then dispatch it; or return the one its key names.

        What the transaction of a connection stores is not dispatched: it comes up when it commits.
        """
        if connection is not None:
            job = lifecycle.submit(submission, run_at=run_at)
            return await self.ledger.insert_within(connection, job)
        if run_at > submission.created_at or submission.delivery is Delivery.EXTERNAL:
            [stored] = await self.ledger.insert([lifecycle.submit(submission, run_at=run_at)])
            return stored
        with self._reservation(submission) as reserved:
            hold = self.settings.redelivery if reserved else timedelta(0)
            [stored] = await self.ledger.insert([lifecycle.submit(submission, hold=hold)])
        # Also what was there before and waits: its first submission may have failed to dispatch it.
        if reserved and stored.status is JobStatus.PENDING and stored.run_at <= self.ledger.now():
            await self.dispatching.dispatch([stored])
        return stored

    async def oldest(self, queues: Sequence[str]) -> Mapping[str, timedelta]:
        """Tell for how long the first job of each queue waits; nothing where that is not known."""
        ours = await self.ledger.oldest(queues)
        if self.dispatcher.delivery is not Delivery.PUSH:
            return ours
        theirs, none = self.dispatching.oldest(self.ledger.now()), timedelta(0)
        return {queue: max(ours.get(queue, none), theirs.get(queue, none)) for queue in queues}

    def hurry(self) -> None:
        """Let the grace period be over, now or when it comes."""
        self._grace.cancel()

    async def drain(self) -> None:
        """Begin nothing more, let run what ends in time, give back the rest."""
        if isinstance(self.dispatcher, Embedded) and self.worker is not None:
            left = self.dispatcher.close()
            try:
                await self.worker.give_back(left)
            except StoreError as error:
                log.warning("Jobs that wait here come up elsewhere later: %s", error)
            with self._grace as grace:
                grace.deadline = anyio.current_time() + self.settings.grace.total_seconds()
                await self.dispatcher.wait_until_idle()
        self.runner.interrupt_all()
        with anyio.move_on_after(_LAST_WORDS):
            await self.runner.heartbeat.wait_until_none()
            await self.callbacks.close()
        self.runner.processes.close()

    def _reservation(self, submission: Submission) -> AbstractContextManager[bool]:
        """Ask for a place here, unless this process leaves jobs of that queue to others."""
        if self.worker is not None and not self.worker.serves(submission.queue):
            return nullcontext(enter_result=False)
        return self.dispatcher.reservation()


@asynccontextmanager
async def open_engine(parts: Parts) -> AsyncGenerator[Engine]:
    """Open the store, start the loops; on leaving drain, stop the loops and close the store."""
    async with _open_parts(parts), anyio.create_task_group() as tasks:
        engine = Engine(parts, tasks)
        async with AsyncExitStack() as stack:
            if isinstance(parts.dispatcher, Embedded):
                await stack.enter_async_context(parts.dispatcher.running(engine.runner.run))
            stack.enter_context(engine.watchdog.watching())
            if isinstance(parts.clock, SharedClock) and isinstance(parts.store, Clocked):
                tasks.start_soon(_keep_up, partial(parts.clock.run, parts.store))
            tasks.start_soon(_keep_up, engine.runner.heartbeat.run)
            tasks.start_soon(_keep_up, engine.housekeeping.run)
            tasks.start_soon(_keep_up, engine.callbacks.run)
            tasks.start_soon(_keep_up, engine.estimates.run)
            for loop in (engine.telling.run, *parts.hooks.loops):
                tasks.start_soon(_keep_up, loop)
            tasks.start_soon(_keep_up, lambda: engine.feed.run(engine.ledger.get, parts.store))
            if engine.worker is not None:
                tasks.start_soon(_keep_up, engine.worker.run)
            try:
                yield engine
            finally:
                with anyio.CancelScope(shield=True):
                    await engine.drain()
                    await engine.telling.finish(_LAST_WORDS)
                engine.feed.close()
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def _open_parts(parts: Parts) -> AsyncGenerator[None]:
    async with parts.store, parts.dispatcher:
        if isinstance(parts.clock, SharedClock) and isinstance(parts.store, Clocked):
            await parts.clock.compare(parts.store)
        yield


async def _keep_up(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever: a bug in one of them must not end the application it lives in."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("A loop of the engine broke off and begins anew")
            await anyio.sleep(1)
