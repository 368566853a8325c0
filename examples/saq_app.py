"""A report on FastAPI, run by SAQ's workers; Redis or Valkey stores messages and jobs.

pip install 'asyncjobs-http[fastapi,redis,saq]' uvicorn
uvicorn --app-dir examples saq_app:app
cd examples && saq saq_app.settings
"""

import os
from typing import Any, cast

import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.saq import SAQDispatcher

BROKER = os.environ.get("BROKER", "redis://localhost:6379/0")
STORE = os.environ.get("STORE", "redis://localhost:6379/1")

# SAQ's workers wait for messages by a call without end: a timeout would interrupt it.
broker = cast("Any", Redis).from_url(BROKER, socket_timeout=None)
dispatcher = SAQDispatcher(RedisQueue(broker))
jobs = AsyncJobs(STORE, dispatcher=dispatcher)
settings = dispatcher.register_task(jobs)  # for SAQ's workers


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
