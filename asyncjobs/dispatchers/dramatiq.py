"""Lets dramatiq's workers run the jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq import Actor, Broker, Middleware, Worker
from dramatiq import Message as Envelope

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import BlockingDispatcher, Message, queue_of

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

_DEFAULT_QUEUE = "default"

# Given to the actor whether the broker has the middleware or not, as it may be added later. Not
# to the message, where dramatiq takes a zero for nothing.
_OFF: Mapping[str, Any] = {
    "max_retries": 0,
    "retry_when": None,
    "time_limit": math.inf,
    "max_age": None,
    "notify_shutdown": False,
    "store_results": False,
}


@dataclass(frozen=True, kw_only=True)
class DramatiqOptions:
    """How dramatiq carries the jobs of one type.

    `queue` is by default the job type's `Policy.queue`. `priority` decides between the messages
    that a worker process has fetched: the lower goes first.
    """

    queue: str | None = None
    priority: int = 0


class DramatiqDispatcher(BlockingDispatcher[DramatiqOptions]):
    """Tells dramatiq of each job by one message; a worker that has called `carrier` runs it."""

    def __init__(
        self,
        broker: Broker,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, DramatiqOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._broker: Any = broker

    def send_now(self, message: Message, job: Job) -> None:
        chosen = self.options.get(job.type, DramatiqOptions())
        queue = chosen.queue or queue_of(job) or _DEFAULT_QUEUE
        self._broker.enqueue(
            Envelope(
                queue_name=queue,
                actor_name=self._actor_name(chosen.priority),
                args=(),
                kwargs=dict(message),
                options={},
            )
        )

    def carrier(self, jobs: AsyncJobs) -> Actor[..., None]:
        """Register the actors that run jobs of this queue; in every process that imports the app.

        There is one for each priority, as dramatiq knows no other way. Its workers serve the queues
        of all handlers and options, unless they are told which. Retries, results, time and age
        limits and interruptions are off. The queue is opened at the first message, and closed
        at the end of the process, when the worker has waited for what it runs.
        """

        def run(**message: Any) -> None:
            run_message_from_thread(jobs, self.namespace, message)

        chosen = self.options.values()
        actors = {
            priority: Actor(
                run,
                broker=self._broker,
                actor_name=self._actor_name(priority),
                queue_name=_DEFAULT_QUEUE,
                priority=priority,
                options=dict(_OFF),
            )
            for priority in {0, *(one.priority for one in chosen)}
        }
        named = [one.queue for one in chosen if one.queue is not None]
        self._broker.add_middleware(_Queues(jobs, named))
        return actors[0]

    def _send_all(self, jobs: Sequence[Job]) -> None:
        try:
            super()._send_all(jobs)
        finally:
            # RabbitMQ's broker keeps a connection for each thread, and this one is at its end.
            if "connection" in dir(self._broker):
                del self._broker.connection

    def _actor_name(self, priority: int) -> str:
        return f"{self.carrier_name}.{priority}" if priority else self.carrier_name


class _Queues(Middleware):
    """Has a worker serve the queues of all handlers, which are registered when it begins."""

    def __init__(self, jobs: AsyncJobs, named: Sequence[str]) -> None:
        self._jobs = jobs
        self._named = named

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        del worker
        for name in {*self._jobs.registry.queues, *self._named}:
            broker.declare_queue(name)
