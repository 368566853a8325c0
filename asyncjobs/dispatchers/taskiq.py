"""Runs jobs on taskiq's workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import AsyncMessageRunner
from asyncjobs.dispatchers.engines.push import (
    TEN_YEARS_IN_SECONDS,
    AsyncClientDispatcher,
    Message,
    leave_connections_to_parent,
)

with needs_extra("taskiq"):
    from taskiq import AsyncBroker, TaskiqEvents, TaskiqMiddleware, TaskiqState
    from taskiq.decor import AsyncTaskiqDecoratedTask
    from taskiq.exceptions import NoResultError
    from taskiq.kicker import AsyncKicker
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs


@dataclass(frozen=True, kw_only=True)
class TaskiqOptions:
    """How taskiq delivers the jobs of one type, by the labels `queue_name` and `priority`.

    `queue` defaults to the job type's `Policy.queue`; for "default", to the broker's own queue. The
    effect of the labels depends on the broker: on Redis, priorities have none.
    """

    queue: str | None = None
    priority: int | None = None


class TaskiqDispatcher(AsyncClientDispatcher[TaskiqOptions]):
    """Sends a taskiq message for each job; workers whose module calls `register_task` run the jobs.

    In other processes, the first job starts the broker unless the application does; the broker is
    then shut down with the queue.
    """

    serve_by = "start a worker whose broker reads the queue {}"

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
        self._is_ours = False
        # The only way to find out whether the application has started the broker.
        broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, self._note_start)
        broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, self._note_end)

    async def connect(self) -> None:
        if not (self._is_started or self._broker.is_worker_process):
            self._is_ours = True
            try:
                await self._broker.startup()
            except BaseException:
                self._started_in = None
                raise

    def leave_to_parent(self) -> None:
        self._is_ours = False
        pool = getattr(self._broker, "connection_pool", None)
        if pool is not None and not self._is_started:
            leave_connections_to_parent(pool)

    async def disconnect(self) -> None:
        if self._is_ours:
            self._is_ours = False
            await self._broker.shutdown()

    async def send(self, message: Message, job: Job) -> None:
        kicker: AsyncKicker[Any, Any] = AsyncKicker(
            task_name=self.task_name, broker=self._broker, labels=self._labels_of(job)
        )
        await kicker.kiq(**message)

    def register_task(self, jobs: AsyncJobs) -> AsyncTaskiqDecoratedTask[..., Any]:
        """Register the task that runs jobs of this queue; call it in the module given to workers.

        taskiq's retries, results and time limits are off for the task. The queue is opened when the
        worker starts, and closed when it has ended.
        """
        runner = AsyncMessageRunner(jobs, self.namespace)

        async def run_job(namespace: str, id: str) -> None:
            await runner.run(Message(namespace=namespace, id=id))

        async def startup(_state: TaskiqState) -> None:
            if self._broker.is_worker_process:  # an InMemoryBroker runs tasks in any process
                await runner.try_open()

        async def shutdown(_state: TaskiqState) -> None:
            await runner.close()

        self._broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, startup)
        self._broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, shutdown)
        discard = _DiscardResults(self.task_name)
        discard.set_broker(self._broker)
        # The first middleware is called last, so the others see the result.
        self._broker.middlewares.insert(0, discard)
        return self._broker.register_task(run_job, self.task_name)

    def _labels_of(self, job: Job) -> dict[str, Any]:
        chosen = self.options.get(job.type, TaskiqOptions())
        labels = {
            "queue_name": self.queue_for(job.type, job.queue),
            "priority": chosen.priority,
        }
        return {
            **{name: value for name, value in labels.items() if value is not None},
            "retry_on_error": False,
            # Without a limit, a middleware of the application may set one for all tasks.
            "timeout": TEN_YEARS_IN_SECONDS,
            # A message redelivered after the death of a worker finds its job started or ended.
            "ack_type": "when_received",
        }

    @property
    def _is_started(self) -> bool:
        return self._started_in == os.getpid()

    def _note_start(self, _state: TaskiqState) -> None:
        self._started_in = os.getpid()

    def _note_end(self, _state: TaskiqState) -> None:
        self._started_in = None


class _DiscardResults(TaskiqMiddleware):
    """Keeps the results of one task, which are all None, out of the broker's result backend."""

    def __init__(self, task_name: str) -> None:
        super().__init__()
        self._task_name = task_name

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if message.task_name == self._task_name:
            # Like taskiq's own middlewares. If a task raised it, it would be logged as failed.
            result.error = NoResultError()
