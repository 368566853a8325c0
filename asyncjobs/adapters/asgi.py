"""ASGI without a framework: the status monitor as an application to mount anywhere.

    monitor = StatusMonitor(jobs, prefix="/api/jobs")

Mount it under the same prefix in any ASGI framework, and enter `jobs` in that one's lifespan. The
Starlette and FastAPI adapters do both for you.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any, TypeVar

from asyncjobs.http.endpoints import Endpoints, MountOptions
from asyncjobs.http.messages import Request, Response
from asyncjobs.queue import AsyncJobs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

App = TypeVar("App")


class StatusMonitor:
    """The routes of one queue, as an ASGI application."""

    def __init__(
        self, jobs: AsyncJobs, *, prefix: str = "/api/jobs", options: MountOptions | None = None
    ) -> None:
        self.endpoints = Endpoints(jobs, options or MountOptions(prefix=prefix))

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"The status monitor answers HTTP, not {scope['type']}.")
        asked = request_of(scope)
        # Still there where nobody has routed, or where root_path is what a proxy has cut off.
        below = asked.path.removeprefix(f"{self.endpoints.options.prefix[1:]}/")
        await respond(await self.endpoints.handle(replace(asked, path=below)), send)


def request_of(scope: Scope, body: bytes = b"") -> Request:
    """Translate a request that was routed below a mount."""
    root, path = scope.get("root_path", ""), scope["path"]
    below = path.removeprefix(root) if path.startswith(root) else path
    return Request(
        method=scope["method"],
        path=below.removeprefix("/"),
        root=root,
        headers=_headers(scope),
        body=body,
    )


async def respond(response: Response, send: Send) -> None:
    """Send a response."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers]
    if response.status != HTTPStatus.NOT_MODIFIED:  # RFC 9110 section 8.6
        headers.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def joined_lifespan(
    lifespan: Callable[[App], AbstractAsyncContextManager[Any]], jobs: AsyncJobs
) -> Callable[[App], AbstractAsyncContextManager[Any]]:
    """Keep the queue open around an application's own lifespan; one that is open is left alone."""

    @asynccontextmanager
    async def joined(app: App) -> AsyncGenerator[Any]:
        if jobs.is_open:
            async with lifespan(app) as state:
                yield state
        else:
            async with jobs, lifespan(app) as state:
                yield state

    return joined


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
