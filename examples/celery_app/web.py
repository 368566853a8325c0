"""The web process: returns 202 and serves the status of jobs; Celery's workers run them."""

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from celery_app.jobs import jobs
from exports import ExportRequest, export, exported

app = FastAPI(title="Exports by Celery")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Submit an export."""
    return await accept(export, cmd)


@app.get(
    "/exports/{name}",
    response_class=FileResponse,
    responses={404: {"description": "No such export."}},
)
async def download(name: str) -> FileResponse:
    """Download a finished export."""
    path = exported(name)
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, filename=name)
