"""The export of `exports.py`, run by Celery's workers.

An existing Celery app keeps its broker and its workers. This module adds a dispatcher and
registers the task that runs jobs.
"""

import os

from celery import Celery

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.celery import CeleryDispatcher
from exports import FOLDER, export

REDIS = os.environ.get("EXPORTS_REDIS", "redis://localhost:6379")

celery_app = Celery("exports", broker=f"{REDIS}/0")
# A worker fetches a job only when it can start it, so jobs do not wait behind a long one.
celery_app.conf.worker_prefetch_multiplier = 1

dispatcher = CeleryDispatcher(celery_app)
# The workers write the files and the web process reads them, so they need the same folder.
store = os.environ.get("EXPORTS_STORE", f"{REDIS}/1")
jobs = AsyncJobs(store, dispatcher=dispatcher, files=FOLDER)
jobs.registry.add(export)
dispatcher.register_task(jobs)
