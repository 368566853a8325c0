"""Serves the browser scripts of `asyncjobs/browser`; they are public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files

from asyncjobs.http.headers import matches
from asyncjobs.http.messages import Headers, Request, Response
from asyncjobs.http.problems import not_allowed


@dataclass(frozen=True)
class _Script:
    body: bytes
    headers: Headers


def script(request: Request) -> Response | None:
    """Return the answer to a request for a script; None for any other request.

    One slash at the end is ignored, since some frameworks add it.
    """
    found = SCRIPTS.get(request.path.removesuffix("/"))
    if found is None:
        return None
    if request.method not in {"GET", "HEAD"}:
        return not_allowed(request.method, ["GET"])
    if matches(request.headers.get("if-none-match"), dict(found.headers)["ETag"]):
        return Response(HTTPStatus.NOT_MODIFIED, found.headers[1:])
    return Response(HTTPStatus.OK, found.headers, found.body)


def _read(name: str) -> _Script:
    body = (files("asyncjobs") / "browser" / name).read_bytes()
    return _Script(
        body,
        (
            ("Content-Type", "text/javascript; charset=utf-8"),  # RFC 9239, section 4.2
            ("ETag", f'"{sha256(body).hexdigest()[:32]}"'),
            # Revalidated each time: the modules import each other, and must be of one version.
            ("Cache-Control", "public, no-cache"),
            ("X-Content-Type-Options", "nosniff"),
        ),
    )


#: Each script by its path below the prefix.
SCRIPTS: Mapping[str, _Script] = {
    name: _read(name) for name in ("client.js", "element.js", "look.js", "react.js")
}
