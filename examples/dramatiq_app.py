"""A report on FastAPI, run by dramatiq's workers; Redis or Valkey stores messages and jobs.

pip install 'asyncjobs-http[fastapi,redis,dramatiq]' uvicorn
uvicorn --app-dir examples dramatiq_app:app
dramatiq --path examples dramatiq_app
"""

import os
from typing import Any, cast

import anyio
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher

BROKER = os.environ.get("BROKER", "redis://localhost:6379/0")
STORE = os.environ.get("STORE", "redis://localhost:6379/1")

broker = cast("Any", RedisBroker)(url=BROKER)
dramatiq.set_broker(broker)

dispatcher = DramatiqDispatcher(broker)
jobs = AsyncJobs(STORE, dispatcher=dispatcher)
dispatcher.register_task(jobs)


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
