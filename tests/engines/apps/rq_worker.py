"""An RQ app as the tests' worker processes have it."""

from __future__ import annotations

import os
from typing import Any, cast

from redis import Redis

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.rq import RQDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register
from tests.engines.apps.chores import add_chores

connection = cast("Any", Redis).from_url(os.environ["BROKER"])
dispatcher = RQDispatcher(connection, "rq_worker.run_job")
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
add_chores(jobs)
run_job = dispatcher.register_task(jobs)
