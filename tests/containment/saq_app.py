"""The settings of a SAQ worker that runs the handlers of `misbehaviour`."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, cast

from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.saq import SAQDispatcher

# No socket timeout: with one, Python 3.11 may miss a cancellation.
queue = RedisQueue(cast("Any", Redis).from_url(os.environ["BROKER"], socket_timeout=None))
dispatcher = SAQDispatcher(queue)
kinds = import_module("misbehaviour")
jobs = kinds.register(
    AsyncJobs(os.environ["JOBS"], dispatcher=dispatcher, settings=kinds.jobs.settings)
)
settings = dispatcher.register_task(jobs, {"concurrency": 10, "shutdown_grace_period_s": 1})
