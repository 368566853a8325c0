"""How worker processes show that they are well: a file that is written as long as they are.

The file is written by the event loop, so one that blocks does not look alive. What reads it, a
thread that answers HTTP among others, works from the file alone.
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
BEAT_SECONDS = 2.0

#: After so long without a beat a process counts as dead: the default time of a lease.
DEAD_SECONDS = 30.0

_WELL = "ok"


@dataclass(frozen=True)
class Health:
    """What is known of some worker processes: whether all live, and can reach the store."""

    live: bool
    ready: bool
    document: dict[str, object]


def write_beat(path: Path, store: str) -> None:
    """Write that the process lives, and how its store is; a reader never sees half of it."""
    beat = {"at": time.time(), "store": store}
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(beat))
    fresh.replace(path)


def remove(path: Path) -> None:
    """Remove the file of a process that has ended, if it is still there."""
    path.unlink(missing_ok=True)


def read_health(paths: Sequence[Path]) -> Health:
    """Read the files of some processes."""
    processes = [_read_beat(path) for path in paths]
    live = all(bool(one["live"]) for one in processes)
    ready = live and all(one["store"] == _WELL for one in processes)
    return Health(live, ready, {"live": live, "ready": ready, "processes": processes})


def _read_beat(path: Path) -> dict[str, object]:
    try:
        beat = json.loads(path.read_text())
    except (OSError, ValueError):  # not begun, or gone
        return {"live": False, "store": "unknown", "age": None}
    age = max(0.0, time.time() - beat["at"])
    return {"live": age < DEAD_SECONDS, "store": beat["store"], "age": round(age, 1)}


async def beat(path: Path, jobs: AsyncJobs) -> None:
    """Write the file of this process until cancelled."""
    try:
        while True:
            write_beat(path, await _state_of_store(jobs))
            await anyio.sleep(BEAT_SECONDS)
    finally:
        remove(path)


async def _state_of_store(jobs: AsyncJobs) -> str:
    try:
        with anyio.fail_after(DEAD_SECONDS / 3):
            await jobs.get(new_job_id())
    except (AsyncJobsError, TimeoutError) as error:
        return str(error) or "it does not answer"
    return _WELL


@contextmanager
def answering(host: str, port: int, paths: Sequence[Path]) -> Generator[None]:
    """Answer `/live` and `/ready` over HTTP inside the block: 200, or 503 where it is not so."""

    class HealthResponse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            health = read_health(paths)
            asked = self.path.partition("?")[0]
            if asked not in {"/live", "/ready"}:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            well = health.live if asked == "/live" else health.ready
            body = json.dumps(health.document).encode()
            self.send_response(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: probes come every few seconds."""

    with ThreadingHTTPServer((host, port), HealthResponse) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, name="asyncjobs health", daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
