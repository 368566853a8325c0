"""What the status monitor costs: reads beside a bare route, watchers, and ways to follow a job.

    python benchmarks/http.py                # about two minutes; needs the `fastapi` extra, uvicorn

The load comes from a process of its own. Read the ratios: machines are noisy.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

CONNECTIONS = 32
SECONDS = 1.5
ROUNDS = 3
WATCHERS = int(os.environ.get("WATCHERS", "5000"))
CHANGES = 30
LENGTHS = (1, 5, 20, 60)

SERVER = """
import os, time
import anyio
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters import fastapi as on_fastapi, starlette as on_starlette
from asyncjobs.http.mounts import MountOptions

jobs = AsyncJobs(os.environ["JOBS"])
watched = jobs.external("watched", payload=dict, result=dict)

@jobs.handler("nap")
async def nap(seconds: float, job: JobContext) -> float:
    steps = max(1, int(seconds * 4))
    for step in range(steps):
        await job.progress(100 * step // steps)
        await anyio.sleep(seconds / steps)
    return time.monotonic()

DOCUMENT = {"jobId": "job_0", "type": "watched", "status": "pending", "progress": 0,
            "result": None, "error": None, "createdAt": "2030-01-01T00:00:00Z"}

def starlette():
    app = Starlette()
    on_starlette.mount(app, jobs)
    async def bare(request): return JSONResponse(DOCUMENT)
    async def begin(request): return await on_starlette.accept(request, watched, {})
    async def begin_nap(request):
        return await on_starlette.accept(request, nap, float(request.query_params["seconds"]))
    async def change(request):
        percent = int(request.query_params["percent"])
        asked = time.monotonic()  # the first watchers are told before the write's caller goes on
        await jobs.update_progress(request.path_params["job_id"], percent)
        return JSONResponse({"asked": asked})
    for path, endpoint, method in (("/bare", bare, "GET"), ("/watched", begin, "POST"),
            ("/nap", begin_nap, "POST"), ("/change/{job_id}", change, "POST")):
        app.add_route(path, endpoint, methods=[method])
    return app

def fastapi():
    app = FastAPI()
    on_fastapi.mount(app, jobs)
    @app.get("/bare")
    async def bare(): return DOCUMENT
    @app.post("/watched")
    async def begin(accept: on_fastapi.Accept): return await accept(watched, {})
    return app
"""


class Client:
    """A connection that is kept, with no more HTTP than is needed here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, target: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        method, _, path = target.rpartition(" ")
        self.send(method or "GET", path, headers)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        return int(head[0].split()[1]), fields, body

    def send(self, method: str, path: str, headers: dict[str, str]) -> None:
        length = {"Content-Length": "0"} if method == "POST" else {}
        lines = [
            f"{name.replace('_', '-')}: {value}" for name, value in {**headers, **length}.items()
        ]
        text = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""])
        self.writer.write(text.encode())


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


