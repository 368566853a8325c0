"""Flask: `mount(app, jobs)`, and `accept(handler, payload)` in a route."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

try:
    import flask
except ImportError as error:
    raise ImportError(
        "asyncjobs.adapters.flask needs Flask: pip install 'asyncjobs-http[flask]'"
    ) from error
from flask import Blueprint, Flask
from werkzeug.exceptions import ClientDisconnected, HTTPException
from werkzeug.routing import BaseConverter, PathConverter

from asyncjobs.core.handlers import JobType
from asyncjobs.core.submission import Batch, EnqueueOptions
from asyncjobs.errors import (
    AsyncJobsError,
    ConfigurationError,
    MalformedBody,
    ResourcesUnavailable,
    StoreError,
)
from asyncjobs.execution.tasks import apart
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Chunks, Request, Response, StreamingResponse, room_in
from asyncjobs.http.mounts import MountOptions, check_mounts, check_target, mount_of, owner_of
from asyncjobs.http.problems import problem_of
from asyncjobs.http.requests import IncomingBody
from asyncjobs.http.streams import Close
from asyncjobs.http.submissions import Body, Handle, Submit, find_mount
from asyncjobs.portal import Portal, portal_for
from asyncjobs.queue import AsyncJobs
from asyncjobs.records.logging import log

if TYPE_CHECKING:
    from asyncjobs.http.tokens import Tokens

__all__ = ["accept", "mount", "portal_of"]

P = TypeVar("P")
T = TypeVar("T")

#: Returns the owner of a request; None for an anonymous caller.
Identify = Callable[[flask.Request], str | Awaitable[str | None] | None]

_CHUNK_BYTES = 64 * 1024

# How long a WebSocket's client may take to answer the close frame.
_CLOSE_TIMEOUT_SECONDS = 1.0


class _PathConverter(BaseConverter):
    """Any path: unlike Werkzeug's, it may begin with a slash or contain line breaks."""

    part_isolating = False
    regex = r"[\s\S]+"
    weight = PathConverter.weight


@dataclass(frozen=True)
class _Mount:
    endpoints: Endpoints
    portal: Portal
    identify: Identify | None

    def asked(self, path: str, body: bytes = b"") -> Request:
        """Translate the current request and identify its owner."""
        return self._identified(_request(path, body))

    def answer(self, path: str) -> flask.Response:
        """Answer a request for a path below the prefix."""
        asked = _request(path)
        found = self.endpoints.answer_anyone(asked)
        found = found or self.portal.call(self.endpoints.handle, self._entered(asked))
        return _sent_by(self.portal, found)

    def asked_by_socket(self) -> Request:
        """Translate the handshake of a WebSocket and identify its owner."""
        path = flask.request.path.removesuffix("/").rpartition("/")[2]
        return self._entered(_request(path))

    def _entered(self, asked: Request) -> Request:
        """Identify the owner of a request, unless a token takes its place."""
        return asked if self.endpoints.carries_token(asked) else self._identified(asked)

    def _identified(self, asked: Request) -> Request:
        if self.identify is None:
            return asked
        found = self.identify(flask.request)
        if inspect.isawaitable(found):
            found = self.portal.call(_awaited, found)
        return asked._replace(owner=owner_of(found))


def mount(
    app: Flask,
    jobs: AsyncJobs,
    *,
    prefix: str = "/api/jobs",
    base_url: str | None = None,
    identify: Identify | None = None,
    options: MountOptions | None = None,
    tokens: Tokens | None = None,
) -> None:
    """Serve the status monitor below `prefix`.

    `identify` returns the owner of a request, None for an anonymous caller; it may abort with 401
    or 403. A job belongs to the owner that submitted it, and no other caller finds it. With
    `tokens`, each 202 has a token that opens its job, too. The queue is opened by the first request
    of each process, never before a server forks its workers; see `portal_of` to open it earlier. If
    a route of the app raises an error of this library, the answer is a problem document. WebSockets
    are served if flask-sock is installed. Raises `ConfigurationError` for an app that is not one,
    and for a second mount at the same prefix.
    """
    check_target(Flask, app, jobs, prefix, identify)
    where = mount_of(prefix, base_url, identify, options, tokens)
    check_mounts([one.endpoints.mount for one in _mounts_of(app)], where)
    endpoints, portal = Endpoints(jobs, where), portal_for(jobs)
    portal.keep(endpoints.streams)
    mounted = _Mount(endpoints, portal, identify)
    _mounts_of(app).append(mounted)
    endpoint = f"asyncjobs:{prefix}"
    app.endpoint(endpoint)(mounted.answer)
    app.url_map.converters["asyncjobs_path"] = _PathConverter
    # A rule without methods accepts all of them; `add_url_rule` would allow GET alone.
    app.url_map.add(app.url_rule_class(f"{prefix}/<asyncjobs_path:path>", endpoint=endpoint))
    if identify is not None:
        # The prefix itself is only read: an application may submit jobs to it.
        listing = f"asyncjobs list:{prefix}"
        app.endpoint(listing)(partial(mounted.answer, ""))
        for path in (prefix, f"{prefix}/"):
            app.url_map.add(app.url_rule_class(path, endpoint=listing, methods=["GET", "OPTIONS"]))
    if find_spec("flask_sock") is not None:
        _add_sockets(app, mounted)
    app.before_request(lambda: _open(mounted.portal))
    app.register_error_handler(AsyncJobsError, _answer_error)


