"""Runs jobs on dramatiq's workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncjobs.core.job import DEFAULT_QUEUE, Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import BlockingClientDispatcher, collect_errors

with needs_extra("dramatiq"):
    from dramatiq import Actor, Broker, Message, Middleware, Worker

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# Set on the actor even if the broker lacks the middleware, which may be added later. Not set on the
# message, in which dramatiq treats zero as absent.
_ACTOR_OPTIONS: Mapping[str, Any] = {
    "max_retries": 0,
    "retry_when": None,
    "time_limit": math.inf,
    "max_age": None,
    "notify_shutdown": False,
    "store_results": False,
}


@dataclass(frozen=True, kw_only=True)
class DramatiqOptions:
    """How dramatiq delivers the jobs of one type.

    `queue` defaults to the job type's `Policy.queue`. `priority` orders the messages that a worker
    process has fetched: the lowest goes first.
    """

    queue: str | None = None
    priority: int = 0


class DramatiqDispatcher(BlockingClientDispatcher[DramatiqOptions]):
    """Sends a dramatiq message for each job; workers that called `register_task` run the jobs."""

    serve_by = "add {} to the --queues of a worker, or start one without that option"

    def __init__(
        self,
        broker: Broker,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, DramatiqOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._broker: Any = broker

    def send_all(self, jobs: Sequence[Job]) -> None:
        try:
            with collect_errors() as attempt:
                for job in jobs:
                    with attempt(job):
                        self._send(job)
        finally:
            # The broker for RabbitMQ keeps a connection for each thread, and this thread ends.
            if "connection" in dir(self._broker):
                del self._broker.connection

    def register_task(self, jobs: AsyncJobs) -> Actor[..., None]:
        """Register the actors that run jobs of this queue; call it wherever the app is imported.

        There is one actor for each priority, since in dramatiq a priority belongs to an actor.
        Workers serve the queues of all handlers and options, unless they are started with others.
        Retries, results, time and age limits and interruptions are off. The first message opens the
        queue; it is closed at the end of the process, after the worker has waited for its running
        jobs.
        """

        def run_job(**message: Any) -> None:
            run_message_from_thread(jobs, self.namespace, message)

        chosen = self.options.values()
        actors = {
            priority: Actor(
                run_job,
                broker=self._broker,
                actor_name=self._actor_name(priority),
                queue_name=DEFAULT_QUEUE,
                priority=priority,
                options=dict(_ACTOR_OPTIONS),
            )
            for priority in {0, *(options.priority for options in chosen)}
        }
        queues = [options.queue for options in chosen if options.queue is not None]
        self._broker.add_middleware(_DeclareQueues(jobs, queues))
        return actors[0]

    def _send(self, job: Job) -> None:
        chosen = self.options.get(job.type, DramatiqOptions())
        self._broker.enqueue(
            Message(
                queue_name=self.queue_for(job.type, job.queue) or DEFAULT_QUEUE,
                actor_name=self._actor_name(chosen.priority),
                args=(),
                kwargs=dict(self.message_of(job)),
                options={},
            )
        )

    def _actor_name(self, priority: int) -> str:
        return f"{self.task_name}.{priority}" if priority else self.task_name


class _DeclareQueues(Middleware):
    """Makes a worker serve the queues of all handlers, which are registered when it starts."""

    def __init__(self, jobs: AsyncJobs, queues: Sequence[str]) -> None:
        self._jobs = jobs
        self._queues = queues

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        del worker
        for name in {*self._jobs.registry.queues, *self._queues}:
            broker.declare_queue(name)