class Server:
    def __init__(self, folder: Path, factory: str) -> None:
        (folder / "served.py").write_text(SERVER)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        log = ["--log-level", "error", "--no-access-log", "--timeout-keep-alive", "75"]
        target = ["--app-dir", str(folder), f"served:{factory}", "--factory"]
        command = [sys.executable, "-m", "uvicorn", *target, "--port", str(self.port), *log]
        own = {"JOBS": f"sqlite:///{folder / factory}.db"}
        self.process = subprocess.Popen(command, env=os.environ | own)
        patience = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert time.monotonic() < patience
                time.sleep(0.05)

    def memory(self) -> int:
        """Return what the process holds, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


# reads per second


async def report_reads(folder: Path) -> None:
    print(f"reads per second, {CONNECTIONS} connections, medians of {ROUNDS} rounds in turns")
    for factory in ("starlette", "fastapi"):
        with Server(folder, factory) as server:
            async with connected(server.port) as client:
                _, fields, _ = await client.ask("POST /watched")
                url = fields["location"].removesuffix("/result")
                _, seen, _ = await client.ask(url)
            kinds: dict[str, tuple[str, dict[str, str]]] = {
                "bare route": ("/bare", {}),
                "status": (url, {}),
                "status, 304": (url, {"If_None_Match": seen["etag"]}),
            }
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(ROUNDS):
                for kind, (path, headers) in kinds.items():
                    rates[kind].append(await rate(server.port, path, headers))
        base = statistics.median(rates["bare route"])
        for kind, found in rates.items():
            one = statistics.median(found)
            print(f"  {factory:10} {kind:12} {one:9,.0f}   ratio {one / base:5.2f}   (aim: 0.60)")


async def rate(port: int, path: str, headers: dict[str, str]) -> float:
    ends = time.monotonic() + SECONDS

    async def ask() -> int:
        count = 0
        async with connected(port) as client:
            while time.monotonic() < ends:
                await client.ask(path, **headers)
                count += 1
        return count

    counts = await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return sum(counts) / SECONDS


# watchers


async def report_watchers(folder: Path) -> None:
    with Server(folder, "starlette") as server:
        async with connected(server.port) as client:
            _, fields, _ = await client.ask("POST /watched")
            job = fields["location"].split("/")[-2]
            before = server.memory()
            clients: list[Client] = []
            while len(clients) < WATCHERS:  # not more at once than a server has room to queue
                come = [await watching(server.port, job) for _ in range(min(WATCHERS, 500))]
                await asyncio.gather(*(one.reader.readuntil(b"}\n\n") for one in come))
                clients += come
            each = (server.memory() - before) / WATCHERS
            delays = [await spread(client, clients, job, number) for number in range(1, CHANGES)]
            for one in clients:
                one.writer.close()
    delays.sort()
    print(f"\n{WATCHERS:,} watchers of one job in one process")
    print(f"  memory of each                {each:7.1f} KiB   (aim: 25)")
    print(f"  last one told after, median   {statistics.median(delays) * 1000:7.0f} ms")
    print(f"  last one told after, worst    {delays[-1] * 1000:7.0f} ms    (aim: 500)")


async def watching(port: int, job: str) -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Client(reader, writer)
    client.send("GET", f"/api/jobs/{job}/events", {})
    return client


async def spread(client: Client, clients: list[Client], job: str, percent: int) -> float:
    """Return the seconds from just before the write to the last watcher's last byte of it."""
    shown = b'"progress":%d,' % percent
    told = [asyncio.ensure_future(one.reader.readuntil(shown)) for one in clients]
    client.send("POST", f"/change/{job}?percent={percent}", {})
    await asyncio.gather(*told)
    await asyncio.gather(*(one.reader.readuntil(b"}\n\n") for one in clients))
    last = time.monotonic()
    await client.reader.readuntil(b"\r\n\r\n")
    body = await client.reader.readuntil(b"}")
    return last - float(body.split(b":")[1].strip(b" }"))


# ways to follow a job


async def report_following(folder: Path) -> None:
    print("\nrequests per job, and seconds from its end to the client's knowing")
    print(f"  {'job of':>12}" + "".join(f"{name:>22}" for name in FOLLOWERS))
    with Server(folder, "starlette") as server:
        every = [(length, name) for length in LENGTHS for name in FOLLOWERS]
        found = await asyncio.gather(*(followed(server.port, *one) for one in every))
    for length in LENGTHS:
        row = [found[every.index((length, name))] for name in FOLLOWERS]
        cells = "".join(f"{f'{count} / {late:.3f} s':>22}" for count, late in row)
        print(f"  {length:>10} s{cells}")


async def followed(port: int, length: float, name: str) -> tuple[int, float]:
    async with connected(port) as client:
        _, fields, _ = await client.ask(f"POST /nap?seconds={length}")
        url = fields["location"].removesuffix("/result")
        count = await FOLLOWERS[name](client, url, int(fields["retry-after"]))
        known = time.monotonic()
    async with connected(port) as client:
        _, _, ended = await client.ask(f"{url}/result")
    return count, known - float(ended)


async def every_two_seconds(client: Client, url: str, _: int) -> int:
    return await polling(client, url, lambda _: asyncio.sleep(2))


async def as_told(client: Client, url: str, first: int) -> int:
    await asyncio.sleep(first)
    return await polling(
        client, url, lambda fields: asyncio.sleep(int(fields.get("retry-after", "0")))
    )


async def polling(
    client: Client, url: str, pause: Callable[[dict[str, str]], Awaitable[None]]
) -> int:
    count = 0
    while True:
        count += 1
        _, fields, body = await client.ask(url)
        if b'"status":"completed"' in body:
            return count
        await pause(fields)


async def blocking_reads(client: Client, url: str, _: int) -> int:
    count, result = 0, f"{url}"
    known: dict[str, str] = {}
    while True:
        count += 1
        _, fields, body = await client.ask(result, Prefer="wait=25", **known)
        if b'"status":"completed"' in body:
            return count
        known = {"If_None_Match": fields["etag"]}


async def events(client: Client, url: str, _: int) -> int:
    client.send("GET", f"{url}/events", {})
    while b'"status":"completed"' not in await client.reader.readline():
        pass
    return 1


FOLLOWERS: dict[str, Callable[[Client, str, int], Awaitable[int]]] = {
    "every 2 s": every_two_seconds,
    "as told": as_told,
    "Prefer: wait": blocking_reads,
    "events": events,
}


async def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await report_reads(folder)
        await report_watchers(folder)
        await report_following(folder)


if __name__ == "__main__":
    asyncio.run(main())
