"""A report on FastAPI and Procrastinate, with one PostgreSQL database for both.

export DATABASE_URL=postgresql://postgres@localhost/postgres
procrastinate --app=procrastinate_app.engine schema --apply
procrastinate --app=procrastinate_app.engine worker --concurrency=10
uvicorn procrastinate_app:app

curl -i http://localhost:8000/api/reports --json '{"pages": 20}'
"""

import os

import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from procrastinate import App, PsycopgConnector
from pydantic import BaseModel, Field

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher

DATABASE = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")

engine = App(connector=PsycopgConnector(conninfo=DATABASE))
dispatcher = ProcrastinateDispatcher(engine)
jobs = AsyncJobs(DATABASE, dispatcher=dispatcher)


class ReportRequest(BaseModel):
    """How long the report shall be."""

    pages: int = Field(ge=1, le=1000)


@jobs.handler("report")
async def report(cmd: ReportRequest, job: JobContext) -> dict[str, int]:
    """Write it, page by page."""
    async for _page in job.track(range(cmd.pages), unit="pages"):
        await anyio.sleep(0.05)
    return {"pages": cmd.pages}


dispatcher.register_task(jobs)

app = FastAPI(title="Reports")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/reports", status_code=202, response_model=AcceptedDocument)
async def create_report(cmd: ReportRequest, accept: Accept) -> Response:
    """Begin a report."""
    return await accept(report, cmd)
