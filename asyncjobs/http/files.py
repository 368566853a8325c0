"""The rules of downloads: conditions, ranges and headers of a stored file (RFC 9110)."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from asyncjobs.core.job import JobFile
from asyncjobs.http.headers import matches, still_at
from asyncjobs.http.messages import Headers

# Section 14.1.2; longer numbers are refused, since Python would not parse them.
_BYTES = re.compile(r"bytes=[ \t]*(?:([0-9]{1,1000})-([0-9]{0,1000})|-([0-9]{1,1000}))[ \t]*")

# Of the characters that RFC 8187 section 3.2.1 allows, those that `quote` would escape.
_PLAIN = "!#$&+^`|"

# RFC 6266 section 4.3 and appendix D: what all browsers understand in a quoted file name.
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\%]')


class Part(NamedTuple):
    """What to send of a file: the status and headers, and the range of its bytes."""

    status: HTTPStatus
    headers: Headers
    start: int = 0
    stop: int = 0


def part_of(file: JobFile, headers: Mapping[str, str]) -> Part:
    """Return what a GET sends of a stored file, in the order of RFC 9110 section 13.2.2.

    The status is 200, 206, 304, 412 or 416. A request for several ranges gets the whole file.
    """
    size, etag = file.size or 0, file_etag(file)
    known = _identity(file, etag)
    if not _may_be_sent(file, etag, headers):
        return Part(HTTPStatus.PRECONDITION_FAILED, known)
    if _is_known(file, etag, headers):
        return Part(HTTPStatus.NOT_MODIFIED, known)
    described = (*known, *_description(file))
    asked = headers.get("range")
    # Only a strong ETag names exactly these bytes: two attempts may save within one second.
    if asked is None or headers.get("if-range", etag).strip() != etag:
        return Part(HTTPStatus.OK, (*described, _length(size)), 0, size)
    found = range_of(asked, size)
    if found is None:
        return Part(HTTPStatus.OK, (*described, _length(size)), 0, size)
    start, stop = found
    if start >= stop:
        return Part(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, _unsatisfiable(size))
    place = ("Content-Range", f"bytes {start}-{stop - 1}/{size}")
    sent = (*described, place, _length(stop - start))
    return Part(HTTPStatus.PARTIAL_CONTENT, sent, start, stop)


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """Return the start and the end of a single range; None if the header is to be ignored.

    If start and end are equal, the file has no such bytes.
    """
    match = _BYTES.fullmatch(text.strip().lower())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        # An empty file has no range to name in an answer, so it is sent whole.
        return (max(size - int(suffix), 0), size) if size else None
    start, stop = int(first), size
    if last:
        if int(last) < start:
            return None
        stop = min(int(last) + 1, size)
    return (size, size) if start >= size else (start, stop)


def file_etag(file: JobFile) -> str:
    """Return the strong ETag of a stored file, which is a part of its digest."""
    return f'"{file.digest[:32]}"'


def disposition_of(name: str) -> str:
    """Return the value of a Content-Disposition that saves an answer under that name.

    `filename*` has the exact name (RFC 8187); `filename` is for clients that do not know it.
    """
    plain = _UNSAFE.sub("_", name)
    if plain == name:
        return f'attachment; filename="{name}"'
    exact = quote(name, safe=_PLAIN)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"


def _may_be_sent(file: JobFile, etag: str, headers: Mapping[str, str]) -> bool:
    if "if-match" in headers:
        return still_at(headers["if-match"], etag)
    since = _moment(headers.get("if-unmodified-since"))
    return since is None or _saved_at(file) <= since


def _is_known(file: JobFile, etag: str, headers: Mapping[str, str]) -> bool:
    if "if-none-match" in headers:
        return matches(headers["if-none-match"], etag)
    since = _moment(headers.get("if-modified-since"))
    return since is not None and _saved_at(file) <= since


def _saved_at(file: JobFile) -> datetime:
    """Return when the file was stored, in whole seconds like the dates of HTTP."""
    assert file.saved_at is not None  # noqa: S101  # it is stored
    return file.saved_at.replace(microsecond=0)


def _moment(text: str | None) -> datetime | None:
    """Parse a date of HTTP; return None for anything else, which is ignored."""
    if text is None:
        return None
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return None if found.tzinfo is None else found


def _identity(file: JobFile, etag: str) -> Headers:
    return (
        ("ETag", etag),
        ("Last-Modified", format_datetime(_saved_at(file), usegmt=True)),
        # One user's file, to be checked each time: it may be replaced, or deleted with its job.
        ("Cache-Control", "private, no-cache"),
        ("X-Content-Type-Options", "nosniff"),
        # The content may be by strangers: browsers must never render it as a page of this site.
        ("Content-Security-Policy", "default-src 'none'; sandbox"),
    )


def _description(file: JobFile) -> Headers:
    digest = b64encode(bytes.fromhex(file.digest)).decode()
    return (
        ("Content-Type", file.media_type),
        ("Content-Disposition", disposition_of(file.name)),
        ("Accept-Ranges", "bytes"),
        ("Repr-Digest", f"sha-256=:{digest}:"),  # RFC 9530
    )


def _unsatisfiable(size: int) -> Headers:
    return (("Content-Range", f"bytes */{size}"), ("Accept-Ranges", "bytes"))


def _length(size: int) -> tuple[str, str]:
    return ("Content-Length", str(size))
