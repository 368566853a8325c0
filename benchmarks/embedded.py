"""What the embedded store costs: beside raw sqlite3, and beside a bare route of the same server.

    python benchmarks/embedded.py            # about half a minute; needs the `demo` extra

Everything is measured in turns in one run, since machines are noisy: read the ratios.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext

ROUNDS = 5
CALLERS = 64
SECONDS = 1.0


class Order(BaseModel):
    customer: str = "customer-000000000000000000000000000001"
    items: list[int] = list(range(20))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report_enqueue(folder)
        report_latency(folder)
        report_http(folder)


# jobs per second


def report_enqueue(folder: Path) -> None:
    size = row_size(folder)
    single: list[float] = []
    grouped: list[float] = []
    ours: list[float] = []
    for number in range(ROUNDS):
        single.append(raw_rate(folder / f"single{number}.db", size, 1))
        grouped.append(raw_rate(folder / f"grouped{number}.db", size, CALLERS))
        ours.append(anyio.run(enqueue_rate, folder / f"ours{number}.db"))
    print(f"rows of {size} bytes, synchronous=FULL, medians of {ROUNDS} rounds")
    print(f"raw sqlite3, one per transaction      {median(single):10,.0f} rows/s")
    print(f"raw sqlite3, {CALLERS} per transaction       {median(grouped):10,.0f} rows/s")
    print(f"enqueue, {CALLERS} concurrent callers        {median(ours):10,.0f} jobs/s")
    print(f"  ratio to one per transaction        {ratio(ours, single):10.2f}   (aim: 8)")
    print(f"  ratio to {CALLERS} per transaction         {ratio(ours, grouped):10.2f}\n")


def row_size(folder: Path) -> int:
    """Measure what one job takes, so that the raw rows are as large."""

    async def store_one() -> None:
        jobs = AsyncJobs(f"sqlite:///{folder / 'size.db'}")
        kind = jobs.external("order", payload=Order, result=int)
        async with jobs:
            await jobs.enqueue(kind, Order())

    anyio.run(store_one)
    with sqlite3.connect(folder / "size.db") as db:
        query = (
            "SELECT length(id) + length(state) + length(submission) + length(payload)"
            " FROM jobs JOIN submissions USING (seq)"
        )
        [size] = db.execute(query).fetchone()
    db.close()
    return int(size)


def raw_rate(path: Path, size: int, per_transaction: int) -> float:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body BLOB)")
    body, rows, begun = b"x" * size, 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO rows (body) VALUES (?)", [(body,)] * per_transaction)
        db.execute("COMMIT")
        rows += per_transaction
    rate = rows / (time.perf_counter() - begun)
    db.close()
    return rate


async def enqueue_rate(path: Path) -> float:
    jobs = AsyncJobs(f"sqlite:///{path}")
    kind = jobs.external("order", payload=Order, result=int)
    made = 0

    async def submit() -> None:
        nonlocal made
        while time.perf_counter() - begun < SECONDS:
            await jobs.enqueue(kind, Order())
            made += 1

    async with jobs:
        begun = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(submit)
        return made / (time.perf_counter() - begun)


# time from enqueue to completion


def report_latency(folder: Path) -> None:
    raw: list[float] = []
    ours: list[float] = []
    for number in range(ROUNDS):
        raw += raw_latencies(folder / f"latency-raw{number}.db")
        ours += anyio.run(latencies, folder / f"latency{number}.db")
    p50, p99 = quantile(ours, 50), quantile(ours, 99)
    print(f"enqueue to completed, one at a time   p50 {p50:6.2f} ms, p99 {p99:6.2f} ms")
    print(f"one raw transaction                   p50 {quantile(raw, 50):6.2f} ms")
    print(f"  ratio of the p50s                   {p50 / quantile(raw, 50):10.2f}   (aim: 3)\n")


def raw_latencies(path: Path) -> list[float]:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body BLOB)")
    taken: list[float] = []
    for _ in range(200):
        begun = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO rows (body) VALUES (?)", (b"x" * 1000,))
        db.execute("COMMIT")
        taken.append((time.perf_counter() - begun) * 1000)
    db.close()
    return taken


async def latencies(path: Path) -> list[float]:
    jobs = AsyncJobs(f"sqlite:///{path}")

    @jobs.handler("noop")
    async def noop(_order: Order, _job: JobContext) -> int:
        return 1

    taken: list[float] = []
    async with jobs:
        for _ in range(200):
            begun = time.perf_counter()
            job = await jobs.enqueue(noop, Order())
            await jobs.wait(job.id)
            taken.append((time.perf_counter() - begun) * 1000)
    return taken[20:]


# requests per second

SERVER = """
import socket
import sys
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from asyncjobs import AsyncJobs
from asyncjobs.adapters.starlette import accept, mount

class Order(BaseModel):
    customer: str
    items: list[int]

jobs = AsyncJobs(f"sqlite:///{sys.argv[2]}")
kind = jobs.external("order", payload=Order, result=int)

async def bare(request: Request) -> Response:
    await request.json()
    return JSONResponse({"status": "accepted"}, 202)

async def submit(request: Request) -> Response:
    return await accept(request, kind)

routes = [Route("/bare", bare, methods=["POST"]), Route("/jobs", submit, methods=["POST"])]
app = Starlette(routes=routes)
mount(app, jobs)
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def report_http(folder: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(listening.fileno()), str(folder / "http.db")]
    with subprocess.Popen(command, pass_fds=[listening.fileno()]) as server:
        try:
            bare: list[float] = []
            ours: list[float] = []
            for _ in range(ROUNDS):
                bare.append(asyncio.run(request_rate(port, "/bare")))
                ours.append(asyncio.run(request_rate(port, "/jobs")))
        finally:
            server.terminate()
    print(f"POST a bare Starlette route           {median(bare):10,.0f} requests/s")
    print(f"POST a job, answered by 202           {median(ours):10,.0f} requests/s")
    print(f"  ratio                               {ratio(ours, bare):10.2f}   (aim: 0.40)")


async def request_rate(port: int, path: str) -> float:
    """Keep as many connections busy as there are callers, with as little client as can be."""
    body = json.dumps(Order().model_dump()).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    answered = 0
    end = time.perf_counter() + SECONDS

    async def client() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 202"):
                raise SystemExit(f"The server answered {answer!r}")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split()[0]))
            answered += 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*[client() for _ in range(CALLERS)])
    return answered / SECONDS


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Compare round by round, and take the middle."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
