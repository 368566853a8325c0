"""The mounts: prefix, options and URLs of the routes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote

from asyncjobs.core.job import JobId
from asyncjobs.core.options import checked_option, checked_part, described
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.headers import Pacing
from asyncjobs.http.messages import Request
from asyncjobs.http.security import PollLimit, is_origin, origin_of, own_origin
from asyncjobs.queue import AsyncJobs
from asyncjobs.settings import Seconds, duration

if TYPE_CHECKING:
    from asyncjobs.http.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class MountOptions:
    """The options of a mount that are rarely needed; each duration is seconds or a timedelta.

    - `pacing`: the bounds of `Retry-After`.
    - `max_wait`: the longest time for which a client's `Prefer: wait` holds a request, in whole
      seconds.
    - `origins`: the other sites (such as `https://app.example.com`) whose pages may submit, cancel
      and open WebSockets.
    - `max_held`: how many connections a process holds at once: events, WebSockets and requests
      that wait for a job. Further clients are answered at once and poll. The default is 10,000; in
      Flask, where each occupies a thread, it is 3, or none if the server has one thread.
    - `max_stream_duration`: how long each of these streams lasts; clients then connect again.
    - `keep_alive_interval`: how often a quiet stream sends a comment.
    - `websocket_prefix`: the prefix of the WebSockets. The default is `/ws` and the mount's own
      prefix without `/api`; for a router it is `/ws` below the prefix.
    - `poll_limit`: answers 429 to clients that poll far too often.
    - `callbacks`: whether the header `Callback-URL` may name a URL that is called when the job has
      ended. If not, a request with that header is refused.

    Raises `ValueError` for values out of range, and `ConfigurationError` for other types.
    """

    pacing: Pacing = field(default_factory=Pacing)
    max_wait: timedelta = timedelta(seconds=25)
    origins: tuple[str, ...] = ()
    max_held: int | None = None
    max_stream_duration: timedelta = timedelta(minutes=10)
    keep_alive_interval: timedelta = timedelta(seconds=15)
    websocket_prefix: str | None = None
    poll_limit: PollLimit | None = None
    callbacks: bool = False

    if TYPE_CHECKING:

        def __init__(  # noqa: PLR0913  # one parameter per option
            self,
            *,
            pacing: Pacing = ...,
            max_wait: Seconds = ...,
            origins: tuple[str, ...] = ...,
            max_held: int | None = ...,
            max_stream_duration: Seconds = ...,
            keep_alive_interval: Seconds = ...,
            websocket_prefix: str | None = ...,
            poll_limit: PollLimit | None = ...,
            callbacks: bool = ...,
        ) -> None: ...

    def held_at_most(self, room: int) -> int:
        """Return the limit of held connections on a server with this much room."""
        return room if self.max_held is None else self.max_held

    def __post_init__(self) -> None:
        checked_option("pacing", self.pacing, Pacing, "Pacing(min_delay, max_delay)")
        checked_option("poll_limit", self.poll_limit, PollLimit, "PollLimit(burst, interval)")
        checked_option("max_held", self.max_held, int, "a number of connections")
        checked_option("websocket_prefix", self.websocket_prefix, str, "a path")
        checked_option("callbacks", self.callbacks, bool, "True or False")
        wanted = 'a tuple of strings, such as ("https://app.example.com",)'
        checked_option("origins", self.origins, (tuple, list, set, frozenset), wanted)
        for origin in self.origins:
            checked_option("origins", origin, str, wanted)
        for name in ("max_wait", "max_stream_duration", "keep_alive_interval"):
            given: Seconds | None = getattr(self, name)
            if given is None:
                raise ConfigurationError(f"`{name}` must be seconds or a timedelta; got None.")
            value = duration(given)
            if value < timedelta(0) or (value == timedelta(0) and name != "max_wait"):
                raise ValueError(f"MountOptions.{name} must be a positive duration, got {value}.")
            object.__setattr__(self, name, value)
        if self.max_held is not None and self.max_held < 0:
            raise ValueError(f"MountOptions.max_held must be 0 or more, got {self.max_held}.")
        wrong = next((origin for origin in self.origins if not is_origin(origin)), None)
        if wrong is not None:
            raise ValueError(
                f"MountOptions.origins: {wrong!r} is not a scheme and a host with an optional port."
            )
        if self.websocket_prefix is not None:
            _check_prefix(self.websocket_prefix)


# A tuple, since each submission makes one.
class JobLinks(NamedTuple):
    """The URLs of one job."""

    status: str
    result: str
    events: str
    cancel: str
    operation: str
    token: str

    @classmethod
    def below(cls, base: str, job_id: JobId, host: str = "") -> Self:
        """Return the URLs of a job below that of the list; that of the operation has a host."""
        status = f"{base}/{job_id}"
        return cls(
            status=status,
            result=f"{status}/result",
            events=f"{status}/events",
            cancel=f"{status}/cancel",
            operation=f"{host}{status}/operation",
            token=f"{status}/token",
        )

    def file(self, name: str) -> str:
        """Return the URL of a file of the job."""
        return f"{self.status}/files/{quote(name, safe='')}"

    def stream(self, name: str) -> str:
        """Return the URL of a stream of the job's output."""
        return f"{self.output}/{name}"

    @property
    def output(self) -> str:
        """The URL of the job's unnamed stream."""
        return f"{self.status}/output"


