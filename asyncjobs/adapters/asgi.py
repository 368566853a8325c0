"""ASGI without a framework: the status monitor as an application to mount anywhere.

    monitor = StatusMonitor(jobs, prefix="/api/jobs")

Mount it under the same prefix in any ASGI framework, and enter `monitor.running()` in the lifespan
of the application. The Starlette and FastAPI adapters do both. Without a lifespan, the queue opens
at the first request.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import current_token

from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Chunks, Request, Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions, check_queue, mount_of, owner_of
from asyncjobs.http.requests import IncomingBody
from asyncjobs.http.streams import Close
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.waiting import running_asyncio_loop
from asyncjobs.runtime.host import RunHandlers
from asyncjobs.runtime.signals import told_to_stop

if TYPE_CHECKING:
    from asyncjobs.http.tokens import Tokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Returns the owner of a request, given its scope; None for an anonymous caller.
Identify = Callable[[Scope], str | Awaitable[str | None] | None]

App = TypeVar("App")

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1

_WITHOUT_BODY = frozenset({HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT})


class StatusMonitor:
    """The routes of one queue, as an ASGI application.

    With `prefix=None` the application that routes to it determines the prefix of each request.
    """

    def __init__(
        self,
        jobs: AsyncJobs,
        *,
        prefix: str | None = "/api/jobs",
        base_url: str | None = None,
        identify: Identify | None = None,
        options: MountOptions | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        check_queue(jobs, identify)
        self.endpoints = Endpoints(jobs, mount_of(prefix, base_url, identify, options, tokens))
        self._identify = identify
        self._keeper: object = None
        self._times_running = 0
        self._opening = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.talk(await self.asked(scope), receive, send)
        elif scope["type"] == "http":
            await respond(await self.answer(scope), receive, send)
        else:
            raise RuntimeError(f"The status monitor does not support ASGI scope {scope['type']!r}.")

    async def asked(self, scope: Scope) -> Request:
        """Translate a request and identify its owner; raise what `identify` raises."""
        return await self.identified(request_of(scope), scope)

    async def identified(self, asked: Request, scope: Scope) -> Request:
        """Add the owner of a request, unless a token takes its place."""
        if self._identify is None or self.endpoints.carries_token(asked):
            return asked
        return asked._replace(owner=await self.owner(scope))

    async def owner(self, scope: Scope) -> str | None:
        """Call `identify`; raise what it raises."""
        if self._identify is None:
            return None
        if inspect.iscoroutinefunction(self._identify):
            return owner_of(await self._identify(scope))
        found = await to_thread.run_sync(self._identify, scope)
        return owner_of(await found if inspect.isawaitable(found) else found)

    async def talk(self, request: Request, receive: Receive, send: Send) -> None:
        """Accept a WebSocket, send the documents of its job and close it; or refuse it."""
        await receive()  # "websocket.connect" is the only possible first message
        if self.endpoints.refuse_socket(request) is not None:
            # Closing before accepting answers HTTP 403.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        await self.ready()
        await send({"type": "websocket.accept"})
        messages = self.endpoints.follow(request)
        async with aclosing(messages), anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_at, "websocket.disconnect", receive, tasks.cancel_scope)
            await _send_documents(messages, send)
            tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def running(self, *, run_handlers: RunHandlers = True) -> AsyncGenerator[bool]:
        """Keep the queue open, opening it if needed; end all streams when the server has to stop.

        For the lifespan of an application. Yields whether the queue was opened here.
        """
        jobs, streams = self.endpoints.jobs, self.endpoints.streams
        async with AsyncExitStack() as stack:
            opened = not jobs.is_open
            if opened:
                await stack.enter_async_context(jobs.open(run_handlers=run_handlers))
            streams.begin()
            stack.callback(streams.end)
            tell = partial(from_thread.run_sync, streams.end, token=current_token())
            stack.enter_context(told_to_stop(tell))
            self._times_running += 1
            stack.callback(self._stopped)
            yield opened

    async def ready(self) -> None:
        """Open the queue for the rest of the event loop's life, unless a lifespan has opened it.

        Sub-applications have no lifespan. Raises what opening the queue raises.
        """
        if self._is_running:
            return
        async with self._opening:
            if not self._is_running:
                self._keeper = await _enter_in_background(self.running)

    @property
    def _is_running(self) -> bool:
        return self._times_running > 0 and self.endpoints.jobs.is_open

    def _stopped(self) -> None:
        self._times_running -= 1

    async def answer(self, scope: Scope) -> Response:
        """Answer a request; raise what `identify` raises, and what opening the queue raises."""
        asked = request_of(scope, self.endpoints.mount.prefix or "")
        found = self.endpoints.answer_anyone(asked)
        if found is not None:
            return found
        asked = await self.identified(asked, scope)
        if not self._is_running:
            await self.ready()
        return await self.endpoints.handle(asked)


def request_of(scope: Scope, prefix: str = "", *, owner: str | None = None) -> Request:
    """Translate a request for a path below a prefix."""
    root, below = _split(scope)
    if f"{below}/".startswith(f"{prefix}/"):
        below = below.removeprefix(prefix)
    else:
        # The framework's mount has moved the prefix to the root path.
        root = root.removesuffix(prefix)
    if scope["type"] == "websocket":
        path = below.removesuffix("/").rpartition("/")[2]
    else:
        path = below.removeprefix("/")
    return _request(scope, path, root, owner=owner)


def routed_request_of(scope: Scope, path: str, owner: str | None) -> Request:
    """Translate a request that a router has matched; the prefix is the part before `path`."""
    root, below = _split(scope)
    if below.endswith("\n") and not path.endswith("\n"):
        path += "\n"  # which the `$` of a router's pattern ignores
    prefix = below.removesuffix(path).removesuffix("/")
    return _request(scope, path, root, prefix=prefix, owner=owner)


def submission_of(
    scope: Scope, root: str, prefix: str, body: IncomingBody, owner: str | None
) -> Request:
    """Translate a request that submits to the routes below another root and prefix."""
    request = _request(scope, "", root, prefix=prefix, body=body.content, owner=owner)
    # RFC 9113 section 8.2.2: HTTP/2 has no `Connection`, and needs none.
    closes = body.is_unfinished and scope.get("http_version", "1.1").startswith("1")
    return request._replace(closes=True) if closes else request


@cache  # the names are few, and all are ours
def _wire_name(name: str) -> bytes:
    return name.lower().encode()


def respond(response: Response, receive: Receive, send: Send) -> Awaitable[None]:
    """Send a response; a stream until the client disconnects."""
    return send_as(response, wire_headers(response), receive, send)


def wire_headers(response: Response) -> list[tuple[bytes, bytes]]:
    """Return the headers to send, with the length of a complete body."""
    headers = [(_wire_name(name), value.encode()) for name, value in response.headers]
    # RFC 9110 section 8.6: no Content-Length for a status without a body.
    if response.status not in _WITHOUT_BODY and not isinstance(response, StreamingResponse):
        headers.append((b"content-length", b"%d" % len(response.body)))
    return headers


def send_as(
    response: Response, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send
) -> Awaitable[None]:
    """Send a response with headers in the given form."""
    start = {"type": "http.response.start", "status": int(response.status), "headers": headers}
    if not isinstance(response, StreamingResponse):
        return _send_whole(start, response.body, send)
    if running_asyncio_loop() is None:
        return _send_in_group(start, response.chunks, receive, send)
    return _send_chunks(start, response.chunks, receive, send)


async def _send_whole(start: Message, body: bytes, send: Send) -> None:
    with suppress(OSError):  # raised by `send` after a disconnect (ASGI 2.4)
        await send(start)
        await send({"type": "http.response.body", "body": body})


async def _send_in_group(start: Message, chunks: Chunks, receive: Receive, send: Send) -> None:
    """Send a stream until the client disconnects, on any event loop."""
    async with aclosing(chunks), anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_at, "http.disconnect", receive, tasks.cancel_scope)
        with suppress(OSError):  # raised by `send` after a disconnect (ASGI 2.4)
            await send(start)
            async for chunk in chunks:
                await send(_part(chunk))
            await send(_part(b"", more=False))
        tasks.cancel_scope.cancel()


async def _send_chunks(start: Message, chunks: Chunks, receive: Receive, send: Send) -> None:
    """Do the same on asyncio without the overhead of a task group, for thousands of streams."""
    disconnect = _Disconnect(receive)
    try:
        await send(start)
        del start
        # Not `async for`: each of its steps makes a coroutine.
        with suppress(StopAsyncIteration):
            while True:
                chunk = chunks.take()
                if chunk is None:
                    await chunks.wait()
                else:
                    await send(_part(chunk))
        await send(_part(b"", more=False))
    except OSError:  # raised by `send` after a disconnect (ASGI 2.4)
        pass
    except asyncio.CancelledError:
        if not disconnect.is_cause():
            raise
    finally:
        try:
            await disconnect.close()
        finally:
            await chunks.aclose()


def _part(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class _Disconnect:
    """Cancels the task that creates it when the client disconnects, like `asyncio.timeout`."""

    __slots__ = ("_before", "_cancelled", "_listening", "_task")

    def __init__(self, receive: Receive) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()
        self._cancelled = False
        loop = asyncio.get_running_loop()
        self._listening = loop.create_task(self._listen(receive), name="asyncjobs disconnect")

    async def _listen(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            if self._task is not None:
                self._cancelled = self._task.cancel()

    def is_cause(self) -> bool:
        """Return whether a cancellation of the task has only this cause; if so, it is undone."""
        task = self._task
        return self._cancelled and task is not None and task.uncancel() <= self._before

    async def close(self) -> None:
        """Cancel nothing from now on; raise the error of `receive`, if any."""
        self._task = None
        if self._listening.cancel():
            await asyncio.wait([self._listening])
        if not self._listening.cancelled():
            self._listening.result()


def joined_lifespan(
    lifespan: Callable[[App], AbstractAsyncContextManager[Any]], monitor: StatusMonitor
) -> Callable[[App], AbstractAsyncContextManager[Any]]:
    """Keep the queue open around an application's own lifespan; handlers run inside it.

    Handlers can use what the application opens, and the application can submit while it starts and
    stops.
    """
    jobs = monitor.endpoints.jobs

    @asynccontextmanager
    async def joined(app: App) -> AsyncGenerator[Any]:
        async with monitor.running(run_handlers="later") as opened, lifespan(app) as state:
            if not opened:  # the opener of the queue decides when its handlers run
                yield state
                return
            await jobs.start_handlers()
            try:
                yield state
            finally:
                await jobs.drain()

    return joined


async def _enter_in_background(make: Callable[[], AbstractAsyncContextManager[Any]]) -> object:
    """Enter a context in a separate task, which lives as long as the event loop.

    The task of the request would not do: it ends, and with it the cancel scopes that it has
    entered. Returns the task, which the caller must keep; raises what entering raises.
    """
    entered = anyio.Event()
    failures: list[Exception] = []

    async def keep() -> None:
        try:
            async with make():
                entered.set()
                await anyio.sleep_forever()
        except Exception as error:
            if entered.is_set():
                raise
            failures.append(error)
            entered.set()

    task = _spawn(keep)
    await entered.wait()
    if failures:
        raise failures[0]
    return task


def _spawn(function: Callable[[], Any]) -> object:
    # anyio starts tasks only in task groups, which end with the task that opened them.
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # noqa: PLC0415  # type: ignore[import-untyped,unused-ignore]

        return trio.lowlevel.spawn_system_task(function)
    return loop.create_task(function(), name="asyncjobs")


async def _send_documents(messages: AsyncGenerator[bytes | Close | None], send: Send) -> None:
    with suppress(OSError):  # raised by `send` after a disconnect (ASGI 2.4)
        async for message in messages:
            if isinstance(message, Close):
                end = {"type": "websocket.close", "code": message.code, "reason": message.reason}
                await send(end)
            elif message is not None:
                await send({"type": "websocket.send", "text": message.decode()})


async def _cancel_at(kind: str, receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when a message of that kind arrives; other messages are ignored."""
    while (await receive())["type"] != kind:
        pass
    scope.cancel()


def _split(scope: Scope) -> tuple[str, str]:
    """Return the root path and the path below it, whether or not the server has removed it."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if root and f"{path}/".startswith(f"{root}/"):
        path = path.removeprefix(root)
    return root, path


def _request(
    scope: Scope,
    path: str,
    root: str,
    *,
    prefix: str = "",
    body: bytes = b"",
    owner: str | None = None,
) -> Request:
    return Request(
        scope.get("method", "GET"),
        path,
        root,
        prefix,
        _headers(scope),
        body,
        scope.get("query_string", b"").decode("latin-1"),
        scope.get("scheme", "http"),
        owner,
    )


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
