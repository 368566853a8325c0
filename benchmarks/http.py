"""Part `http`: requests per second compared with bare routes of the same app, on one process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.load import Load, Request, answers, ask, free_port, wait_for
from benchmarks.measuring import Plan
from benchmarks.places import Place
from benchmarks.processes import Process
from benchmarks.running import Run

#: The stores behind each framework; one is enough to compare frameworks.
APPS = {
    "starlette": ("memory", "sqlite", "postgres", "redis"),
    "fastapi": ("sqlite",),
    "flask": ("sqlite",),
}
BODY = b'{"x":1}'
#: The number of turns, alternating with the bare route, for each request.
TURNS = 4


@dataclass
class Loaded:
    """The totals of all turns of one request."""

    answered: int = 0
    seconds: float = 0.0
    cpu: float = 0.0

    def add(self, load: Load, cpu: float) -> None:
        self.answered += load.answered
        self.seconds += load.seconds
        self.cpu += cpu


@contextmanager
def serving(app: str, place: Place, store: str) -> Generator[tuple[int, Process]]:
    """Serve an app of `benchmarks.apps`; yield the port and the process."""
    port = free_port()
    command: tuple[str, ...]
    if app == "flask":
        limits = ("--workers=1", "--threads=8", "--keep-alive=30", f"--bind=127.0.0.1:{port}")
        command = ("gunicorn", "-k", "gthread", "benchmarks.apps:flask()", *limits)
    else:
        quiet = ("--no-access-log", "--log-level=error", "--backlog=4096", "--loop=asyncio")
        stop = ("--timeout-graceful-shutdown=1",)  # watchers never disconnect
        command = (
            "uvicorn",
            "--factory",
            f"benchmarks.apps:{app}",
            f"--port={port}",
            *quiet,
            *stop,
        )
    with Process(("-m", *command), place, BENCHMARK_STORE=place.store(store)) as process:
        wait_for(port, process.check)
        yield port, process


def measure(run: Run) -> None:
    for _ in range(run.rounds):
        for app, stores in APPS.items():
            for store in stores[1:2] if run.quick else stores:
                if app == "flask" and not find_spec("gunicorn"):
                    continue
                subject = f"{app}, {store}"
                with (
                    run.attempt(subject),
                    run.servers.place(store) as place,
                    serving(app, place, store) as (port, process),
                ):
                    asyncio.run(_measure(run, subject, port, process))


async def _measure(run: Run, subject: str, port: int, process: Process) -> None:
    _, ids = await ask(port, Request("GET", "/ids", 200))
    completed, waiting = f"/jobs/{ids['completed']}", f"/jobs/{ids['waiting']}"
    head, _ = await ask(port, Request("GET", completed, 200))
    etag = next(
        line.partition(b": ")[2] for line in head.split(b"\r\n") if line[:5].lower() == b"etag:"
    )
    unchanged = (f"If-None-Match: {etag.decode()}",)
    pairs = {
        "POST": (Request("POST", "/bare", 202, BODY), Request("POST", "/orders", 202, BODY)),
        "GET completed": (Request("GET", "/bare", 200), Request("GET", completed, 200)),
        "GET unchanged": (
            Request("GET", "/bare", 200),
            Request("GET", completed, 304, headers=unchanged),
        ),
        # Queued behind all jobs that were posted.
        "GET waiting": (Request("GET", "/bare", 200), Request("GET", waiting, 200)),
    }
    seconds = Plan(run.quick).seconds
    for name, pair in pairs.items():
        sides = (Loaded(), Loaded())
        for _ in range(TURNS):
            for side, request in zip(sides, pair, strict=True):
                cpu = process.cpu()
                load = await answers(port, request, seconds / TURNS)
                side.add(load, process.cpu() - cpu)
        for side_name, side in zip(("bare", "asyncjobs"), sides, strict=True):
            found = {
                f"{name} [requests/s]": side.answered / side.seconds,
                f"{name}, CPU [us]": 1e6 * side.cpu / side.answered,
            }
            run.figures.add("http", subject, side_name, found)
