"""A report on FastAPI, run by Procrastinate's workers; PostgreSQL stores messages and jobs.

pip install 'asyncjobs-http[fastapi,postgres,procrastinate]' uvicorn
cd examples
procrastinate --app=procrastinate_app.engine schema --apply
uvicorn procrastinate_app:app
procrastinate --app=procrastinate_app.engine worker --concurrency=10
"""

import os

import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from procrastinate import App, PsycopgConnector
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher

DATABASE = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")

engine = App(connector=PsycopgConnector(conninfo=DATABASE))
dispatcher = ProcrastinateDispatcher(engine)
jobs = AsyncJobs(DATABASE, dispatcher=dispatcher)
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
