"""Runs jobs on SAQ's workers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import AsyncMessageRunner
from asyncjobs.dispatchers.engines.push import (
    AsyncClientDispatcher,
    Message,
    leave_connections_to_parent,
)
from asyncjobs.errors import ConfigurationError

with needs_extra("saq"):
    from saq import Job as SaqJob
    from saq import Queue

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# SAQ's sweep drops messages that run longer than their timeout. With this margin, only messages of
# killed workers do.
_MARGIN_AFTER_DEADLINE = timedelta(hours=1)

# With this value, SAQ deletes the record of a message when it ends.
_TTL_WITHOUT_RECORD = -1


@dataclass(frozen=True, kw_only=True)
class SAQOptions:
    """How SAQ delivers the jobs of one type.

    `queue` names one of the dispatcher's queues. It defaults to the job type's `Policy.queue`; for
    "default", to the dispatcher's first queue. `priority` is used on PostgreSQL only, where the
    smallest number goes first.
    """

    queue: str | None = None
    priority: int = 0


class SAQDispatcher(AsyncClientDispatcher[SAQOptions]):
    """Sends a SAQ message for each job; workers with the settings of `register_task` run the jobs.

    A SAQ worker serves one queue. Jobs go to the first of the given queues unless their type names
    another.
    """

    serve_by = "start a worker whose settings have the queue {}"

    def __init__(
        self,
        *queues: Queue,
        namespace: str = "asyncjobs",
        options: Mapping[str, SAQOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._queues = queues
        self._opened: set[Queue] = set()
        self._closed: set[Queue] = set()

    async def connect(self) -> None:
        for queue in self._queues:
            if queue in self._closed or not _is_connected(queue):
                self._opened.add(queue)
                await queue.connect()

    def leave_to_parent(self) -> None:
        self._opened.clear()
        for queue in self._queues:
            if not _is_connected(queue):
                _leave_to_parent(queue)

    async def disconnect(self) -> None:
        while self._opened:
            queue = self._opened.pop()
            self._closed.add(queue)
            await queue.disconnect()

    async def send(self, message: Message, job: Job) -> None:
        chosen = self.options.get(job.type, SAQOptions())
        queue = self._queue_named(self.queue_for(job.type, job.queue))
        time_limit = job.deadline - job.created_at + _MARGIN_AFTER_DEADLINE
        await queue.enqueue(
            SaqJob(
                function=self.task_name,
                kwargs=dict(message),
                priority=chosen.priority,
                timeout=math.ceil(time_limit.total_seconds()),
                heartbeat=0,
                retries=0,
                ttl=_TTL_WITHOUT_RECORD,
            )
        )

    def register_task(
        self, jobs: AsyncJobs, settings: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the settings of a worker that runs jobs of this queue, for the command `saq`.

        They are the given settings with an additional function, `startup` and `shutdown`. Without a
        `queue` among them, the worker serves the dispatcher's first queue. SAQ's retries, results
        and time limits are off for the function.
        """
        runner = AsyncMessageRunner(jobs, self.namespace)

        async def run_job(_context: object, **message: object) -> None:
            await runner.run(message)

        async def startup(_context: object) -> None:
            await runner.try_open()

        async def shutdown(_context: object) -> None:
            await runner.close()

        given = settings or {}
        return {
            "queue": self._queue_named(None),
            **given,
            "functions": [*given.get("functions", ()), (self.task_name, run_job)],
            "startup": [*_hooks(given.get("startup")), startup],
            "shutdown": [shutdown, *_hooks(given.get("shutdown"))],
        }

    def _queue_named(self, name: str | None) -> Queue:
        for queue in self._queues:
            if name in (None, queue.name):
                return queue
        known = ", ".join(repr(queue.name) for queue in self._queues) or "none"
        raise ConfigurationError(f"The dispatcher has no SAQ queue {name!r} (it has: {known}).")


# SAQ has no public way to ask whether a queue is connected; it keeps the event loop.
def _loop_of(queue: Queue) -> asyncio.AbstractEventLoop | None:
    return getattr(queue, "_loop", None)


def _is_connected(queue: Queue) -> bool:
    """Return whether the queue is connected in this event loop."""
    return _loop_of(queue) is asyncio.get_running_loop()


def _leave_to_parent(queue: Queue) -> None:
    if (redis := getattr(queue, "redis", None)) is not None:
        leave_connections_to_parent(redis.connection_pool)
    elif _loop_of(queue) is not None:
        raise ConfigurationError(
            f"The SAQ queue {queue.name!r} was connected before this process was forked."
        )


def _hooks(given: Any) -> Collection[Any]:
    """Return a list of hooks: SAQ takes None, a function or several."""
    if given is None:
        return ()
    return (given,) if callable(given) else given
