"""The export on FastAPI with a React page: `uvicorn --app-dir examples react_app:app`.

The page is at http://127.0.0.1:8000/react/ and loads React from a CDN. A cookie identifies each
visitor, so visitors see only their own exports; your application has users instead.
"""

import secrets
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, mount
from exports import ExportRequest, export, jobs

PAGE = Path(__file__).parent / "react"

app = FastAPI(title="Exports")


def visitor(request: Request) -> str | None:
    """Return the owner of jobs: the routes below `/api/jobs` show only the visitor's own."""
    return request.cookies.get("visitor")


mount(app, jobs, prefix="/api/jobs", identify=visitor)


@app.post("/api/exports", status_code=202, response_model=AcceptedDocument)
async def create_export(cmd: ExportRequest, accept: Accept) -> Response:
    """Submit an export."""
    return await accept(export, cmd)


@app.get("/react/", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    """Return the page, with a cookie for a new visitor."""
    response = FileResponse(PAGE / "index.html")
    if visitor(request) is None:
        response.set_cookie("visitor", secrets.token_urlsafe(), httponly=True, samesite="lax")
    return response


app.mount("/react", StaticFiles(directory=PAGE))
