"""Runs jobs on Procrastinate's workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import AsyncMessageRunner
from asyncjobs.dispatchers.engines.push import (
    Message,
    PushDispatcher,
    collect_errors,
    keep_inherited,
    require_asyncio,
)

with needs_extra("procrastinate"):
    from procrastinate import App, BaseConnector, JobContext
    from procrastinate.connector import BaseAsyncConnector
    from procrastinate.exceptions import AppNotOpen
    from procrastinate.manager import JobManager
    from procrastinate.tasks import configure_task

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs


@dataclass(frozen=True, kw_only=True)
class ProcrastinateOptions:
    """How Procrastinate delivers the jobs of one type.

    `queue` defaults to the job type's `Policy.queue`; for "default", to Procrastinate's default
    queue. Of the waiting jobs, the highest `priority` goes first; it may be negative, and defaults
    to 0.
    """

    queue: str | None = None
    priority: int | None = None


class ProcrastinateDispatcher(PushDispatcher[ProcrastinateOptions]):
    """Adds rows to Procrastinate's table; workers that called `register_task` run the jobs.

    The app's own connections are used while the application has it open, by `open_async` in this
    event loop or by `open`. Otherwise the first job opens connections that belong to the
    dispatcher.
    """

    serve_by = "add {} to the --queues of a worker, or start one without that option"

    def __init__(
        self,
        app: App,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, ProcrastinateOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._app = app
        self._own: _OwnConnections | None = None

    async def __aenter__(self) -> Self:
        require_asyncio(type(self).__name__)
        if self._own is not None:
            keep_inherited(self._own)
            self._own = None
        return self

    async def disconnect(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.close()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        batches: dict[ProcrastinateOptions, list[Job]] = {}
        for job in jobs:
            batches.setdefault(self._options_of(job), []).append(job)
        with collect_errors() as attempt:
            for options, batch in batches.items():
                with attempt(*batch):
                    await self._defer(options, [self.message_of(job) for job in batch])

    def register_task(self, jobs: AsyncJobs) -> Callable[..., Any]:
        """Register the task that runs jobs of this queue; call it wherever workers import the app.

        The task has no retries and no lock. The first message opens the queue, in the worker's
        event loop; it is closed when the loop ends.
        """
        runner = AsyncMessageRunner(jobs, self.namespace)

        @self._app.task(name=self.task_name, pass_context=True, retry=False)
        async def run_job(context: JobContext, /, **message: Any) -> None:
            await _stop_with_worker(context, asyncio.create_task(runner.run(message)))

        return run_job

    def _options_of(self, job: Job) -> ProcrastinateOptions:
        chosen = self.options.get(job.type, ProcrastinateOptions())
        return replace(chosen, queue=self.queue_for(job.type, job.queue))

    async def _defer(self, options: ProcrastinateOptions, messages: Sequence[Message]) -> None:
        """Insert rows with the same options in one statement."""
        manager = await self._open_manager()
        deferrer = configure_task(
            name=self.task_name,
            job_manager=manager,
            queue=options.queue,
            priority=options.priority,
        )
        rows = [dict[str, Any](message) for message in messages]
        if isinstance(manager.connector.get_sync_connector(), BaseAsyncConnector):
            await deferrer.batch_defer_async(*rows)
        else:
            await self.in_thread(partial(deferrer.batch_defer, *rows))

    async def _open_manager(self) -> JobManager:
        """Return a job manager whose connector is open."""
        if _is_in_use(self._app.connector):
            return self._app.job_manager
        own = self._own
        if own is None:
            own = self._own = _OwnConnections(self._app.connector)
        try:
            # Shielded, since a cancelled caller would leave the connections half open.
            await asyncio.shield(own.opened)
        except Exception:
            if self._own is own:
                self._own = None
            raise
        return own.manager


class _OwnConnections:
    """A copy of a connector with its own connections, in one event loop."""

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
    """Return whether the application has opened a connector, or must, since we cannot."""
    sync_connector = connector.get_sync_connector()
    if sync_connector is connector:
        return True
    # A connector for asyncio that is not open in any loop may be open for threads.
    try:
        return getattr(sync_connector, "pool", None) is not None
    except AppNotOpen:
        return False


async def _stop_with_worker(context: JobContext, attempt: asyncio.Task[None]) -> None:
    """Wait for an attempt; give its job back if the worker stops.

    Any other cancellation is a time limit set by a middleware of the application, which does not
    end a job.
    """
    while not attempt.done():
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if context.should_abort():
                attempt.cancel()
    if not attempt.cancelled():
        attempt.result()
