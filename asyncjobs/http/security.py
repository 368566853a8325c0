"""What a mount refuses: cross-site requests, and too many polls or streams."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from math import ceil
from urllib.parse import urlsplit

from asyncjobs.core.job import JobId
from asyncjobs.errors import CrossSite, TooManyPolls
from asyncjobs.http.messages import Request

# RFC 6454 section 6.2: scheme, host, and a port where it is not the scheme's own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:[^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HOST = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_USUAL_PORTS = {"http": ":80", "https": ":443"}

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def is_origin(text: str) -> bool:
    """Tell whether a text is written as browsers write an origin."""
    return _ORIGIN.fullmatch(text) is not None


def origin_of(url: str) -> str | None:
    """Return the origin of an absolute URL."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}".lower()
    return origin if is_origin(origin) else None


def own_origin(request: Request) -> str | None:
    """Return the origin under which this client has reached the server, if it named one."""
    host = request.headers.get("host", "")
    scheme = {"ws": "http", "wss": "https"}.get(request.scheme, request.scheme)
    return f"{scheme}://{host}" if _HOST.fullmatch(host) else None


def refuse_cross_site(request: Request, trusted: Collection[str]) -> None:
    """Raise `CrossSite` where a page of another site sent what changes something.

    Browsers say so themselves (Fetch Metadata's Sec-Fetch-Site), older ones by the Origin. Who
    sends neither is no browser, and has no cookies that another page could misuse.
    """
    if request.method not in _SAFE_METHODS:
        _refuse(request, trusted)


def refuse_foreign_socket(request: Request, trusted: Collection[str]) -> None:
    """Raise `CrossSite` where a page of another site opens a WebSocket (RFC 6455, 10.2)."""
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
    """Tell whether an origin is that of a host, where either may spell out the usual port."""
    # Not by the server's own scheme: behind a proxy that ends TLS it does not know it.
    scheme, _, name = origin.partition("://")
    port = _USUAL_PORTS.get(scheme, "")
    return name.removesuffix(port) == host.removesuffix(port)


# Jobs that were not asked about for longest are forgotten first; that only ever allows more.
_MAX_TRACKED_JOBS = 10_000


@dataclass(frozen=True)
class PollLimit:
    """How fast one job may be asked about: `burst` times at once, then each `every` seconds.

    The first poll is always answered. A process counts its own polls only.
    """

    burst: int = 20
    every: float = 0.5

    def __post_init__(self) -> None:
        if self.burst < 1 or self.every <= 0:
            raise ValueError(f"A limit needs a burst and a pause above zero, got {self}.")


class Limiter:
    """Counts polls, job by job, as a leaky bucket: by the moment at which it would be empty."""

    def __init__(self, limit: PollLimit) -> None:
        self._limit = limit
        self._empty_at: OrderedDict[JobId, float] = OrderedDict()

    def count(self, job_id: JobId, now: float) -> None:
        """Count a poll at a moment of a clock that never goes back; raise `TooManyPolls`."""
        empty_at = max(self._empty_at.pop(job_id, now), now)
        over = empty_at - now - (self._limit.burst - 1) * self._limit.every
        # One that is refused does not count, so that patience is always rewarded.
        self._empty_at[job_id] = empty_at if over > 0 else empty_at + self._limit.every
        if len(self._empty_at) > _MAX_TRACKED_JOBS:
            self._empty_at.popitem(last=False)
        if over > 0:
            raise TooManyPolls(max(1, ceil(over)))
