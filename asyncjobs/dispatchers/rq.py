"""Lets RQ's workers run the jobs."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import unwrap
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from rq import Queue
from rq.job import get_current_job
from rq.queue import EnqueueData

from asyncjobs.core.job import Job
from asyncjobs.dispatchers.engines.messages import run_message_from_thread
from asyncjobs.dispatchers.engines.push import PushDispatcher, leaving_none_out, queue_of
from asyncjobs.errors import AsyncJobsError, ConfigurationError
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.portal import Portal, portal_for

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

log = logging.getLogger("asyncjobs")

_DEFAULT_QUEUE = "default"
_ENDLESS = -1

# RQ fails a carrier whose process died, and would remember it for a year. We know as much.
_FAILURE_KEPT = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class RQOptions:
    """How RQ carries the jobs of one type.

    `queue` is by default the job type's `Policy.queue`. RQ has no priorities, but workers serve the
    queues that they are given one after the other. `at_front` goes before what waits in the queue.
    """

    queue: str | None = None
    at_front: bool = False


class RQDispatcher(PushDispatcher[RQOptions]):
    """Tells RQ of jobs; a worker runs them by importing what `carrier` returned.

    `connection` is the application's `redis.Redis`. `carrier` is the name by which workers import
    it: "app.jobs.carry" is `carry` in the module `app.jobs`. `serializer` is the name of the one
    that the workers are started with, if any.
    """

    def __init__(
        self,
        connection: Any,
        carrier: str,
        *,
        namespace: str = "asyncjobs",
        options: Mapping[str, RQOptions] | None = None,
        serializer: str | None = None,
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._connection = connection
        self._carrier = carrier
        self._serializer = serializer
        self._made: Callable[..., None] | None = None

    async def __aenter__(self) -> Self:
        _check(self._carrier, self._made)
        return self

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        told = partial(self._send, jobs)
        await in_new_thread(told, name=f"{self.namespace} dispatch").result()

    def carrier(self, jobs: AsyncJobs) -> Callable[..., None]:
        """Make the function that runs jobs of this queue, for the module that workers import.

        RQ's retries, results and time limits are off for it. Where RQ forks a process for each job,
        the queue is opened and closed in that process.
        """

        def run(**message: Any) -> None:
            if _in_work_horse():
                _carry_in_work_horse(jobs, self.namespace, message)
            else:
                run_message_from_thread(jobs, self.namespace, message)

        self._made = run
        return run

    def _send(self, jobs: Sequence[Job]) -> None:
        # By id, as RQ refuses a batch that names one twice.
        batches: defaultdict[str, dict[str, EnqueueData]] = defaultdict(dict)
        for job in jobs:
            chosen = self.options.get(job.type, RQOptions())
            name = chosen.queue or queue_of(job) or _DEFAULT_QUEUE
            batches[name][job.id] = self._order(job, at_front=chosen.at_front)
        with leaving_none_out() as one:
            for name, batch in batches.items():
                with one():
                    queue = Queue(name, self._connection, serializer=self._serializer)
                    queue.enqueue_many(batch.values())

    def _order(self, job: Job, *, at_front: bool) -> EnqueueData:
        return Queue.prepare_data(  # pyright: ignore[reportUnknownMemberType]  # dicts of anything
            self._carrier,
            kwargs=dict(self.message_of(job)),
            # A worker passes over what was told again meanwhile, and forks no process for it.
            job_id=f"{job.id}-{job.attempt}",
            timeout=_ENDLESS,
            result_ttl=0,
            failure_ttl=_FAILURE_KEPT,
            at_front=at_front,
        )


def _in_work_horse() -> bool:
    """Tell whether RQ has made this process for the present job, and leaves it by `os._exit`."""
    job = get_current_job()
    return job is not None and os.environ.get("RQ_JOB_ID") == job.id


def _carry_in_work_horse(jobs: AsyncJobs, namespace: str, message: Mapping[str, object]) -> None:
    portal = portal_for(jobs)
    # Until the queue is open SIGTERM ends the process, which costs nothing; an error is told below.
    with suppress(AsyncJobsError):
        portal.start()
    with _closed_by_sigterm(portal):
        run_message_from_thread(jobs, namespace, message)
    _close(portal)


@contextmanager
def _closed_by_sigterm(portal: Portal) -> Generator[None]:
    """Give the job back where SIGTERM is sent to all processes of a service, not to RQ's alone."""
    closing: list[Thread] = []

    def hear(_number: int, _frame: FrameType | None) -> None:
        # What it interrupts may be anything, and waits for what is to be closed.
        closing.append(Thread(target=_close, args=(portal,), name="asyncjobs stop"))
        closing[-1].start()

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # a worker of a kind that has something else in mind
        return
    signal.signal(signal.SIGTERM, hear)
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
        log.warning("The queue was not closed in order: %s", error)


def _check(name: str, made: Callable[..., None] | None) -> None:
    """Raise `ConfigurationError` where RQ's workers would not find the carrier."""
    module, _, function = name.rpartition(".")
    if not module or module == "__main__":
        reason = "it has to be the name of a module and of a function in it, as app.jobs.carry"
    elif module in sys.modules:
        found = getattr(sys.modules[module], function, None)
        if found is not None and made in {None, unwrap(found)}:
            return
        reason = f"{function} = dispatcher.carrier(jobs) is missing in {module}"
    elif made is None or _is_there(module):
        return  # this process runs no jobs, or has the module by another name
    else:
        reason = f"there is no module {module}"
    raise ConfigurationError(f"RQ's workers cannot import the carrier {name!r}: {reason}.")


def _is_there(module: str) -> bool:
    with suppress(ImportError, ValueError):
        return find_spec(module) is not None
    return False
