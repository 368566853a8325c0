"""The export on Starlette: `uvicorn --app-dir examples starlette_app:app`."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asyncjobs.adapters.starlette import accept, mount
from exports import export, jobs


async def create_export(request: Request) -> Response:
    """Submit an export; `accept` checks the body against the handler's annotation."""
    return await accept(request, export)


app = Starlette(routes=[Route("/api/exports", create_export, methods=["POST"])])
mount(app, jobs, prefix="/api/jobs")
