"""A Celery app as the tests' worker processes have it."""

from __future__ import annotations

import os

from celery import Celery

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.celery import CeleryDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatching_handlers import register

app = Celery("tests", broker=os.environ["BROKER"])
dispatcher = CeleryDispatcher(app)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
dispatcher.carrier(jobs)
