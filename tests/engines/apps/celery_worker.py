"""A Celery app as the tests' worker processes have it, with defaults that would harm jobs."""

from __future__ import annotations

import os
import time

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


@app.task(name="tests.too_long")
def too_long() -> None:
    """Be stopped by the app's time limit."""
    time.sleep(60)
