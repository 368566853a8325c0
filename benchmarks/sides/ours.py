"""asyncjobs: with a separate worker process (the command's own), and with jobs run in place."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncjobs import AsyncJobs, Dispatcher, JobContext, JobStatus
from asyncjobs.dispatchers.local import LocalDispatcher
from benchmarks.places import Place
from benchmarks.sides.side import CONCURRENCY, PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

_VARIABLE = "BENCHMARK_STORE"


def with_handler(jobs: AsyncJobs) -> AsyncJobs:
    """Register the one handler of a queue."""

    @jobs.handler("noop")
    async def noop(_payload: dict[str, int], _job: JobContext) -> int:
        stamp(time.monotonic())
        return RESULT

    return jobs


class OnQueue(Side):
    """Jobs of an asyncjobs queue, on any dispatcher."""

    jobs: AsyncJobs

    def opened(self) -> AbstractAsyncContextManager[object]:
        return self.jobs

    async def submit(self) -> Any:
        return (await self.jobs.enqueue("noop", PAYLOAD)).id

    async def submit_many(self, count: int) -> Sequence[Any]:
        return [made.id for made in await self.jobs.enqueue_many("noop", [PAYLOAD] * count)]

    async def ended(self, ticket: Any) -> bool:
        job = await self.jobs.get(ticket)
        return job is not None and job.status is JobStatus.COMPLETED and job.result == RESULT


class Ours(OnQueue):
    """An asyncjobs store; jobs run `local` in this process, or in a `worker`."""

    def __init__(self, place: Place, store: str, dispatcher: str) -> None:
        super().__init__(place)
        self._url = place.store(store)
        self._apart = dispatcher == "worker"
        run: str | Dispatcher = "worker" if self._apart else LocalDispatcher(CONCURRENCY)
        self.jobs = with_handler(AsyncJobs(self._url, dispatcher=run))

    def worker(self) -> Sequence[str]:
        if not self._apart:
            return ()
        os.environ[_VARIABLE] = self._url  # for the child process
        target, concurrency = "benchmarks.sides.ours:jobs", f"--concurrency={CONCURRENCY}"
        return ("-m", "asyncjobs", "worker", target, concurrency, "--log-level=warning")


#: The queue of the worker process.
jobs = with_handler(AsyncJobs(os.environ.get(_VARIABLE, "memory://"), dispatcher="worker"))
