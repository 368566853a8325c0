"""ASGI without a framework: the status monitor as an application to mount anywhere.

    monitor = StatusMonitor(jobs, prefix="/api/jobs")

Mount it under the same prefix in any ASGI framework, and enter `monitor.running()` in that one's
lifespan. The Starlette and FastAPI adapters do both for you.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import current_token

from asyncjobs.adapters.sockets import Receive, Send, talk, until
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount, MountOptions, owner_of
from asyncjobs.http.scripts import script
from asyncjobs.queue import AsyncJobs
from asyncjobs.runtime.signals import told_to_stop

Scope = MutableMapping[str, Any]

#: Tells from a request's scope who asks; None for nobody.
Identify = Callable[[Scope], str | Awaitable[str | None] | None]

App = TypeVar("App")


class StatusMonitor:
    """The routes of one queue, as an ASGI application."""

    def __init__(
        self,
        jobs: AsyncJobs,
        *,
        prefix: str = "/api/jobs",
        base_url: str | None = None,
        identify: Identify | None = None,
        options: MountOptions | None = None,
    ) -> None:
        mount = Mount(prefix, base_url, identify is not None, options or MountOptions())
        self.endpoints = Endpoints(jobs, mount)
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await talk(self.endpoints, await self.asked(scope), receive, send)
        elif scope["type"] == "http":
            await respond(await self._answer(scope), receive, send)
        else:
            raise RuntimeError(f"The status monitor answers no {scope['type']}.")

    async def asked(self, scope: Scope, body: bytes = b"", *, prefix: str = "") -> Request:
        """Translate a request, and find out whose it is; raises what `identify` raises."""
        return request_of(scope, prefix, body=body, owner=await self._who(scope))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keep the queue open, where it is not, and end all streams when the server is to stop."""
        jobs, streams = self.endpoints.jobs, self.endpoints.streams
        async with AsyncExitStack() as stack:
            if not jobs.is_open:
                await stack.enter_async_context(jobs)
            streams.begin()
            stack.callback(streams.end)
            tell = partial(from_thread.run_sync, streams.end, token=current_token())
            stack.enter_context(told_to_stop(tell))
            yield

    async def _answer(self, scope: Scope) -> Response:
        prefix = self.endpoints.mount.prefix
        found = script(request_of(scope, prefix))
        return found or await self.endpoints.handle(await self.asked(scope, prefix=prefix))

    async def _who(self, scope: Scope) -> str | None:
        if self._identify is None:
            return None
        if inspect.iscoroutinefunction(self._identify):
            return owner_of(await self._identify(scope))
        found = await to_thread.run_sync(self._identify, scope)
        return owner_of(await found if inspect.isawaitable(found) else found)


def request_of(
    scope: Scope, prefix: str = "", *, body: bytes = b"", owner: str | None = None
) -> Request:
    """Translate a request for something below a prefix."""
    root, path = scope.get("root_path", ""), scope["path"]
    below = path.removeprefix(root) if path.startswith(root) else path
    if f"{below}/".startswith(f"{prefix}/"):
        below = below.removeprefix(prefix)
    else:
        # Who has routed by the prefix has moved it to the root, which is that of the app before.
        root = root.removesuffix(prefix)
    return Request(
        method=scope.get("method", "GET"),
        path=below.rpartition("/")[2] if scope["type"] == "websocket" else below.removeprefix("/"),
        root=root,
        headers=_headers(scope),
        body=body,
        owner=owner,
        query=scope.get("query_string", b"").decode("latin-1"),
        scheme=scope.get("scheme", "http"),
    )


async def respond(response: Response, receive: Receive, send: Send) -> None:
    """Send a response; a stream until the client has gone."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers]
    start = {"type": "http.response.start", "status": int(response.status), "headers": headers}
    if isinstance(response, StreamingResponse):
        async with aclosing(response.chunks), anyio.create_task_group() as tasks:
            tasks.start_soon(until, "http.disconnect", receive, tasks.cancel_scope)
            with suppress(OSError):  # what `send` raises where the client has gone (ASGI 2.4)
                await send(start)
                async for chunk in response.chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()
        return
    # RFC 9110 section 8.6: not where the length would be that of what is not sent.
    if response.status not in {HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT}:
        headers.append((b"content-length", str(len(response.body)).encode()))
    await send(start)
    await send({"type": "http.response.body", "body": response.body})


def joined_lifespan(
    lifespan: Callable[[App], AbstractAsyncContextManager[Any]], monitor: StatusMonitor
) -> Callable[[App], AbstractAsyncContextManager[Any]]:
    """Keep the monitor running around an application's own lifespan."""

    @asynccontextmanager
    async def joined(app: App) -> AsyncGenerator[Any]:
        async with monitor.running(), lifespan(app) as state:
            yield state

    return joined


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
