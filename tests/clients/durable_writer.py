"""The write half of Durable Streams, for tests only: each stream is the output of one job.

PUT, POST and DELETE are commands to the handler of the job, which emits or ends. GET and HEAD go to
the real routes. Only the media type of an answer is replaced: a writer may choose any, and output
has three.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asyncjobs import AsyncJobs, JobContext, JobId, Policy
from asyncjobs.adapters.starlette import mount
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.http.mounts import MountOptions
from asyncjobs.stores.memory import MemoryStore

Message = MutableMapping[str, Any]

_KINDS = {"json": Any, "text": str, "bytes": bytes}
_ENDLESS = Policy(timeout=None)
_LONG_POLL = timedelta(seconds=1.5)


@dataclass
class Written:
    """A stream that was created; `commands` are items to emit, or None to end the job."""

    media_type: str
    kind: str
    job_id: JobId
    commands: asyncio.Queue[tuple[Sequence[Any] | None, asyncio.Future[None]]]
    last_seq: str = ""
    closed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def command(self, items: Sequence[Any] | None) -> None:
        done = asyncio.get_running_loop().create_future()
        await self.commands.put((items, done))
        await done

    def items(self, body: bytes) -> list[Any]:
        """Return the items of a request; raise `ValueError`."""
        if self.kind == "json":
            is_list = body.lstrip().startswith(b"[")
            values: list[Any] = json.loads(body if is_list else b"[%b]" % body)
            return values
        return [body.decode() if self.kind == "text" else body]


class WriterApp:
    """An ASGI application: the write half of the protocol, and the real routes."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self.jobs = AsyncJobs(self._store, dispatcher=LocalDispatcher(concurrency=10_000))
        self._streams: dict[str, Written] = {}
        self._commands: dict[str, asyncio.Queue[Any]] = {}
        for name, kind in _KINDS.items():
            self.jobs.handler(name, policy=_ENDLESS, output=kind)(self._emit)
        routes = [Route("/v1/{path:path}", self._write, methods=["PUT", "POST", "DELETE"])]
        cors = Middleware(CORSMiddleware, allow_origins=["*"], allow_headers=["*"])
        self._app = Starlette(routes=routes, lifespan=self._lifespan, middleware=[cors])
        mount(self._app, self.jobs, options=MountOptions(max_wait=_LONG_POLL))
        inside = httpx2.ASGITransport(app=self._app)
        self._client = httpx2.AsyncClient(transport=inside, base_url="http://inside")

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncGenerator[None]:
        yield
        # Handlers that do not end by themselves are cancelled when the queue closes.
        for written in self._streams.values():
            if not written.closed:
                written.commands.put_nowait((None, asyncio.Future()))

    async def _emit(self, key: str, job: JobContext) -> None:
        commands = self._commands[key]
        while True:
            items, done = await commands.get()
            for item in items or ():
                await job.emit(item)
            done.set_result(None)
            if items is None:
                return

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in {"PUT", "POST", "DELETE"}:
            await self._app(scope, receive, send)
            return
        found = self._streams.get(scope["path"])
        path = f"/api/jobs/{'unknown' if found is None else found.job_id}/output"

        async def sent(message: Message) -> None:
            if found is not None and message["type"] == "http.response.start":
                headers = [
                    (name, found.media_type.encode())
                    if name == b"content-type"
                    and message["status"] == 200
                    and b"event" not in value
                    else (name, value)
                    for name, value in message["headers"]
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, sent)

    async def _write(self, request: Request) -> Response:
        path, body = request.url.path, await request.body()
        if request.method == "PUT":
            return await self._put(request, body)
        written = self._streams.get(path)
        if written is None:
            return _answer(404)
        async with written.lock:
            if request.method == "DELETE":
                await self._close(written)
                await self._store.delete([written.job_id])
                self._streams.pop(path, None)
                return _answer(204)
            return await self._post(request, written, body)

    async def _put(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        media_type = request.headers.get("content-type", "application/octet-stream")
        closes = request.headers.get("stream-closed") == "true"
        written = self._streams.get(path)
        if written is not None:
            same = written.media_type.lower() == media_type.lower() and written.closed == closes
            return await self._described(200 if same else 409, written)
        kind = "text" if media_type.lower().startswith("text/") else "bytes"
        if media_type.lower().startswith("application/json"):
            kind = "json"
        commands: asyncio.Queue[Any] = asyncio.Queue()
        self._commands[path] = commands
        job = await self.jobs.enqueue(kind, path)
        written = self._streams[path] = Written(media_type, kind, job.id, commands)
        if body:
            await written.command(written.items(body))
        if closes:
            await self._close(written)
        return await self._described(201, written, ("Location", str(request.url)))

    async def _post(self, request: Request, written: Written, body: bytes) -> Response:
        closes = request.headers.get("stream-closed") == "true"
        media_type = request.headers.get("content-type")
        seq = request.headers.get("stream-seq")
        if not body:
            if closes:
                await self._close(written)
            return await self._described(204 if closes else 400, written)
        if written.closed:
            return await self._described(409, written)
        refused = _refused(written, media_type, seq)
        if refused is not None:
            return _answer(refused)
        try:
            items = written.items(body)
        except ValueError:
            items = []
        if not items:
            return _answer(400)
        written.last_seq = seq or written.last_seq
        await written.command(items)
        if closes:
            await self._close(written)
        return await self._described(204, written)

    async def _close(self, written: Written) -> None:
        if not written.closed:
            written.closed = True
            await written.command(None)
            await self.jobs.wait(written.job_id)

    async def _described(
        self, status: int, written: Written, *headers: tuple[str, str]
    ) -> Response:
        end = await self._client.head(f"/api/jobs/{written.job_id}/output")
        names = [name for name in ("Stream-Next-Offset", "Stream-Closed") if name in end.headers]
        copied = [(name, end.headers[name]) for name in names]
        return _answer(status, *copied, ("Content-Type", written.media_type), *headers)


def _refused(written: Written, media_type: str | None, seq: str | None) -> int | None:
    """Return the status of a refusal of an append, if it is refused."""
    if media_type is None:
        return 400
    same = media_type.lower().partition(";")[0] == written.media_type.lower().partition(";")[0]
    return None if same and (seq is None or seq > written.last_seq) else 409


def _answer(status: int, *headers: tuple[str, str]) -> Response:
    return Response(
        status_code=status, headers={"X-Content-Type-Options": "nosniff", **dict(headers)}
    )
