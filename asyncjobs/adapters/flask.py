"""Flask: `mount(app, jobs)`, and `accept(handler, payload)` in a route."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import flask
from flask import Flask

from asyncjobs.adapters.flask_responses import sent, sent_by
from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.errors import AsyncJobsError, ConfigurationError, MalformedBody, StoreError
from asyncjobs.http.endpoints import Body, Endpoints, Submit, find_mount
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount, MountOptions, owner_of
from asyncjobs.http.problems import problem_of
from asyncjobs.http.scripts import script
from asyncjobs.portal import Portal, portal_for
from asyncjobs.queue import AsyncJobs

__all__ = ["accept", "mount", "portal_of"]

log = logging.getLogger("asyncjobs")

P = TypeVar("P")
T = TypeVar("T")

#: Tells from a request who asks, as the owner of jobs; None for nobody.
Identify = Callable[[flask.Request], str | Awaitable[str | None] | None]


@dataclass(frozen=True)
class _Mount:
    endpoints: Endpoints
    portal: Portal
    identify: Identify | None

    def asked(self, path: str, body: bytes = b"") -> Request:
        """Translate the present request, and find out whose it is."""
        asked = _request(path, body)
        if self.identify is None:
            return asked
        found = self.identify(flask.request)
        if inspect.isawaitable(found):
            found = self.portal.call(_awaited, found)
        return replace(asked, owner=owner_of(found))

    def answer(self, path: str) -> flask.Response:
        """Answer a request for something below the prefix."""
        found = script(_request(path))
        found = found or self.portal.call(self.endpoints.handle, self.asked(path))
        return sent_by(self.portal, found)


def mount(
    app: Flask,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
) -> None:
    """Serve the status monitor below `prefix`.

    `identify` tells from a request who asks (None: nobody); it may abort with 401 or 403. Then jobs
    belong to who submits them, and nobody else finds them. The queue is opened by the first request
    of each process, never before a server forks its workers; see `portal_of` to open it earlier.
    Errors of this library that a route of the app lets through become problem documents.
    WebSockets are served where flask-sock is installed.
    """
    where = Mount(prefix, base_url, identify is not None, options or MountOptions())
    endpoints, portal = Endpoints(jobs, where), portal_for(jobs)
    portal.keep(endpoints.streams)
    mounted = _Mount(endpoints, portal, identify)
    _mounts_of(app).append(mounted)
    endpoint = f"asyncjobs:{prefix}"
    app.endpoint(endpoint)(mounted.answer)
    # A rule without methods has all there are; by `add_url_rule` it would have GET alone.
    app.url_map.add(app.url_rule_class(f"{prefix}/<path:path>", endpoint=endpoint))
    if identify is not None:
        # The prefix itself: only to read, since an application may well submit to it.
        app.add_url_rule(
            prefix, f"asyncjobs list:{prefix}", partial(mounted.answer, ""), methods=["GET"]
        )
    if find_spec("flask_sock") is not None:
        from asyncjobs.adapters.flask_sockets import add_sockets  # noqa: PLC0415  # an extra

        add_sockets(app, endpoints, portal, mounted.asked)
    app.before_request(lambda: _wake(mounted.portal))
    app.register_error_handler(AsyncJobsError, _answer_error)


def accept(
    handler: JobType[P, Any],
    payload: P | Body = Body.UNREAD,
    /,
    *,
    user_id: str | None = None,
    options: EnqueueOptions | None = None,
) -> flask.Response:
    """Make a job of the payload, or of the request's JSON body, and answer 202.

    It belongs to `user_id`, or to whom the mount's `identify` finds. What is wrong with the request
    becomes a problem document.
    """
    mounts = {one.endpoints: one for one in _mounts_of(flask.current_app)}
    endpoints = find_mount([*mounts], handler)
    body = b""
    if isinstance(payload, Body):
        body = _read_at_most(handler.policy.max_payload_bytes)
    asked = mounts[endpoints].asked("", body)
    portal, submit = mounts[endpoints].portal, Submit(user_id, options)
    return sent_by(portal, portal.call(endpoints.accept, asked, handler, payload, submit))


def portal_of(jobs: AsyncJobs, app: Flask | None = None) -> Portal:
    """Return the portal through which a mounted queue can be used from Flask's threads.

        job = portal_of(jobs).call(jobs.get, job_id)

    Its `start()` opens the queue, so that jobs left by an earlier process run before the first
    request comes: call it in a forked worker, as in gunicorn's `post_worker_init`.
    """
    mounts = _mounts_of(app or flask.current_app)
    found = next((one.portal for one in mounts if one.endpoints.jobs is jobs), None)
    if found is None:
        raise ConfigurationError("This AsyncJobs is not mounted on this app.")
    return found


def _mounts_of(app: Flask) -> list[_Mount]:
    mounts: list[_Mount] = app.extensions.setdefault("asyncjobs", [])
    return mounts


def _wake(portal: Portal) -> None:
    """Open the queue with whatever request comes first: jobs may be waiting for it."""
    try:
        portal.start()
    except StoreError as error:
        # No reason to refuse a request that may have nothing to do with jobs.
        log.warning("The job queue could not be opened: %s", error)


def _request(path: str, body: bytes = b"") -> Request:
    request = flask.request
    return Request(
        method=request.method,
        path=path,
        root=request.script_root,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        query=request.query_string.decode("latin-1"),
        scheme=request.environ.get("wsgi.url_scheme", "http"),
    )


def _read_at_most(limit: int) -> bytes:
    """Read a body, but not far beyond the limit: what comes after it is left unread."""
    body = bytearray()
    try:
        while len(body) <= limit and (chunk := flask.request.stream.read(limit + 1 - len(body))):
            body += chunk
    except OSError as error:  # what servers raise for chunks that are none
        raise MalformedBody("it is broken off") from error
    # What the app has read before is gone from the stream, but Flask remembers it.
    return bytes(body) or flask.request.get_data()


async def _awaited(value: Awaitable[T]) -> T:
    return await value


def _answer_error(error: AsyncJobsError) -> flask.Response:
    answer = problem_of(error)
    if answer is None:
        raise error
    return sent(answer)
