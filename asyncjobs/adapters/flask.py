"""Flask: `mount(app, jobs)`, and `accept(handler, payload)` in a route."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import flask
from flask import Flask

from asyncjobs.errors import AsyncJobsError, ConfigurationError, StoreError
from asyncjobs.http.endpoints import Body, Endpoints, MountOptions, Submit, find_mount
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.pacing import Pacing
from asyncjobs.http.problems import problem_of
from asyncjobs.portal import Portal, portal_for
from asyncjobs.queue import AsyncJobs
from asyncjobs.registry import JobType
from asyncjobs.submission import EnqueueOptions

__all__ = ["accept", "mount", "portal_of"]

log = logging.getLogger("asyncjobs")

P = TypeVar("P")

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(frozen=True)
class _Mount:
    endpoints: Endpoints
    portal: Portal


def mount(
    app: Flask,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    pacing: Pacing | None = None,
) -> None:
    """Serve the status monitor below `prefix`.

    The queue is opened by the first request of each process, never before a server forks its
    workers; see `portal_of` to open it earlier. Errors of this library that a route of the app
    lets through become problem documents.
    """
    mounted = _Mount(
        Endpoints(jobs, MountOptions(prefix, base_url, pacing or Pacing())), portal_for(jobs)
    )
    _mounts_of(app).append(mounted)

    def monitor(path: str) -> flask.Response:
        asked = _request(path)
        return _response(mounted.portal.call(mounted.endpoints.handle, asked))

    app.add_url_rule(
        f"{prefix}/<path:path>",
        endpoint=f"asyncjobs:{prefix}",
        view_func=monitor,
        methods=_METHODS,
        provide_automatic_options=False,
    )
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

    What is wrong with the request becomes a problem document.
    """
    mounts = _mounts_of(flask.current_app)
    endpoints = find_mount([one.endpoints for one in mounts], handler)
    body = b""
    if isinstance(payload, Body):
        body = _read_at_most(handler.policy.max_payload_bytes)
    submit = Submit(user_id, options)
    answer = portal_of(endpoints.jobs).call(
        endpoints.accept, _request("", body), handler, payload, submit
    )
    return _response(answer)


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
    )


def _read_at_most(limit: int) -> bytes:
    """Read a body, but not far beyond the limit: what comes after it is left unread."""
    body = bytearray()
    while len(body) <= limit and (chunk := flask.request.stream.read(limit + 1 - len(body))):
        body += chunk
    # What the app has read before is gone from the stream, but Flask remembers it.
    return bytes(body) or flask.request.get_data()


def _response(response: Response) -> flask.Response:
    return flask.Response(response.body, int(response.status), list(response.headers))


def _answer_error(error: AsyncJobsError) -> flask.Response:
    answer = problem_of(error)
    if answer is None:
        raise error
    return _response(answer)
