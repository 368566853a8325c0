"""The application whose workers are killed: handlers leave traces, and the store takes notes."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path

import anyio
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext, Policy, Retry, Settings
from asyncjobs.protocols import Store
from asyncjobs.stores import store_from_url
from tests.chaos.recording import Notes, Recorded

LEASE = timedelta(seconds=1.5)

SETTINGS = Settings(
    lease=LEASE,
    redelivery=LEASE,
    poll_interval=timedelta(seconds=0.2),
    sweep_interval=timedelta(seconds=0.3),
    progress_interval=timedelta(seconds=0.05),
    grace=timedelta(seconds=0.3),
)

#: Passes the settings of a test to the processes that it starts.
STORE, NOTES = "ASYNCJOBS_CHAOS_STORE", "ASYNCJOBS_CHAOS_NOTES"

kinds = AsyncJobs(
    "memory://",
    policy=Policy(
        max_deliveries=8, retry=Retry(max_attempts=3, initial_delay=timedelta(seconds=0.1))
    ),
)


class Errand(BaseModel):
    """How long the handler takes, and in which attempts it fails or kills its worker."""

    seconds: float = 0
    fails: int = 0
    kills: int = 0


class Trace(BaseModel):
    """A result that is unique per attempt; `worker` is the pid of the worker process."""

    worker: int
    attempt: int
    nonce: str


@kinds.handler("errand")
async def errand(what: Errand, job: JobContext) -> Trace:
    with traced(job, os.getpid()) as trace:
        await job.progress(50)
        await anyio.sleep(what.seconds)
        trouble(what, job)
    return trace


@kinds.handler("in a thread")
def in_a_thread(what: Errand, job: JobContext) -> Trace:
    with traced(job, os.getpid()) as trace:
        ends = time.monotonic() + what.seconds
        while time.monotonic() < ends:
            job.check()
            time.sleep(0.01)
        trouble(what, job)
    return trace


@kinds.handler("in a process", run_in="process")
def in_a_process(what: Errand, job: JobContext) -> Trace:
    with traced(job, os.getppid()) as trace:
        trouble(what, job)
    return trace


@kinds.handler("deaf")
async def deaf(what: Errand, job: JobContext) -> Trace:
    """Block the event loop in the first attempt."""
    with traced(job, os.getpid()) as trace:
        if job.attempt == 1:
            time.sleep(what.seconds)  # noqa: ASYNC251  # the subject of the test
    return trace


@contextmanager
def traced(job: JobContext, worker: int) -> Generator[Trace]:
    """Note the beginning of an attempt, and its end."""
    trace = Trace(worker=worker, attempt=job.attempt, nonce=uuid.uuid4().hex)
    notes().write("begin", job=job.id, **trace.model_dump())
    yield trace
    notes().write("end", job=job.id, **trace.model_dump())


def trouble(what: Errand, job: JobContext) -> None:
    if job.attempt <= what.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.attempt <= what.fails:
        raise OSError("it happens")


@cache
def notes() -> Notes:
    """Return the notes of this process; forked processes share them."""
    return Notes(Path(os.environ[NOTES]))


def queue_on(store: Store, dispatcher: str = "worker") -> AsyncJobs:
    """Make the queue of one process."""
    made = AsyncJobs(store, dispatcher=dispatcher, settings=SETTINGS)
    for kind in kinds.registry:
        made.registry.add(kind)
    return made


def counting_jobs() -> AsyncJobs:
    """Make the queue of a worker process whose store counts jobs; its calls are not recorded."""
    return queue_on(store_from_url(os.environ[STORE]))


def jobs() -> AsyncJobs:
    """Make the queue of a worker process."""
    return queue_on(Recorded(store_from_url(os.environ[STORE]), notes()))