@dataclass(frozen=True)
class Mount:
    """A place where the routes are served.

    URLs in answers are paths below `prefix`; with a `base_url` (such as `https://api.example.com`)
    they are absolute. They are never built from headers that a proxy sets. If `prefix` is None,
    each request has its own, as with an included router. `tokens` signs and verifies tokens.
    """

    prefix: str | None = "/api/jobs"
    base_url: str | None = None
    identified: bool = False
    options: MountOptions = field(default_factory=MountOptions)
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        checked_option("prefix", self.prefix, str, 'a path, such as "/api/jobs"')
        wanted = 'an absolute URL, such as "https://api.example.com"'
        checked_option("base_url", self.base_url, str, wanted)
        checked_option("options", self.options, MountOptions, "MountOptions(...)")
        if self.tokens is not None:
            checked_part("tokens", self.tokens, ("issue", "find", "read"), "Tokens(secret)")
        if self.prefix is not None:
            _check_prefix(self.prefix)
        if self.base_url is not None and self.base_url.endswith("/"):
            raise ValueError(f"A base URL must not end with a slash: {self.base_url!r}")

    @property
    def websocket_prefix(self) -> str:
        """The prefix of the WebSockets' paths."""
        if self.options.websocket_prefix is not None or self.prefix is None:
            return self.options.websocket_prefix or "/ws"
        below = self.prefix.removeprefix("/api") or self.prefix
        return f"/ws{below if below.startswith('/') else self.prefix}"

    @property
    def trusted(self) -> frozenset[str]:
        """The origins, besides the server's own, whose pages may send unsafe requests."""
        own = origin_of(self.base_url) if self.base_url else None
        return frozenset(
            {*(origin.lower() for origin in self.options.origins), *([own] if own else [])}
        )

    def base(self, request: Request) -> str:
        """Return the URL of the list of jobs, which is a path if there is no base URL."""
        prefix = quote(request.prefix) if self.prefix is None else self.prefix
        if self.base_url is not None:
            return self.base_url + prefix
        # The root may come from the request's own path: an app mounted below `/{tenant}`.
        if not request.root:
            return prefix
        root = quote(request.root.strip("/"))
        return f"/{root}{prefix}" if root else prefix

    def links(self, request: Request, job_id: JobId) -> JobLinks:
        """Return a job's URLs; all but that of the operation are relative to the server."""
        base = self.base(request)
        # Clients of that resource expect an absolute URL. It uses the `Host` that this client sent,
        # and only this client receives the answer.
        host = "" if self.base_url is not None else own_origin(request) or ""
        return JobLinks.below(base, job_id, host)


def mount_of(
    prefix: str | None,
    base_url: str | None,
    identify: object,
    options: MountOptions | None,
    tokens: Tokens | None,
) -> Mount:
    """Return the mount of an adapter's arguments; raise `ConfigurationError` for wrong types."""
    chosen = MountOptions() if options is None else options
    return Mount(prefix, base_url, identify is not None, chosen, tokens)


def check_target(
    framework: type, app: object, jobs: object, prefix: object, identify: object
) -> None:
    """Raise `ConfigurationError` unless `mount` got an application, a queue, a path, a function."""
    if isinstance(app, type):
        raise ConfigurationError(
            f"mount() needs an application, got the class {app.__name__}: "
            f"create one, app = {app.__name__}(...), and mount on it."
        )
    if not isinstance(app, framework):
        advice = {
            "APIRouter": "include a router in it, with jobs_router(jobs)",
            "Starlette": "use asyncjobs.adapters.starlette",
            "FastAPI": "use asyncjobs.adapters.fastapi",
            "Flask": "use asyncjobs.adapters.flask",
        }.get(type(app).__name__, f"pass the {framework.__name__} application itself")
        raise ConfigurationError(
            f"mount() needs a {framework.__name__} application, got {described(app)}: {advice}."
        )
    if prefix is None:
        raise ConfigurationError('`prefix` must be a path, such as "/api/jobs"; got None.')
    check_queue(jobs, identify)


def check_queue(jobs: object, identify: object) -> None:
    """Raise `ConfigurationError` for an object that is not a queue, and for no function."""
    if not isinstance(jobs, AsyncJobs):
        raise ConfigurationError(f"The routes need an AsyncJobs, got {described(jobs)}.")
    if identify is not None and not callable(identify):
        raise ConfigurationError(
            "`identify` must be a function that returns the owner of a request; got "
            f"{described(identify)}."
        )


def check_mounts(present: Iterable[Mount], added: Mount) -> None:
    """Raise `ConfigurationError` if an app would serve two queues, or one twice, at a path."""
    for one in present:
        if one.prefix == added.prefix:
            raise ConfigurationError(
                f"Jobs are already mounted at {added.prefix} on this app: "
                "mount this AsyncJobs at another prefix."
            )
        if one.websocket_prefix == added.websocket_prefix:
            raise ConfigurationError(
                f"The mounts at {one.prefix} and {added.prefix} would both serve WebSockets at "
                f"{added.websocket_prefix}: set MountOptions(websocket_prefix=...) for one of them."
            )


def owner_of(found: object) -> str | None:
    """Check what an application's `identify` returned; raise `ConfigurationError`."""
    if found is None or isinstance(found, str):
        return found
    raise ConfigurationError(f"`identify` must return a string or None, got {found!r}.")


def _check_prefix(prefix: str) -> None:
    if not prefix.startswith("/") or prefix.endswith("/"):
        raise ValueError(f"A prefix must start with a slash and not end with one: {prefix!r}")
