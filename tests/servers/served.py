"""The applications that the tests of this folder run in other processes."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from datetime import timedelta
from typing import Any

import anyio
import flask
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from asyncjobs import AsyncJobs, JobContext, MountOptions, Settings
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette

jobs = AsyncJobs(
    os.environ["JOBS"],
    settings=Settings(
        lease=float(os.environ.get("LEASE_SECONDS", "2")),
        redelivery=timedelta(seconds=1),
        sweep_interval=timedelta(seconds=0.2),
        poll_interval=timedelta(seconds=0.2),
        progress_interval=timedelta(seconds=0.05),
        grace=timedelta(seconds=1.5),
    ),
)


class Nap(BaseModel):
    seconds: float = 0
    #: Only the first attempt is slow.
    once: bool = False


class Waking(BaseModel):
    """A result that is unique per run of a job."""

    pid: int
    nonce: str


def seconds(nap: Nap, job: JobContext) -> float:
    return 0 if nap.once and job.attempt > 1 else nap.seconds


@jobs.handler("nap")
async def nap(cmd: Nap, job: JobContext) -> Waking:
    ends = time.monotonic() + seconds(cmd, job)
    while (left := ends - time.monotonic()) > 0:
        await job.progress(50)
        await anyio.sleep(min(left, 0.02))
    # A thread pool of the standard library, which refuses work at interpreter shutdown.
    nonce = await asyncio.to_thread(lambda: uuid.uuid4().hex)
    return Waking(pid=os.getpid(), nonce=nonce)


@jobs.handler("doze")
def doze(cmd: Nap, job: JobContext) -> Waking:
    ends = time.monotonic() + seconds(cmd, job)
    while (left := ends - time.monotonic()) > 0:
        job.progress(50)
        time.sleep(min(left, 0.02))
    return Waking(pid=os.getpid(), nonce=uuid.uuid4().hex)


# No worker serves this type: clients can follow it for any time.
outside = jobs.external("outside", payload=Nap, result=str)


def followers() -> str:
    """Count the clients that get changes."""
    return str(jobs.watchers)


def post_worker_init(worker: Any) -> None:
    """Open the queue in the main thread of one of gunicorn's workers, which receives signals."""
    on_flask.portal_of(jobs, worker.wsgi).start()


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)
    on_flask.mount(app, jobs)
    app.add_url_rule("/outside", "outside", lambda: on_flask.accept(outside), methods=["POST"])
    app.add_url_rule("/followers", "followers", followers)
    app.add_url_rule("/nap", "nap", lambda: on_flask.accept(nap), methods=["POST"])
    app.add_url_rule("/doze", "doze", lambda: on_flask.accept(doze), methods=["POST"])
    app.add_url_rule("/", "pid", lambda: str(os.getpid()))
    return app


def flask_app_used_before_the_fork(*, closed: bool) -> flask.Flask:
    app = flask_app()
    portal = on_flask.portal_of(jobs, app)
    done = portal.call(jobs.enqueue, nap, Nap())
    portal.call(jobs.wait, done.id)
    if closed:
        portal.close()
    return app


def asgi_app() -> Starlette:
    async def begin_nap(request: Request) -> Response:
        return await on_starlette.accept(request, nap)

    async def begin_doze(request: Request) -> Response:
        return await on_starlette.accept(request, doze)

    async def begin_outside(request: Request) -> Response:
        return await on_starlette.accept(request, outside)

    async def pid(_: Request) -> Response:
        return Response(str(os.getpid()))

    async def count_followers(_: Request) -> Response:
        return Response(followers())

    app = Starlette()
    app.add_route("/outside", begin_outside, methods=["POST"])
    app.add_route("/followers", count_followers)
    app.add_route("/nap", begin_nap, methods=["POST"])
    app.add_route("/doze", begin_doze, methods=["POST"])
    app.add_route("/", pid)
    # A held request outlasts a test's timeout unless the shutdown ends it.
    on_starlette.mount(app, jobs, options=MountOptions(max_wait=600))
    return app
