"""Lets SAQ's workers run the jobs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from saq import Job as SaqJob
from saq import Queue

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import QueueResidence
from asyncjobs.dispatchers.engines.push import (
    ConnectingDispatcher,
    Message,
    leave_connections_to_parent,
    queue_of,
)
from asyncjobs.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# SAQ looks at what it believes to run now and then, and drops what has had its time: nothing that
# runs, but what a killed worker has left behind.
_LEFTOVERS = timedelta(hours=1)

# SAQ's own figure for a record that goes when its job ends.
_NO_RECORD = -1


@dataclass(frozen=True, kw_only=True)
class SAQOptions:
    """How SAQ carries the jobs of one type.

    `queue` names one of the dispatcher's queues. By default it is the one that the job type's
    `Policy.queue` names, and where that is "default" the dispatcher's first. `priority` counts on
    PostgreSQL only, where a smaller number runs first.
    """

    queue: str | None = None
    priority: int = 0


class SAQDispatcher(ConnectingDispatcher[SAQOptions]):
    """Tells SAQ of each job by one message; a worker with the settings of `carrier` runs it.

    A SAQ worker serves one queue. Jobs go to the first of the given ones, unless their type asks
    for another by its name.
    """

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
        queue = self._queue_named(chosen.queue or queue_of(job))
        await queue.enqueue(
            SaqJob(
                function=self.carrier_name,
                kwargs=dict(message),
                priority=chosen.priority,
                timeout=math.ceil((job.deadline - job.created_at + _LEFTOVERS).total_seconds()),
                heartbeat=0,
                retries=0,
                ttl=_NO_RECORD,
            )
        )

    def carrier(self, jobs: AsyncJobs, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make the settings of a worker that runs jobs of this queue, for the command `saq`.

        They are the given ones, with one more function, `startup` and `shutdown`; without a `queue`
        among them it serves the dispatcher's first. SAQ's retries, results and time limits are off.
        """
        residence = QueueResidence(jobs, self.namespace)

        async def run(_context: object, **message: object) -> None:
            await residence.run_message(message)

        async def begin(_context: object) -> None:
            await residence.begin()

        async def end(_context: object) -> None:
            await residence.close()

        given = settings or {}
        return {
            "queue": self._queue_named(None),
            **given,
            "functions": [*given.get("functions", ()), (self.carrier_name, run)],
            "startup": [*_each(given.get("startup")), begin],
            "shutdown": [end, *_each(given.get("shutdown"))],
        }

    def _queue_named(self, name: str | None) -> Queue:
        for queue in self._queues:
            if name in (None, queue.name):
                return queue
        known = ", ".join(repr(queue.name) for queue in self._queues) or "none"
        raise ConfigurationError(f"The dispatcher has no SAQ queue {name!r} (it has: {known}).")


# SAQ does not tell who asks whether a queue is connected; it notes the event loop.
def _loop_of(queue: Queue) -> asyncio.AbstractEventLoop | None:
    return getattr(queue, "_loop", None)


def _is_connected(queue: Queue) -> bool:
    """Tell whether somebody has connected it in this event loop."""
    return _loop_of(queue) is asyncio.get_running_loop()


def _leave_to_parent(queue: Queue) -> None:
    if (redis := getattr(queue, "redis", None)) is not None:
        leave_connections_to_parent(redis.connection_pool)
    elif _loop_of(queue) is not None:
        raise ConfigurationError(
            f"The SAQ queue {queue.name!r} was connected before this process was forked."
        )


def _each(hooks: Any) -> Collection[Any]:
    """Return hooks as SAQ takes them: none, one or several."""
    if hooks is None:
        return ()
    return (hooks,) if callable(hooks) else hooks
