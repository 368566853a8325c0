"""Lets Celery's workers run the jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import worker_process_shutdown

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import BlockingDispatcher, Message, queue_of
from asyncjobs.portal import portal_for

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# The application's own settings may limit all tasks; how long a job may take is not Celery's
# business. Zero and None mean those settings.
_TEN_YEARS = 10 * 365 * 24 * 3600

# A pooled connection that has died meanwhile is made anew once; maintenance does the rest.
_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


@dataclass(frozen=True, kw_only=True)
class CeleryOptions:
    """How Celery carries the jobs of one type.

    `queue` is by default the job type's `Policy.queue`, and where that is "default" the one that
    the Celery app uses unasked. What `priority` means, and if anything, the broker says.
    """

    queue: str | None = None
    priority: int | None = None


class CeleryDispatcher(BlockingDispatcher[CeleryOptions]):
    """Tells Celery of each job by one message; a worker that has called `carrier` runs it."""

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, CeleryOptions] | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._app = app

    def send_now(self, message: Message, job: Job) -> None:
        chosen = self.options.get(job.type, CeleryOptions())
        self._app.send_task(
            self.carrier_name,
            kwargs=dict(message),
            queue=chosen.queue or queue_of(job),
            priority=chosen.priority,
            ignore_result=True,
            add_to_parent=False,
            retry=True,
            retry_policy=_ONCE_MORE,
            time_limit=_TEN_YEARS,
            soft_time_limit=_TEN_YEARS,
        )

    def carrier(self, jobs: AsyncJobs) -> Callable[..., None]:
        """Register the task that runs jobs of this queue; in every process that imports the app.

        Celery's retries, results and time limits are off for it. It opens the queue at its first
        message, in the process that the worker has forked by then.
        """

        @self._app.task(
            name=self.carrier_name,
            ignore_result=True,
            store_errors_even_if_ignored=False,
            track_started=False,
            max_retries=0,
            # A message that comes again from a worker which died finds the job begun, or ended.
            acks_late=False,
        )
        def run(**message: Any) -> None:
            run_message_from_thread(jobs, self.namespace, message)

        # Celery's processes end without Python's own farewells, in which the queue would be closed.
        worker_process_shutdown.connect(partial(_close, jobs), weak=False)
        return run


def _close(jobs: AsyncJobs, **_signal: Any) -> None:
    portal_for(jobs).close()
