"""The export on FastAPI, with a page on React: `uvicorn --app-dir examples react_app:app`.

The page is at http://127.0.0.1:8000/react/ and takes React from a CDN. A cookie tells the visitors
apart, so that each sees only their own exports; your application has users instead.
"""

import secrets
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from exports import ExportRequest, export, exported, jobs

PAGE = Path(__file__).parent / "react"

app = FastAPI(title="Exports")


def visitor(request: Request) -> str | None:
    """Return the owner of jobs: the routes below `/api/jobs` show a visitor no others."""
    return request.cookies.get("visitor")


mount(app, jobs, prefix="/api/jobs", identify=visitor)


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Begin an export."""
    return await accept(export, cmd)


@app.get("/exports/{name}", response_class=FileResponse)
async def download(name: str) -> FileResponse:
    """Fetch a finished export."""
    path = exported(name)
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, filename=f"characters{path.suffix}")


@app.get("/react/", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    """Show the page, and give a new visitor a cookie."""
    response = FileResponse(PAGE / "index.html")
    if visitor(request) is None:
        response.set_cookie("visitor", secrets.token_urlsafe(), httponly=True, samesite="lax")
    return response


app.mount("/react", StaticFiles(directory=PAGE))
