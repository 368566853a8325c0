"""The export on FastAPI: `uvicorn --app-dir examples fastapi_app:app`."""

from fastapi import FastAPI
from fastapi.responses import Response

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from exports import ExportRequest, export, jobs

app = FastAPI(title="Exports")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Submit an export."""
    return await accept(export, cmd)
