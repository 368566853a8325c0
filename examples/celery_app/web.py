"""The web process: returns 202 and serves the status of jobs; Celery's workers run them."""

from fastapi import FastAPI
from fastapi.responses import Response

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from celery_app.jobs import jobs
from exports import ExportRequest, export

app = FastAPI(title="Exports by Celery")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Submit an export."""
    return await accept(export, cmd)
