"""Lets taskiq's workers run the jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskiq import AsyncBroker, TaskiqEvents, TaskiqMiddleware, TaskiqState
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import NoResultError
from taskiq.kicker import AsyncKicker
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import QueueResidence
from asyncjobs.dispatchers.engines.push import (
    ConnectingDispatcher,
    Message,
    leave_connections_to_parent,
    queue_of,
)

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# A middleware of the application's may give all tasks that have no time limit one. How long a job
# may take is not taskiq's business.
_TEN_YEARS = 10 * 365 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class TaskiqOptions:
    """How taskiq carries the jobs of one type, said by the labels `queue_name` and `priority`.

    `queue` is by default the job type's `Policy.queue`, and where that is "default" the broker's
    own. What the labels mean, and if anything, the broker says: Redis knows no priorities.
    """

    queue: str | None = None
    priority: int | None = None


class TaskiqDispatcher(ConnectingDispatcher[TaskiqOptions]):
    """Tells taskiq of each job by one message; a worker whose module calls `carrier` runs it.

    The broker is started in processes that hand jobs on, unless the application does it, and shut
    down with the queue.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, TaskiqOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._broker = broker
        self._started_in: int | None = None
        self._ours = False
        # The only way to learn whether the application has started it.
        broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, self._note_start)
        broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, self._note_end)

    async def connect(self) -> None:
        if not (self._is_started or self._broker.is_worker_process):
            self._ours = True
            try:
                await self._broker.startup()
            except BaseException:
                self._started_in = None
                raise

    def leave_to_parent(self) -> None:
        self._ours = False
        pool = getattr(self._broker, "connection_pool", None)
        if pool is not None and not self._is_started:
            leave_connections_to_parent(pool)

    async def disconnect(self) -> None:
        if self._ours:
            self._ours = False
            await self._broker.shutdown()

    async def send(self, message: Message, job: Job) -> None:
        kicker: AsyncKicker[Any, Any] = AsyncKicker(
            task_name=self.carrier_name, broker=self._broker, labels=self._labels_of(job)
        )
        await kicker.kiq(**message)

    def carrier(self, jobs: AsyncJobs) -> AsyncTaskiqDecoratedTask[..., Any]:
        """Register the task that runs jobs of this queue; in the module that the worker is given.

        taskiq's retries, results and time limits are off for it. The queue is opened when the
        worker starts, and closed when it has ended.
        """
        residence = QueueResidence(jobs, self.namespace)

        async def run(namespace: str, id: str, trace: str) -> None:
            await residence.run_message(Message(namespace=namespace, id=id, trace=trace))

        async def begin(_state: TaskiqState) -> None:
            if self._broker.is_worker_process:  # and not one that is all in one, as for tests
                await residence.begin()

        async def end(_state: TaskiqState) -> None:
            await residence.close()

        self._broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, begin)
        self._broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, end)
        self._keep_no_results()
        return self._broker.register_task(run, self.carrier_name)

    def _keep_no_results(self) -> None:
        unkept = _Unkept(self.carrier_name)
        unkept.set_broker(self._broker)
        # The first one is the last to be asked: others see the result as it is.
        self._broker.middlewares.insert(0, unkept)

    def _labels_of(self, job: Job) -> dict[str, Any]:
        chosen = self.options.get(job.type, TaskiqOptions())
        named = {"queue_name": chosen.queue or queue_of(job), "priority": chosen.priority}
        return {
            **{name: value for name, value in named.items() if value is not None},
            "retry_on_error": False,
            "timeout": _TEN_YEARS,
            # A message that comes again from a worker which died finds the job begun, or ended.
            "ack_type": "when_received",
        }

    @property
    def _is_started(self) -> bool:
        return self._started_in == os.getpid()

    def _note_start(self, _state: TaskiqState) -> None:
        self._started_in = os.getpid()

    def _note_end(self, _state: TaskiqState) -> None:
        self._started_in = None


class _Unkept(TaskiqMiddleware):
    """Keeps results of one task, which are all None, from the broker's result backend."""

    def __init__(self, task_name: str) -> None:
        super().__init__()
        self._task_name = task_name

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if message.task_name == self._task_name:
            # As taskiq's own middlewares say it: a task that raised it would be logged as failed.
            result.error = NoResultError()
