"""Refuses requests from pages of other sites, and polls that come too fast."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from asyncjobs.core.job import JobId
from asyncjobs.errors import CrossSite, TooManyPolls
from asyncjobs.http.messages import Request
from asyncjobs.settings import Seconds, duration

# RFC 6454 section 6.2: scheme, host, and a port if it is not the usual one.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:[^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HOST = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_HTTP_SCHEMES = {"ws": "http", "wss": "https"}

_USUAL_PORTS = {"http": ":80", "https": ":443"}

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def is_origin(text: str) -> bool:
    """Return whether a text has the form of an origin that browsers send."""
    return _ORIGIN.fullmatch(text) is not None


def origin_of(url: str) -> str | None:
    """Return the origin of an absolute URL."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}".lower()
    return origin if is_origin(origin) else None


def own_origin(request: Request) -> str | None:
    """Return the origin by which this client reached the server; None without a valid `Host`."""
    host = request.headers.get("host", "")
    scheme = _HTTP_SCHEMES.get(request.scheme, request.scheme)
    return f"{scheme}://{host}" if _HOST.fullmatch(host) else None


def refuse_cross_site(request: Request, trusted: Collection[str]) -> None:
    """Raise `CrossSite` if a page of another site sent an unsafe request.

    Browsers send Sec-Fetch-Site (Fetch Metadata), older ones Origin. A client that sends neither is
    not a browser, and has no cookies that another page could misuse.
    """
    if request.method not in _SAFE_METHODS:
        _refuse(request, trusted)


def refuse_foreign_socket(request: Request, trusted: Collection[str]) -> None:
    """Raise `CrossSite` if a page of another site opens a WebSocket (RFC 6455, section 10.2)."""
    _refuse(request, trusted)


def _refuse(request: Request, trusted: Collection[str]) -> None:
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    host = request.headers.get("host", "").lower()
    if site in {"same-origin", "none"} or origin.lower() in trusted:
        return
    if site is None and (not origin or (host and _names(origin.lower(), host))):
        return
    raise CrossSite(origin if is_origin(origin.lower()) else "")


def _names(origin: str, host: str) -> bool:
    """Return whether an origin matches a host; either may include the default port."""
    # The scheme is not compared: behind a proxy that terminates TLS the server sees another one.
    scheme, _, name = origin.partition("://")
    port = _USUAL_PORTS.get(scheme, "")
    return name.removesuffix(port) == host.removesuffix(port)


@dataclass(frozen=True)
class PollLimit:
    """How fast one job may be polled: `burst` times at once, then once per `interval`.

    The interval is seconds or a timedelta. The first poll is always answered. Each process counts
    only its own polls. Raises `ValueError` for a burst or an interval of zero or less.
    """

    burst: int = 20
    interval: timedelta = timedelta(seconds=0.5)

    if TYPE_CHECKING:

        def __init__(self, burst: int = ..., interval: Seconds = ...) -> None: ...

    def __post_init__(self) -> None:
        interval = duration(self.interval)
        if self.burst < 1 or interval <= timedelta(0):
            raise ValueError(
                f"PollLimit needs a burst and an interval above zero, got {self.burst} and "
                f"{interval}."
            )
        object.__setattr__(self, "interval", interval)


_MAX_TRACKED_JOBS = 10_000


class Limiter:
    """Counts the polls of each job in a leaky bucket, stored as the time at which it is empty.

    Beyond `max_jobs` the least recently polled job is dropped, which only allows more polls.
    """

    def __init__(self, limit: PollLimit, *, max_jobs: int = _MAX_TRACKED_JOBS) -> None:
        self._burst = limit.burst
        self._interval = limit.interval.total_seconds()
        self._max_jobs = max_jobs
        self._empty_at: OrderedDict[JobId, float] = OrderedDict()

    def count(self, job_id: JobId, now: float) -> None:
        """Count a poll at a time of a monotonic clock, or raise `TooManyPolls`."""
        empty_at = max(self._empty_at.pop(job_id, now), now)
        over = empty_at - now - (self._burst - 1) * self._interval
        # A refused poll does not count, so a client that waits is always answered.
        self._empty_at[job_id] = empty_at if over > 0 else empty_at + self._interval
        if len(self._empty_at) > self._max_jobs:
            self._empty_at.popitem(last=False)
        if over > 0:
            raise TooManyPolls(max(1, ceil(over)))
