"""The apps of the parts `http` and `watchers`: bare routes, and the same with jobs.

uvicorn --factory benchmarks.apps:starlette
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from flask import Flask, jsonify
from flask import Response as FlaskResponse
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette

STORE = os.environ.get("BENCHMARK_STORE", "memory://")

#: About the content of a status document.
DOCUMENT = {
    "jobId": "job_8f14e45f-ceea-467f-9c3b-6f6e6b1f7a3d",
    "type": "order",
    "progress": 100,
    "status": "completed",
    "result": 1,
    "error": None,
    "createdAt": "2030-01-01T00:00:00Z",
}
ACCEPTED = {"status": "accepted", "jobId": DOCUMENT["jobId"], "statusUrl": "/jobs/…"}


class Orders:
    """A queue that runs no jobs here, with one waiting and one completed job."""

    def __init__(self) -> None:
        self.jobs = AsyncJobs(STORE, dispatcher="worker")
        self.handler = self.jobs.handler("order")(self.order)
        self.elsewhere = self.jobs.external("elsewhere", payload=dict[str, int], result=int)

    @staticmethod
    async def order(payload: dict[str, int], _job: JobContext) -> int:
        return payload["x"]

    async def ids(self) -> dict[str, str]:
        waiting = await self.jobs.enqueue(self.handler, {"x": 1})
        done = await self.jobs.enqueue(self.elsewhere, {"x": 1})
        await self.jobs.complete(done.id, 1)
        return {"waiting": waiting.id, "completed": done.id}


def starlette() -> Starlette:
    orders, app = Orders(), Starlette()
    on_starlette.mount(app, orders.jobs, prefix="/jobs")

    async def bare_get(_request: Request) -> Response:
        return JSONResponse(DOCUMENT)

    async def bare_post(request: Request) -> Response:
        await request.json()
        return JSONResponse(ACCEPTED, 202)

    async def post(request: Request) -> Response:
        return await on_starlette.accept(request, orders.handler)

    async def ids(_request: Request) -> Response:
        return JSONResponse(await orders.ids())

    app.add_route("/bare", bare_get, methods=["GET"])
    app.add_route("/bare", bare_post, methods=["POST"])
    app.add_route("/orders", post, methods=["POST"])
    app.add_route("/ids", ids, methods=["GET"])
    return app


def fastapi() -> FastAPI:
    orders, app = Orders(), FastAPI()
    on_fastapi.mount(app, orders.jobs, prefix="/jobs")

    async def bare_get() -> dict[str, Any]:
        return DOCUMENT

    async def bare_post(payload: dict[str, int]) -> dict[str, Any]:
        return {**ACCEPTED, "x": payload["x"]}

    async def post(payload: dict[str, int], accept: on_fastapi.Accept) -> Response:
        return await accept(orders.handler, payload)

    app.add_api_route("/bare", bare_get, methods=["GET"])
    app.add_api_route("/bare", bare_post, methods=["POST"], status_code=202)
    app.add_api_route("/orders", post, methods=["POST"], status_code=202, response_model=None)
    app.add_api_route("/ids", orders.ids, methods=["GET"])
    return app


def flask() -> Flask:
    orders, app = Orders(), Flask("benchmark")
    on_flask.mount(app, orders.jobs, prefix="/jobs")

    def bare_get() -> FlaskResponse:
        return jsonify(DOCUMENT)

    def bare_post() -> tuple[FlaskResponse, int]:
        flask_request.get_json()
        return jsonify(ACCEPTED), 202

    def post() -> FlaskResponse:
        return on_flask.accept(orders.handler)

    def ids() -> FlaskResponse:
        return jsonify(on_flask.portal_of(orders.jobs).call(orders.ids))

    app.add_url_rule("/bare", "bare_get", bare_get, methods=["GET"])
    app.add_url_rule("/bare", "bare_post", bare_post, methods=["POST"])
    app.add_url_rule("/orders", "post", post, methods=["POST"])
    app.add_url_rule("/ids", "ids", ids, methods=["GET"])
    return app


# Watchers: each app has `GET /events`, and `POST /change`, whose event holds the time of the call.


def event() -> str:
    return f'{{"status":"processing","progress":50,"message":"at={time.monotonic()};"}}'


def watched_jobs() -> Starlette:
    """Serve the events of one asyncjobs job."""
    jobs, app = AsyncJobs(STORE, dispatcher="worker"), Starlette()
    kind = jobs.external("watched", payload=int, result=int)
    on_starlette.mount(app, jobs, prefix="/jobs")
    made: list[Any] = []

    async def ids(_request: Request) -> Response:
        made.append((await jobs.enqueue(kind, 1)).id)
        return JSONResponse({"path": f"/jobs/{made[0]}/events"})

    async def change(request: Request) -> Response:
        percent = int(request.query_params["percent"])
        await jobs.update_progress(made[0], percent, f"at={time.monotonic()};")
        return JSONResponse({})

    app.add_route("/ids", ids, methods=["GET"])
    app.add_route("/change", change, methods=["POST"])
    return app


Queues = set["asyncio.Queue[str]"]


def _watched(app: Starlette, queues: Queues) -> Starlette:
    async def ids(_request: Request) -> Response:
        return JSONResponse({"path": "/events"})

    async def change(_request: Request) -> Response:
        sent = event()
        for queue in queues:
            queue.put_nowait(sent)
        return JSONResponse({})

    app.add_route("/ids", ids, methods=["GET"])
    app.add_route("/change", change, methods=["POST"])
    return app


async def _events(queues: Queues) -> AsyncGenerator[str]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        yield event()
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


def watched_streaming() -> Starlette:
    """Serve events with Starlette's `StreamingResponse`, and a queue per watcher."""
    app, queues = Starlette(), Queues()

    async def events(_request: Request) -> Response:
        lines = (f"data: {one}\n\n" async for one in _events(queues))
        return StreamingResponse(lines, media_type="text/event-stream")

    app.add_route("/events", events)
    return _watched(app, queues)


def watched_sse_starlette() -> Starlette:
    """Serve events with sse-starlette, and a queue per watcher."""
    library: Any = import_module("sse_starlette")
    app, queues = Starlette(), Queues()

    async def events(_request: Request) -> Response:
        lines = ({"data": one} async for one in _events(queues))
        response: Response = library.EventSourceResponse(lines, ping=3600)
        return response

    app.add_route("/events", events)
    return _watched(app, queues)


def watched_floor() -> Starlette:
    """Serve events with plain ASGI: a change writes the same bytes to each watcher."""
    app, watchers = Starlette(), set[Send]()

    class Events:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            del scope
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(_part())
            watchers.add(send)
            while (await receive())["type"] != "http.disconnect":
                pass
            watchers.discard(send)

    async def ids(_request: Request) -> Response:
        return JSONResponse({"path": "/events"})

    async def change(_request: Request) -> Response:
        part = _part()
        for send in list(watchers):
            await send(part)
        return JSONResponse({})

    app.router.routes.append(Route("/events", Events()))
    app.add_route("/ids", ids, methods=["GET"])
    app.add_route("/change", change, methods=["POST"])
    return app


def _part() -> dict[str, Any]:
    body = f"data: {event()}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}
