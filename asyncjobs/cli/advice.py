"""Detects problems in production: functions from values to sentences of advice."""

from __future__ import annotations

import runpy
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from asyncjobs.core.handlers import Handler, Registry
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.resources import Lifespan, lifespan_path
from asyncjobs.http.messages import EVENT_LOOP_ROOM, room_in
from asyncjobs.http.mounts import MountOptions
from asyncjobs.protocols import Dispatcher, ServesQueues
from asyncjobs.settings import Settings

# A poll may come this much before or after its time.
_POLL_JITTER_SECONDS = 1.0

# How long a stop may take beyond the grace period.
_LAST_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """How a web server is configured; None is unknown, or does not apply. Times are in seconds.

    `request_timeout` is how long one request may occupy a worker process.
    """

    keep_alive: float | None = None
    threads: int | None = None
    request_timeout: float | None = None
    stop_timeout: float | None = None


def gunicorn_server(path: Path, threads: int | None = None) -> Server:
    """Run a gunicorn configuration file, as gunicorn does, and return its settings.

    `threads` is the command line's value, which takes precedence. Raises `ConfigurationError` for a
    file that cannot be run, and for values that are not numbers.
    """
    try:
        found = runpy.run_path(str(path))
        kind = found.get("worker_class", "sync")
        threads = threads or int(found.get("threads", 1))
        keep_alive, timeout, graceful = (
            float(found.get(name, default))
            for name, default in (("keepalive", 2), ("timeout", 30), ("graceful_timeout", 30))
        )
    except Exception as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    sync = name == "sync" or name.endswith("SyncWorker")
    if sync and threads == 1:  # this worker closes each connection
        return Server(threads=1, request_timeout=timeout or None, stop_timeout=graceful)
    # gunicorn uses gthread instead of sync if there are several threads.
    in_threads = sync or name == "gthread" or name.endswith("ThreadWorker")
    return Server(
        keep_alive=keep_alive, threads=threads if in_threads else None, stop_timeout=graceful
    )


def queue_warnings(
    registry: Registry, served: Sequence[str], dispatcher: Dispatcher
) -> Generator[str]:
    """Warn of queues without workers; `served` are those that workers serve, empty if unknown.

    An engine may know them; the query may take seconds.
    """
    engine = dispatcher if isinstance(dispatcher, ServesQueues) else None
    known = frozenset(served) if served or engine is None else engine.served_queues()
    for kind in registry:
        if not isinstance(kind, Handler) or not known:
            continue
        queue: str | None = kind.policy.queue
        advice = "Add it to the --queues of a worker."
        if engine is not None:
            queue = engine.queue_for(kind.name, kind.policy.queue)
            advice = engine.how_to_serve(kind.name, kind.policy.queue)
        if queue is not None and queue not in known:
            yield f"No worker serves the queue {queue!r} of handler {kind.name!r}. {advice}"


def handler_warnings(registry: Registry, lifespan: Lifespan | None = None) -> Generator[str]:
    """Warn of problems in handlers and their shared resources."""
    try:
        lifespan_path(lifespan, registry)
    except ConfigurationError as error:
        yield f"The queue cannot be opened. {error}"
    handlers = [kind for kind in registry if isinstance(kind, Handler)]
    for kind in handlers:
        policy = kind.policy
        if policy.timeout is not None and policy.timeout > policy.deadline:
            yield (
                f"Handler {kind.name!r} has a timeout of {_text(policy.timeout)}, but its jobs "
                f"fail at their deadline after {_text(policy.deadline)}: lower the timeout, or "
                "raise the deadline."
            )
        if kind.import_path is not None:
            yield from _import_warnings(kind)
    kept = [repr(kind.name) for kind in registry if kind.policy.retention is None]
    if kept:
        yield (
            f"Jobs of {', '.join(kept)} are never deleted (retention=None), so the store grows: "
            "set a retention, or run `asyncjobs purge` regularly."
        )


def _import_warnings(kind: Handler[Any, Any]) -> Generator[str]:
    path = kind.import_path
    if path is None:
        return
    try:
        path.find()
    except ConfigurationError:
        yield (
            f"Handler {kind.name!r} runs in its own process, which cannot find {path.name} in the "
            f"module {path.module}: define it there under that name."
        )


def stop_warnings(settings: Settings, server: Server, stop_timeout: float) -> Generator[str]:
    """Warn of processes that are killed while they stop, `stop_timeout` seconds after SIGTERM."""
    needed = settings.grace.total_seconds() + _LAST_SECONDS
    stop = f"Stopping takes up to {needed:g} s (Settings.grace and {_LAST_SECONDS:g} s)"
    if needed > stop_timeout:
        yield (
            f"{stop}, but the process is killed after {stop_timeout:g} s: raise the stop timeout "
            "of the container or service and give it as --stop-timeout, or lower Settings.grace."
        )
    if server.stop_timeout is not None and needed > server.stop_timeout:
        yield (
            f"{stop}, but gunicorn kills its workers after {server.stop_timeout:g} s: raise "
            "graceful_timeout, or lower Settings.grace."
        )


def server_warnings(server: Server, mounts: Iterable[MountOptions]) -> Generator[str]:
    """Warn of a web server whose settings do not suit the clients."""
    options = list(mounts)
    yield from _keep_alive_warnings(server, options)
    room = EVENT_LOOP_ROOM if server.threads is None else room_in(threads=server.threads > 1)
    held = max((one.held_at_most(room) for one in options), default=0)
    lasts = max(
        (max(one.max_wait, one.max_stream_duration) for one in options if one.held_at_most(room)),
        default=timedelta(0),
    )
    limit = server.request_timeout
    if limit is not None and lasts.total_seconds() > limit:
        yield (
            f"A sync worker of gunicorn serves one request at a time and is killed after {limit:g} "
            f"s, but events and held requests last up to {_text(lasts)}: set "
            'worker_class = "gthread" and more threads, or MountOptions(max_held=0).'
        )
    elif server.threads is not None and held >= server.threads:
        yield (
            f"Events, WebSockets and held requests each keep one of {server.threads} threads, and "
            f"MountOptions.max_held allows {held} of them, so no thread may be left for other "
            "requests: lower max_held, or raise the number of threads."
        )


def _keep_alive_warnings(server: Server, options: Sequence[MountOptions]) -> Generator[str]:
    if not server.keep_alive or not options:
        return
    delays = {delay for one in options for delay in one.pacing.delays()}
    if any(abs(delay - server.keep_alive) < _POLL_JITTER_SECONDS for delay in delays):
        yield (
            f"The server closes idle connections after {server.keep_alive:g} s, and clients poll "
            f"every {min(delays)} to {max(delays)} s (Retry-After), so polls that come while it "
            f"closes fail: set the keep-alive to {2 * max(delays)} s or more."
        )


def _text(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
