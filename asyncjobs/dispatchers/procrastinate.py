"""Lets Procrastinate's workers run the jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
from procrastinate import App, BaseConnector, JobContext
from procrastinate.connector import BaseAsyncConnector
from procrastinate.exceptions import AppNotOpen
from procrastinate.manager import JobManager
from procrastinate.tasks import configure_task

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import QueueResidence
from asyncjobs.dispatchers.engines.push import Message, PushDispatcher, leaving_none_out, queue_of
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.threads import in_new_thread

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# Connectors that a fork copied into this process. To let go of their connections might close them,
# and closing an inherited connection harms the parent's.
_inherited: list[object] = []


@dataclass(frozen=True, kw_only=True)
class ProcrastinateOptions:
    """How Procrastinate carries the jobs of one type.

    `queue` is by default the job type's `Policy.queue`, and where that is "default" Procrastinate's
    own "default". Of what waits, the highest `priority` goes first; it may be negative, and is 0
    unless given.
    """

    queue: str | None = None
    priority: int | None = None


class ProcrastinateDispatcher(PushDispatcher[ProcrastinateOptions]):
    """Tells Procrastinate of jobs by rows in its table; a worker with the `carrier` runs them.

    The app's own connections are used while the application has it open, by `open_async` in this
    event loop or by `open`. Otherwise the dispatcher has some of its own, made by the first job.
    """

    def __init__(
        self,
        app: App,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, ProcrastinateOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._app = app
        self._own: _Own | None = None

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "Procrastinate needs asyncio: it knows no other event loop, such as trio's."
            ) from None
        if self._own is not None:
            _inherited.append(self._own)
            self._own = None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.close()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        alike: dict[ProcrastinateOptions, list[Message]] = {}
        for job in jobs:
            alike.setdefault(self._options_of(job), []).append(self.message_of(job))
        with leaving_none_out() as one:
            for options, messages in alike.items():
                with one():
                    await self._defer(options, messages)

    def carrier(self, jobs: AsyncJobs) -> Callable[..., Any]:
        """Register the task that runs jobs of this queue; call it where workers import the app.

        It has no retries, and no lock. The queue is opened by the first message, in the worker's
        event loop, and closed when that ends.
        """
        residence = QueueResidence(jobs, self.namespace)

        @self._app.task(name=self.carrier_name, pass_context=True, retry=False)
        async def run(context: JobContext, /, **message: Any) -> None:
            await _stop_with_the_worker(
                context, asyncio.create_task(residence.run_message(message))
            )

        return run

    def _options_of(self, job: Job) -> ProcrastinateOptions:
        chosen = self.options.get(job.type, ProcrastinateOptions())
        return replace(chosen, queue=chosen.queue or queue_of(job))

    async def _defer(self, options: ProcrastinateOptions, messages: Sequence[Message]) -> None:
        """Insert rows that are alike but for their message, by one statement."""
        manager = await self._reach()
        deferrer = configure_task(
            name=self.carrier_name,
            job_manager=manager,
            queue=options.queue,
            priority=options.priority,
        )
        rows = [dict[str, Any](message) for message in messages]
        if isinstance(manager.connector.get_sync_connector(), BaseAsyncConnector):
            await deferrer.batch_defer_async(*rows)
        else:
            told = partial(deferrer.batch_defer, *rows)
            await in_new_thread(told, name=f"{self.namespace} dispatch").result()

    async def _reach(self) -> JobManager:
        """Return the way to the database by a connector that is open."""
        if _is_in_use(self._app.connector):
            return self._app.job_manager
        own = self._own
        if own is None:
            own = self._own = _Own(self._app.connector)
        try:
            # Whoever is cancelled here must not leave the connections half open.
            await asyncio.shield(own.opened)
        except Exception:
            if self._own is own:
                self._own = None
            raise
        return own.manager


class _Own:
    """The same connector as another, but with connections of its own, in one event loop."""

    def __init__(self, connector: BaseConnector) -> None:
        # A manager, since a second app would take the built-in tasks away from the first.
        self.manager = JobManager(copy(connector))
        self.opened = asyncio.get_running_loop().create_task(
            self.manager.connector.open_async(), name="asyncjobs opens Procrastinate"
        )

    async def close(self) -> None:
        self.opened.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self.opened])
            await self.manager.connector.close_async()


def _is_in_use(connector: BaseConnector) -> bool:
    """Tell whether the application has opened a connector, or has to, since we cannot."""
    twin = connector.get_sync_connector()
    if twin is connector:
        return True
    # A connector for asyncio that is not open in any loop may be open for threads.
    try:
        return getattr(twin, "pool", None) is not None
    except AppNotOpen:
        return False


async def _stop_with_the_worker(context: JobContext, attempt: asyncio.Task[None]) -> None:
    """Wait for an attempt; where the worker stops, have it given back.

    What else might cancel is a time limit, by a middleware of the application: that is ours.
    """
    while not attempt.done():
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if context.should_abort():
                attempt.cancel()
    if not attempt.cancelled():
        attempt.result()
