"""What following a job costs, by each transport, and what the client costs to import.

    python -P benchmarks/clients.py            # under a minute; needs the `demo` extra
    python -P benchmarks/clients.py --minute   # with a job of a minute, too

`-P`, because `http.py` beside this file is not the standard library's.

The server is a process of its own; a job's result is the moment at which it ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from asyncjobs.client import Following, JobsClient, Transport

LENGTHS = (0.1, 1, 10)
ROUNDS = 10

SERVER = """
import time
import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, mount

jobs = AsyncJobs("memory://")
app = FastAPI()
mount(app, jobs)

@jobs.handler("nap")
async def nap(seconds: float, job: JobContext) -> float:
    await anyio.sleep(seconds)
    return time.monotonic()

@app.post("/naps")
async def create(seconds: float, accept: Accept) -> Response:
    return await accept(nap, seconds)
"""


@contextmanager
def serving() -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "napping.py").write_text(SERVER, encoding="utf-8")
        options = ("--app-dir", folder, "--port", str(port), "--log-level", "error")
        command = [sys.executable, "-m", "uvicorn", "napping:app", *options]
        process = subprocess.Popen(command, env={**os.environ})
        try:
            while True:
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/")
                except httpx2.TransportError:
                    time.sleep(0.05)
                else:
                    break
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


class Counting(httpx2.HTTPTransport):
    """Counts requests, and the bytes of the bodies that came."""

    requests = 0
    bytes = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = Counted(self, response.stream)
        return response


class Counted(httpx2.SyncByteStream):
    def __init__(self, counting: Counting, stream: httpx2.SyncByteStream) -> None:
        self._counting = counting
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._counting.bytes += len(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def follow(url: str, transport: Transport, seconds: float) -> tuple[int, int, float]:
    """Return the requests after the submission, the bytes read, and the delay in milliseconds."""
    counting = Counting()
    with httpx2.Client(base_url=url, transport=counting) as http:
        client = JobsClient(http=http, options=Following(transports=[transport]))
        job = client.submit("POST", f"/naps?seconds={seconds}")
        counting.requests = counting.bytes = 0
        ended: Any = job.result()
        return counting.requests, counting.bytes, (time.monotonic() - ended) * 1000


def import_time(statement: str) -> float:
    timed = f"import time; a = time.perf_counter(); {statement}; print(time.perf_counter() - a)"
    runs = [
        float(subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True).stdout)
        for _ in range(ROUNDS)
    ]
    return min(runs) * 1000


def main() -> None:
    lengths = (*LENGTHS, 60) if "--minute" in sys.argv else LENGTHS
    with serving() as url:
        follow(url, Transport.EVENTS, 0)
        print("job s  transport  requests  bytes read  known after ms")
        for seconds in lengths:
            for transport in Transport:
                requests, read, delay = follow(url, transport, seconds)
                print(f"{seconds:5}  {transport:9}  {requests:8}  {read:10}  {delay:14.1f}")
    library = import_time("import httpx2")
    both = import_time("import asyncjobs.client, httpx2")
    print(f"import httpx2 {library:.0f} ms; with asyncjobs.client {both / library:.2f} times that")


if __name__ == "__main__":
    main()
