"""A report on FastAPI, run by taskiq's workers; Redis or Valkey stores messages and jobs.

pip install 'asyncjobs-http[fastapi,redis,taskiq]' taskiq-redis uvicorn
uvicorn --app-dir examples taskiq_app:app
taskiq worker --app-dir examples taskiq_app:broker
"""

import os

import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel
from taskiq_redis import ListQueueBroker

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher

BROKER = os.environ.get("BROKER", "redis://localhost:6379/0")
STORE = os.environ.get("STORE", "redis://localhost:6379/1")

broker = ListQueueBroker(BROKER)
dispatcher = TaskiqDispatcher(broker)
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
