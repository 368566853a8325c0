"""The export on FastAPI: `uvicorn --app-dir examples fastapi_app:app`."""

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from exports import ExportRequest, export, exported, jobs

app = FastAPI(title="Exports")
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Submit an export."""
    return await accept(export, cmd)


@app.get(
    "/exports/{name}",
    response_class=FileResponse,
    responses={404: {"description": "There is no such export."}},
)
async def download(name: str) -> FileResponse:
    """Download a finished export."""
    path = exported(name)
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, filename=name)
