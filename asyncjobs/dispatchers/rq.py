"""Runs jobs on RQ's workers."""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import unwrap
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from asyncjobs.core.job import DEFAULT_QUEUE, Job
from asyncjobs.dispatchers.engines.extras import needs_extra
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import BlockingClientDispatcher, collect_errors
from asyncjobs.errors import AsyncJobsError, ConfigurationError
from asyncjobs.portal import Portal, portal_for
from asyncjobs.records.logging import log

with needs_extra("rq"):
    from rq import Queue, Worker
    from rq.job import get_current_job
    from rq.queue import EnqueueData

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

_NO_TIME_LIMIT = -1

# With 0, RQ deletes a message in seven additional round trips. If a message with the same id is
# sent within this time, it may be deleted with the earlier one: its job had not started then, and
# maintenance sends it once more.
_RESULT_TTL_SECONDS = 1

# RQ fails a message whose process died; its default would keep the message for a year.
_FAILURE_TTL_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class RQOptions:
    """How RQ delivers the jobs of one type.

    `queue` defaults to the job type's `Policy.queue`. RQ has no priorities, but a worker empties
    its queues in the order in which they were given. `at_front` puts a job before all others in its
    queue.
    """

    queue: str | None = None
    at_front: bool = False


class RQDispatcher(BlockingClientDispatcher[RQOptions]):
    """Sends jobs to RQ, whose workers import the function that `register_task` returned.

    `connection` is the application's `redis.Redis`. `task` is the name by which workers import the
    function: "app.jobs.run_job" is `run_job` in the module `app.jobs`. `serializer` is the name of
    the serializer that the workers were started with, if any.
    """

    serve_by = "start a worker by `rq worker {}`"

    def __init__(
        self,
        connection: Any,
        task: str,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, RQOptions] | None = None,
        serializer: str | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._connection = connection
        self._task = task
        self._serializer = serializer
        self._registered: Callable[..., None] | None = None

    async def __aenter__(self) -> Self:
        _check_importable(self._task, self._registered)
        return self

    def send_all(self, jobs: Sequence[Job]) -> None:
        # Keyed by id, since RQ rejects a batch that contains an id twice.
        batches: defaultdict[str, dict[str, Job]] = defaultdict(dict)
        for job in jobs:
            name = self.queue_for(job.type, job.queue) or DEFAULT_QUEUE
            batches[name][job.id] = job
        with collect_errors() as attempt:
            for name, batch in batches.items():
                with attempt(*batch.values()):
                    queue = Queue(name, self._connection, serializer=self._serializer)
                    queue.enqueue_many(list(map(self._message, batch.values())))

    def served_queues(self) -> frozenset[str] | None:
        """Ask Redis, where RQ's workers register; None if none runs or Redis is down."""
        with suppress(Exception):  # Redis is down
            workers: Any = Worker.all(connection=self._connection)  # pyright: ignore[reportUnknownMemberType]  # a serializer without a type
            return frozenset(name for one in workers for name in one.queue_names()) or None
        return None

    def register_task(self, jobs: AsyncJobs) -> Callable[..., None]:
        """Return the function that runs jobs of this queue, for the module that workers import.

        RQ's retries and time limits are off for it, and its results, which are all None, are kept
        for a second. If RQ forks a process for each job, the queue is opened and closed in that
        process.
        """

        def run_job(**message: Any) -> None:
            if _is_in_work_horse():
                _run_in_work_horse(jobs, self.namespace, message)
            else:
                run_message_from_thread(jobs, self.namespace, message)

        self._registered = run_job
        return run_job

    def _message(self, job: Job) -> EnqueueData:
        chosen = self.options.get(job.type, RQOptions())
        return Queue.prepare_data(  # pyright: ignore[reportUnknownMemberType]  # dicts of anything
            self._task,
            kwargs=dict(self.message_of(job)),
            # A worker skips a message that was sent again meanwhile, and forks no process for it.
            job_id=f"{job.id}-{job.attempt}",
            timeout=_NO_TIME_LIMIT,
            result_ttl=_RESULT_TTL_SECONDS,
            failure_ttl=_FAILURE_TTL_SECONDS,
            at_front=chosen.at_front,
        )


def _is_in_work_horse() -> bool:
    """Return whether RQ forked this process for the current job, and ends it by `os._exit`."""
    job = get_current_job()
    return job is not None and os.environ.get("RQ_JOB_ID") == job.id


def _run_in_work_horse(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    portal = portal_for(jobs)
    # Until the queue is open, SIGTERM may end the process. `run_message_from_thread` logs an error.
    with suppress(AsyncJobsError):
        portal.start()
    with _closed_by_sigterm(portal):
        run_message_from_thread(jobs, namespace, message)
    _close(portal)


@contextmanager
def _closed_by_sigterm(portal: Portal) -> Generator[None]:
    """Give the job back at SIGTERM, if a service manager sends it to all processes, not RQ's alone.

    A worker class that handles SIGTERM itself is left unchanged.
    """
    closing: list[Thread] = []

    def close_in_thread(_number: int, _frame: FrameType | None) -> None:
        # The interrupted code may be waiting for the queue, so another thread closes it.
        closing.append(Thread(target=_close, args=(portal,), name="asyncjobs stop"))
        closing[-1].start()

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, close_in_thread)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for thread in closing:
            thread.join()


def _close(portal: Portal) -> None:
    try:
        portal.close()
    except AsyncJobsError as error:
        log.warning("The queue was not closed cleanly: %s", error)


def _check_importable(name: str, registered: Callable[..., None] | None) -> None:
    """Raise `ConfigurationError` if RQ's workers would not find the task."""
    module, _, function = name.rpartition(".")
    if not module or module == "__main__":
        reason = "the name must have a module and a function, such as app.jobs.run_job"
    elif module in sys.modules:
        found = getattr(sys.modules[module], function, None)
        if found is not None and registered in {None, unwrap(found)}:
            return
        reason = f"{function} = dispatcher.register_task(jobs) is missing in {module}"
    elif registered is None or _is_there(module):
        return  # this process runs no jobs, or has the module under another name
    else:
        reason = f"there is no module {module}"
    raise ConfigurationError(f"RQ's workers cannot import the task {name!r}: {reason}.")


def _is_there(module: str) -> bool:
    with suppress(ImportError, ValueError):
        return find_spec(module) is not None
    return False
