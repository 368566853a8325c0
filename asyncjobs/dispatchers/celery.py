"""Runs jobs on Celery's workers."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import (
    TEN_YEARS_IN_SECONDS,
    BlockingClientDispatcher,
    collect_errors,
)
from asyncjobs.errors import ConfigurationError
from asyncjobs.portal import portal_for
from asyncjobs.stores.urls import check_credentials

with needs_extra("celery"):
    from celery import Celery, Task
    from celery.signals import worker_process_shutdown

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# How long running workers have to answer.
_ANSWER_SECONDS = 1

# Reconnects once if a pooled connection has died; otherwise maintenance sends the job again.
_RETRY_SEND_ONCE = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}


@dataclass(frozen=True, kw_only=True)
class CeleryOptions:
    """How Celery delivers the jobs of one type.

    `queue` defaults to the job type's `Policy.queue`; for "default", to the default queue of the
    Celery app. `priority` defaults to the app's `task_default_priority`. Its effect depends on the
    broker: with RabbitMQ the highest number goes first, with Redis the lowest, 0.
    """

    queue: str | None = None
    priority: int | None = None


class CeleryDispatcher(BlockingClientDispatcher[CeleryOptions]):
    """Sends a Celery message for each job; workers that called `register_task` run the jobs."""

    serve_by = "start a worker with -Q {}"

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, CeleryOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._app = app

    def send_all(self, jobs: Sequence[Job]) -> None:
        with collect_errors() as attempt:
            for job in jobs:
                with attempt(job), self._without_credentials():
                    self._send(job)

    def served_queues(self) -> frozenset[str] | None:
        """Ask the running workers; if none answers, return the queues of a worker without `-Q`."""
        with suppress(Exception):  # the broker is down
            inspected = self._app.control.inspect(timeout=_ANSWER_SECONDS).active_queues() or {}
            if names := [queue["name"] for found in inspected.values() for queue in found]:
                return frozenset(names)
        return frozenset(self._app.amqp.queues.consume_from)

    def register_task(self, jobs: AsyncJobs) -> Task[..., None]:
        """Register the task that runs jobs of this queue; call it wherever the app is imported.

        Celery's retries, results and time limits are off for the task. The first message opens the
        queue, in the process that the worker has forked by then.
        """

        @self._app.task(
            name=self.task_name,
            shared=False,  # another Celery app in the process may have its own queue
            ignore_result=True,
            store_errors_even_if_ignored=False,
            track_started=False,
            max_retries=0,
            # A message redelivered after the death of a worker finds its job started or ended.
            acks_late=False,
        )
        def run_job(**message: Any) -> None:
            run_message_from_thread(jobs, self.namespace, message)

        # Celery's processes end without Python's exit handlers, which would close the queue.
        worker_process_shutdown.connect(partial(_close, jobs), weak=False)
        return run_job

    @contextmanager
    def _without_credentials(self) -> Generator[None]:
        """Replace the error for a malformed URL of a broker, which quotes the URL."""
        try:
            yield
        except ValueError:
            try:
                for url in str(self._app.conf.broker_write_url or "").split(";"):
                    check_credentials("The URL of Celery's broker", url)
            except ConfigurationError as malformed:
                raise malformed from None  # or the traceback would show the other error, too
            raise

    def _send(self, job: Job) -> None:
        chosen = self.options.get(job.type, CeleryOptions())
        default: int | None = self._app.conf.task_default_priority
        self._app.send_task(
            self.task_name,
            kwargs=dict(self.message_of(job)),
            queue=self.queue_for(job.type, job.queue),
            # `send_task` does not apply the default. With Redis, no priority means the most urgent
            # one.
            priority=default if chosen.priority is None else chosen.priority,
            ignore_result=True,
            add_to_parent=False,
            retry=True,
            retry_policy=_RETRY_SEND_ONCE,
            # None and zero would mean the limits that the app sets for all tasks.
            time_limit=TEN_YEARS_IN_SECONDS,
            soft_time_limit=TEN_YEARS_IN_SECONDS,
        )


def _close(jobs: AsyncJobs, **_signal: Any) -> None:
    portal_for(jobs).close()