@overload
def accept(job: Handle, /) -> flask.Response: ...


@overload
def accept(
    handler: JobType[P, Any],
    payload: P | Body | Batch[P] = ...,
    /,
    *,
    user_id: str | None = ...,
    options: EnqueueOptions | None = ...,
    idempotency_key: str | None = ...,
) -> flask.Response: ...


@overload
def accept(
    handler: str,
    payload: object = ...,
    /,
    *,
    user_id: str | None = ...,
    options: EnqueueOptions | None = ...,
    idempotency_key: str | None = ...,
) -> flask.Response: ...


def accept(
    handler: JobType[P, Any] | str | Handle,
    payload: P | Body | Batch[P] = Body.UNREAD,
    /,
    *,
    user_id: str | None = None,
    options: EnqueueOptions | None = None,
    idempotency_key: str | None = None,
) -> flask.Response:
    """Submit the payload, or the JSON body of the request, as a job, and answer 202.

    With `Batch(payloads)` as the payload, it submits a batch, with a job for each of them. With the
    handle of a job or a batch that exists, and nothing else, it only answers.

    The handler is given itself or by its name. The job belongs to `user_id`, or to the owner that
    the mount's `identify` returns. An `idempotency_key` takes precedence over the request's header.
    A request that cannot be accepted is answered by a problem document. Raises `ConfigurationError`
    if no queue with this handler is mounted on the app.
    """
    mounts = {one.endpoints: one for one in _mounts_of(flask.current_app)}
    endpoints = find_mount([*mounts], handler)
    limit = endpoints.body_limit(handler, payload)
    body = b"" if limit is None else _read_body(limit)
    asked = mounts[endpoints].asked("", body)
    portal, submit = mounts[endpoints].portal, Submit(user_id, options, idempotency_key)
    return _sent_by(portal, portal.call(endpoints.accept, asked, handler, payload, submit))


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


def _open(portal: Portal) -> None:
    """Open the queue at the first request of any kind: jobs may be waiting for it."""
    try:
        portal.start()
    except (StoreError, ResourcesUnavailable) as error:
        # Not a reason to refuse a request that may have nothing to do with jobs.
        log.warning("The job queue could not be opened: %s", error)


def _request(path: str, body: bytes = b"") -> Request:
    request = flask.request
    return Request(
        method=request.method,
        path=path,
        root=request.script_root,
        headers=_headers(request.environ),
        body=body,
        query=request.query_string.decode("latin-1"),
        scheme=request.environ.get("wsgi.url_scheme", "http"),
        room=room_in(threads=request.environ["wsgi.multithread"]),
    )


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a WSGI request (PEP 3333), in a fifth of the time of Werkzeug's."""
    headers: dict[str, str] = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    # These two have no prefix, and are empty if the client has not sent them.
    for variable, name in (("CONTENT_TYPE", "content-type"), ("CONTENT_LENGTH", "content-length")):
        headers.pop(name, None)
        if environ.get(variable):
            headers[name] = environ[variable]
    return headers


def _read_body(limit: int) -> bytes:
    """Read the body, keeping at most one byte more than the limit; raise `MalformedBody`."""
    body = IncomingBody(limit)
    try:
        while (chunk := flask.request.stream.read(_CHUNK_BYTES)) and body.add(chunk):
            pass
        # If the app has read the body before, the stream is empty, but Flask has cached the body.
        return body.content or flask.request.get_data()
    except ClientDisconnected as error:
        raise MalformedBody("it is incomplete") from error
    except HTTPException:  # the app's own limits
        raise
    except Exception as error:
        # For invalid chunks, servers raise their own errors, not only `OSError`.
        raise MalformedBody("it is incomplete") from error


