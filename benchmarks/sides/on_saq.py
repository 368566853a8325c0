"""SAQ with Redis, and asyncjobs on it; one worker."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from saq import Queue
from saq.job import Status

from asyncjobs.dispatchers.saq import SAQDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import CONCURRENCY, PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

# Each of the worker's jobs waits on its own connection; the driver allows a hundred.
queue = Queue.from_url(f"{PLACE.redis}?max_connections=500")
dispatcher = SAQDispatcher(queue)
jobs = queue_on(dispatcher)


async def own(_context: Any, *, payload: dict[str, int]) -> int:
    del payload
    stamp(time.monotonic())
    return RESULT


settings = dispatcher.register_task(
    jobs, {"queue": queue, "functions": [("own", own)], "concurrency": CONCURRENCY}
)


class _Worker(Side):
    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        await queue.connect()
        # The worker's sweep would abort jobs that it has fetched but not started. The first sweep
        # locks out others for the requested time.
        await queue.sweep(lock=3600)
        yield
        await queue.disconnect()

    def worker(self) -> Sequence[str]:
        return ("-m", "saq", "benchmarks.sides.on_saq.settings", "--quiet")


class SAQTasks(_Worker):
    opened = _Worker.connected

    async def submit(self) -> str:
        job = await queue.enqueue("own", payload=PAYLOAD, ttl=600)
        assert job is not None
        return job.key

    async def ended(self, ticket: str) -> bool:
        job = await queue.job(ticket)
        return job is not None and job.status is Status.COMPLETE and job.result == RESULT


class OnSAQ(_Worker, OnQueue):
    jobs = jobs

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.connected())
            await stack.enter_async_context(self.jobs)
            yield
