"""A job's documents over an ASGI WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing, suppress
from typing import Any

import anyio

from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request
from asyncjobs.http.streams import Close

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def talk(endpoints: Endpoints, request: Request, receive: Receive, send: Send) -> None:
    """Accept a WebSocket, send what there is to tell, and close it; or refuse it."""
    await receive()  # "websocket.connect", which is all that can come first
    if endpoints.refuse_socket(request) is not None:
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        return
    await send({"type": "websocket.accept"})
    async with aclosing(endpoints.follow(request)) as sayings, anyio.create_task_group() as tasks:
        tasks.start_soon(until, "websocket.disconnect", receive, tasks.cancel_scope)
        await _say(sayings, send)
        tasks.cancel_scope.cancel()


async def _say(sayings: AsyncGenerator[bytes | Close | None], send: Send) -> None:
    with suppress(OSError):  # what `send` raises where the client has gone (ASGI 2.4)
        async for saying in sayings:
            if isinstance(saying, Close):
                end = {"type": "websocket.close", "code": saying.code, "reason": saying.reason}
                await send(end)
            elif saying is not None:
                await send({"type": "websocket.send", "text": saying.decode()})


async def until(kind: str, receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when a message of that kind comes; others are no reason to."""
    while (await receive())["type"] != kind:
        pass
    scope.cancel()
