"""The export on Starlette: `uvicorn --app-dir examples starlette_app:app`."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from asyncjobs.adapters.starlette import accept, mount
from exports import export, exported, jobs


async def create_export(request: Request) -> Response:
    """Submit an export; `accept` checks the body against the handler's annotation."""
    return await accept(request, export)


async def download(request: Request) -> FileResponse:
    """Download a finished export."""
    path = exported(request.path_params["name"])
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, filename=path.name)


app = Starlette(
    routes=[
        Route("/api/exports", create_export, methods=["POST"]),
        Route("/exports/{name}", download),
    ]
)
mount(app, jobs, prefix="/api/jobs")
