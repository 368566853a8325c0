"""The health of worker processes: a file that each process writes while it is alive.

The event loop writes the file, so a process whose loop is blocked does not look alive. Readers,
such as the thread that serves HTTP, use the file alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import anyio

from asyncjobs.core.job import new_job_id
from asyncjobs.errors import AsyncJobsError
from asyncjobs.queue import AsyncJobs

#: How often the file is written.
HEARTBEAT_SECONDS = 2.0

#: A process without a heartbeat for this long counts as dead: the default length of a lease.
DEAD_AFTER_SECONDS = 30.0

_OK = "ok"


@dataclass(frozen=True)
class Health:
    """The health of some worker processes: whether all are alive, and can reach the store."""

    live: bool
    ready: bool
    document: dict[str, object]


def write_heartbeat(path: Path, store: str) -> None:
    """Write the current time and the state of the store; readers never see a partial file."""
    heartbeat = {"at": time.time(), "store": store}
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(heartbeat))
    temporary.replace(path)


def remove_heartbeat(path: Path) -> None:
    """Remove the file of a process that has ended, if it exists."""
    path.unlink(missing_ok=True)


def read_health(paths: Sequence[Path]) -> Health:
    """Read the health of the processes that write these files."""
    processes = [_read_heartbeat(path) for path in paths]
    live = all(bool(process["live"]) for process in processes)
    ready = live and all(process["store"] == _OK for process in processes)
    return Health(live, ready, {"live": live, "ready": ready, "processes": processes})


def _read_heartbeat(path: Path) -> dict[str, object]:
    try:
        heartbeat = json.loads(path.read_text())
    except (OSError, ValueError):  # not started, or ended
        return {"live": False, "store": "unknown", "age": None}
    age = max(0.0, time.time() - heartbeat["at"])
    return {"live": age < DEAD_AFTER_SECONDS, "store": heartbeat["store"], "age": round(age, 1)}


async def write_heartbeats(path: Path, jobs: AsyncJobs) -> None:
    """Write the file of this process until cancelled."""
    try:
        while True:
            write_heartbeat(path, await _state_of_store(jobs))
            await anyio.sleep(HEARTBEAT_SECONDS)
    finally:
        remove_heartbeat(path)


async def _state_of_store(jobs: AsyncJobs) -> str:
    try:
        with anyio.fail_after(DEAD_AFTER_SECONDS / 3):
            await jobs.get(new_job_id())
    except (AsyncJobsError, TimeoutError) as error:
        return str(error) or "it does not respond"
    return _OK


@contextmanager
def serve_health(host: str, port: int, paths: Sequence[Path]) -> Generator[None]:
    """Serve `/live` and `/ready` over HTTP inside the block: 200 if true, else 503."""

    class HealthResponse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            health = read_health(paths)
            path = self.path.partition("?")[0]
            if path not in {"/live", "/ready"}:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            healthy = health.live if path == "/live" else health.ready
            body = json.dumps(health.document).encode()
            self.send_response(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: probes come every few seconds."""

    with ThreadingHTTPServer((host, port), HealthResponse) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, name="asyncjobs health", daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