async def _awaited(value: Awaitable[T]) -> T:
    """Await an application's code separately: its errors and open scopes would end the portal."""
    results: list[T] = []
    errors: list[Exception] = []
    async with anyio.create_task_group() as tasks:
        try:
            results.append(await apart(lambda: value, tasks, name="asyncjobs identify"))
        except Exception as error:  # noqa: BLE001  # the task group would wrap it
            errors.append(error)
    if errors:
        raise errors[0]
    return results[0]


def _answer_error(error: AsyncJobsError) -> flask.Response:
    answer = problem_of(error)
    if answer is None:
        raise error
    return _sent(answer)


def _sent(response: Response, body: Iterable[bytes] | None = None) -> flask.Response:
    """Send a response unchanged, or with another body."""
    whole = response.body if body is None else body
    answer = flask.Response(whole, int(response.status), list(response.headers))
    if response.header("Content-Type") is None:
        del answer.headers["Content-Type"]  # the default of Flask
    return answer


def _sent_by(portal: Portal, response: Response) -> flask.Response:
    """Send a response that may be a stream, which the portal's event loop makes."""
    if isinstance(response, StreamingResponse):
        return _sent(response, _chunks(response, portal))
    return _sent(response)


def _chunks(stream: StreamingResponse, portal: Portal) -> Generator[bytes]:
    """Yield the chunks that the queue's event loop makes; the server's thread waits for them."""
    loop = portal.start()
    try:
        while (chunk := loop.call(_next, stream.chunks)) is not None:
            yield chunk
    finally:
        with suppress(RuntimeError):  # the queue was closed, and the stream with it
            loop.call(stream.chunks.aclose)


async def _next(chunks: Chunks) -> bytes | None:
    return await anext(aiter(chunks), None)


def _add_sockets(app: Flask, mounted: _Mount) -> None:
    """Serve WebSockets; each occupies a thread of the server while it is open."""
    # Of the extra flask-websocket.
    from flask_sock import Sock  # type: ignore[import-untyped]  # noqa: PLC0415
    from wsproto.utilities import RemoteProtocolError  # noqa: PLC0415

    endpoints, portal = mounted.endpoints, mounted.portal
    prefix = endpoints.mount.websocket_prefix
    # A separate blueprint, so that a handshake can be refused before it is accepted.
    sockets = Blueprint(f"asyncjobs_sockets{prefix.replace('/', ':').replace('.', ':')}", __name__)

    @sockets.before_request
    def check() -> flask.Response | None:
        flask.g.asyncjobs_request = mounted.asked_by_socket()
        refusal = endpoints.refuse_socket(flask.g.asyncjobs_request)
        if refusal is None:
            return None
        return _sent(refusal)

    @sockets.errorhandler(RemoteProtocolError)
    @sockets.errorhandler(UnicodeError)  # for a Host that is not a name
    def refuse(_: Exception) -> flask.Response:
        return flask.Response("The request is not a WebSocket handshake.\n", HTTPStatus.BAD_REQUEST)

    def follow(socket: Any, job_id: str) -> None:  # noqa: ARG001  # the rule's own name
        _send_documents(socket, endpoints.follow(flask.g.asyncjobs_request), portal)

    sock: Any = Sock()
    sock.route(f"{prefix}/<job_id>/", bp=sockets, strict_slashes=False)(follow)
    app.register_blueprint(sockets)


def _send_documents(
    socket: Any, messages: AsyncGenerator[bytes | Close | None], portal: Portal
) -> None:
    loop = portal.start()
    try:
        # Quiet streams yield None from time to time, so that a lost client is noticed.
        while socket.connected:
            message = loop.call(messages.__anext__)
            if isinstance(message, Close):
                socket.close(message.code, message.reason)
                # Werkzeug's server would take the client's own close frame for a body, and wait for
                # its end.
                socket.thread.join(_CLOSE_TIMEOUT_SECONDS)
            elif message is not None:
                socket.send(message.decode())
    finally:
        with suppress(RuntimeError):  # the queue was closed, and its stream with it
            loop.call(messages.aclose)
