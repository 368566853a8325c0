"""The SAQ settings of the tests' workers."""

from __future__ import annotations

import os
from typing import Any, cast

from redis.asyncio import Redis
from saq import Queue
from saq.queue.redis import RedisQueue

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.saq import SAQDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register


async def plain(_context: object) -> str:
    return "kept"


def queue_of(url: str) -> Queue:
    """Make a queue; on Redis without a timeout: with one, Python 3.11 may miss a cancellation."""
    if url.startswith("postgres"):
        return Queue.from_url(url)
    return RedisQueue(cast("Any", Redis).from_url(url, socket_timeout=None))


queue = queue_of(os.environ["BROKER"])
dispatcher = SAQDispatcher(queue)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
own: dict[str, Any] = {"functions": [plain], "concurrency": 2}
if not os.environ["GIVE_BACK"]:
    own["shutdown_grace_period_s"] = 2  # SAQ always waits this long, even without jobs
settings = dispatcher.register_task(jobs, own)
