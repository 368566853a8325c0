"""The Celery app of the tests' workers, with defaults that would harm jobs."""

from __future__ import annotations

import os

from celery import Celery

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.celery import CeleryDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register

app = Celery("tests", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    task_time_limit=1,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=True,
    task_store_errors_even_if_ignored=True,
    worker_prefetch_multiplier=1,
)
dispatcher = CeleryDispatcher(app)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
dispatcher.register_task(jobs)


@app.task(name="plain")
def plain() -> str:
    return "kept"
