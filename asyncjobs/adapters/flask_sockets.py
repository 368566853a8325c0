"""A job's documents over a WebSocket in Flask, by flask-sock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import flask
from flask import Blueprint, Flask
from flask_sock import Sock  # type: ignore[import-untyped]
from wsproto.utilities import RemoteProtocolError

from asyncjobs.adapters.flask_responses import sent
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request
from asyncjobs.http.streams import Close
from asyncjobs.portal import Portal

# How long a client may take to answer that it is being left.
_LAST_WORD = 1.0


def add_sockets(
    app: Flask, endpoints: Endpoints, portal: Portal, asked: Callable[[str], Request]
) -> None:
    """Serve WebSockets; each keeps a thread of the server for as long as it is open."""
    prefix = endpoints.mount.sockets
    # A blueprint of its own, so that a handshake can be refused before it is accepted.
    sockets = Blueprint(f"asyncjobs_sockets{prefix.replace('/', ':').replace('.', ':')}", __name__)

    @sockets.before_request
    def check() -> flask.Response | None:
        flask.g.asyncjobs_request = asked(flask.request.path.rpartition("/")[2])
        refusal = endpoints.refuse_socket(flask.g.asyncjobs_request)
        if refusal is None:
            return None
        return sent(refusal)

    @sockets.errorhandler(RemoteProtocolError)
    @sockets.errorhandler(UnicodeError)  # of a Host that is no name
    def refuse(_: Exception) -> flask.Response:
        return flask.Response("This is no handshake of a WebSocket.\n", HTTPStatus.BAD_REQUEST)

    def follow(socket: Any, job_id: str) -> None:  # noqa: ARG001  # the rule's own name
        _say(socket, endpoints.follow(flask.g.asyncjobs_request), portal)

    sock: Any = Sock()
    sock.route(f"{prefix}/<job_id>", bp=sockets)(follow)
    app.register_blueprint(sockets)


def _say(socket: Any, sayings: AsyncGenerator[bytes | Close | None], portal: Portal) -> None:
    loop = portal.start()
    try:
        # In quiet times, too, something comes now and then: a client that has gone is not kept.
        while socket.connected:
            saying = loop.call(sayings.__anext__)
            if isinstance(saying, Close):
                socket.close(saying.code, saying.reason)
                # Werkzeug's server would take the client's own close frame for a body, and wait
                # for the end of it.
                socket.thread.join(_LAST_WORD)
            elif saying is not None:
                socket.send(saying.decode())
    finally:
        with suppress(RuntimeError):  # the queue was closed, and what it says with it
            loop.call(sayings.aclose)
