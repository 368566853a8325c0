"""Where the routes are served, and on what terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from asyncjobs.core.job import JobId
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.headers import Pacing
from asyncjobs.http.messages import Request
from asyncjobs.http.security import PollLimit, is_origin, origin_of, own_origin


@dataclass(frozen=True, kw_only=True)
class MountOptions:
    """What a mount may be told that is rarely needed; times are in seconds.

    `longest_wait` is the most for which a client's `Prefer: wait` is heeded. `origins` are the
    other sites (such as `https://app.example.com`) whose pages may submit, cancel and open
    WebSockets. At most `streams` clients are sent events at a time in each process; each for
    `stream_life` at most, with a sign of life every `keep_alive`. `sockets` is the prefix of the
    WebSockets, by default `/ws` and the mount's own prefix without `/api`. `poll_limit` answers
    clients by 429 that ask far too often. With `callbacks` a client may name, by the header
    `Callback-URL`, where it wants to be told of the job's end; without, such a request is refused.
    """

    pacing: Pacing = field(default_factory=Pacing)
    longest_wait: int = 25
    origins: tuple[str, ...] = ()
    streams: int = 10_000
    stream_life: float = 600
    keep_alive: float = 15
    sockets: str | None = None
    poll_limit: PollLimit | None = None
    callbacks: bool = False

    def __post_init__(self) -> None:
        wrong = next((origin for origin in self.origins if not is_origin(origin)), None)
        if wrong is not None:
            raise ValueError(f"An origin is a scheme and a host, with a port or not: {wrong!r}")
        if min(self.keep_alive, self.stream_life) <= 0 or min(self.streams, self.longest_wait) < 0:
            raise ValueError(
                "A mount needs keep_alive and stream_life above zero, streams and longest_wait of "
                f"zero or more, got {self}."
            )
        if self.sockets is not None:
            _check_prefix(self.sockets)


@dataclass(frozen=True)
class JobLinks:
    """The URLs of one job."""

    status: str
    result: str
    events: str
    cancel: str
    operation: str


@dataclass(frozen=True)
class Mount:
    """One place where the routes are served.

    URLs in answers are paths below `prefix`; with a `base_url` (such as `https://api.example.com`)
    they are absolute. They are never built from what a proxy says.
    """

    prefix: str = "/api/jobs"
    base_url: str | None = None
    identified: bool = False
    options: MountOptions = field(default_factory=MountOptions)

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)
        if self.base_url is not None and self.base_url.endswith("/"):
            raise ValueError(f"A base URL ends without a slash: {self.base_url!r}")

    @property
    def sockets(self) -> str:
        """The prefix of the WebSockets' paths."""
        below = self.prefix.removeprefix("/api") or self.prefix
        return self.options.sockets or f"/ws{below if below.startswith('/') else self.prefix}"

    @property
    def trusted(self) -> frozenset[str]:
        """The origins whose pages may do what changes something, beside the server's own."""
        own = origin_of(self.base_url) if self.base_url else None
        return frozenset(
            {*(origin.lower() for origin in self.options.origins), *([own] if own else [])}
        )

    def base(self, request: Request) -> str:
        """Return the URL of the list of jobs, which is a path without a base URL."""
        if self.base_url is not None:
            return self.base_url + self.prefix
        # The root may stem from the request's own path: an app mounted below `/{tenant}`.
        root = quote(request.root.strip("/"))
        return f"/{root}{self.prefix}" if root else self.prefix

    def links(self, request: Request, job_id: JobId) -> JobLinks:
        """Make a job's URLs; all but that of the operation are relative to the server."""
        base = self.base(request)
        status = f"{base}/{job_id}"
        # Clients of that resource expect an absolute URL. The server's own name is what this very
        # client has sent, and nobody else will be shown the answer.
        host = "" if self.base_url is not None else own_origin(request) or ""
        return JobLinks(
            status=status,
            result=f"{status}/result",
            events=f"{status}/events",
            cancel=f"{status}/cancel",
            operation=f"{host}{status}/operation",
        )


def owner_of(found: object) -> str | None:
    """Check what an application's `identify` returned; raise `ConfigurationError`."""
    if found is None or isinstance(found, str):
        return found
    raise ConfigurationError(f"`identify` must return a string or None, got {found!r}.")


def _check_prefix(prefix: str) -> None:
    if not prefix.startswith("/") or prefix.endswith("/"):
        raise ValueError(f"A prefix begins with a slash and ends without one: {prefix!r}")
