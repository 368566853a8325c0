"""The RQ app of the tests' workers."""

from __future__ import annotations

import os
from typing import Any, cast

from redis import Redis

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.rq import RQDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register
from tests.engines.apps.handlers import register_more

REDIS_URL = os.environ["BROKER"]  # RQ's workers read this variable, too

connection = cast("Any", Redis).from_url(REDIS_URL)
dispatcher = RQDispatcher(connection, "rq_worker.run_job")
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
register_more(jobs)
run_job = dispatcher.register_task(jobs)


def plain() -> str:
    return "kept"
