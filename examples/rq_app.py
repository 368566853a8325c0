"""A report on FastAPI, run by RQ's workers; Redis or Valkey stores messages and jobs.

pip install 'asyncjobs-http[fastapi,redis,rq]' uvicorn
uvicorn --app-dir examples rq_app:app
rq worker --path examples --config rq_app --worker-class rq.worker.SimpleWorker
"""

import os
from typing import Any, cast

import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel
from redis import Redis

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.rq import RQDispatcher

REDIS_URL = os.environ.get("BROKER", "redis://localhost:6379/0")  # RQ's workers read this setting
STORE = os.environ.get("STORE", "redis://localhost:6379/1")

dispatcher = RQDispatcher(cast("Any", Redis).from_url(REDIS_URL), task="rq_app.run_job")
jobs = AsyncJobs(STORE, dispatcher=dispatcher)
run_job = dispatcher.register_task(jobs)  # RQ's workers import this name


class ReportRequest(BaseModel):
    """The size of the report."""

    pages: int = 10


@jobs.handler("report", timeout=60, estimate=2)
async def report(cmd: ReportRequest, job: JobContext) -> int:
    """Write the report page by page, and report progress."""
    async for _ in job.track(range(cmd.pages), unit="pages"):
        await anyio.sleep(0.05)
    return cmd.pages


app = FastAPI(title="Reports")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/reports", status_code=202, response_model=AcceptedDocument)
async def create_report(cmd: ReportRequest, accept: Accept) -> Response:
    """Submit a report."""
    return await accept(report, cmd)
