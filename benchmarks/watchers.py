"""Part `watchers`: the resources of each watcher of a job, and the delay until all get a change."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

from benchmarks.http import serving
from benchmarks.load import Request, ask
from benchmarks.processes import Process
from benchmarks.running import Run

APPS = {
    "asyncjobs": "watched_jobs",
    "floor": "watched_floor",
    "StreamingResponse": "watched_streaming",
    "sse-starlette": "watched_sse_starlette",
}
COUNTS = (100, 1000, 5000)
CHANGES = 15


class Watcher(asyncio.Protocol):
    """Reads events; records the delay of each."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.delays: list[float] = []
        self.seen = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(Request("GET", self._path, 200).encoded())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.seen += data.count(b'"status"')
        for part in data.split(b"at=")[1:]:
            self.delays.append(1000 * (now - float(part.partition(b";")[0])))


def measure(run: Run) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for _ in range(run.rounds):
        for count in (50,) if run.quick else COUNTS:
            for side, app in APPS.items():
                if side == "sse-starlette" and not find_spec("sse_starlette"):
                    continue
                with run.attempt(f"{count} watchers, {side}"), run.servers.place("") as place:
                    with serving(app, place, "memory") as (port, process):
                        found = asyncio.run(_measure(port, process, count))
                    run.figures.add("watchers", f"{count}", side, found)


async def _measure(port: int, process: Process, count: int) -> dict[str, float]:
    _, ids = await ask(port, Request("GET", "/ids", 200))
    await _watch(port, ids["path"], 20)  # the first ones load modules
    before = process.memory()
    watchers: list[Watcher] = []
    while len(watchers) < count:  # no more at once than the server's backlog
        watchers += await _watch(port, ids["path"], min(200, count - len(watchers)))
    found = {"memory of each [KiB]": (process.memory() - before) / count / 1024}
    medians: list[float] = []
    slow: list[float] = []
    cpu = process.cpu()
    for number in range(1, CHANGES + 1):
        for one in watchers:
            one.delays.clear()
        await ask(port, Request("POST", f"/change?percent={number}", 200))
        await _until(lambda: all(one.delays for one in watchers))
        delays = sorted(one.delays[-1] for one in watchers)
        medians.append(delays[len(delays) // 2])
        slow.append(delays[int(len(delays) * 0.95)])
    found["CPU of each event [us]"] = 1e6 * (process.cpu() - cpu) / count / CHANGES
    for one in watchers:
        one.transport.abort()
    return found | {"p50 [ms]": statistics.median(medians), "p95 [ms]": statistics.median(slow)}


async def _watch(port: int, path: str, count: int) -> list[Watcher]:
    connect = asyncio.get_running_loop().create_connection
    made = [connect(lambda: Watcher(path), "127.0.0.1", port) for _ in range(count)]
    watchers = [watcher for _, watcher in await asyncio.gather(*made)]
    await _until(lambda: all(one.seen for one in watchers))
    return watchers


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # checks some thousand watchers
            await asyncio.sleep(0.002)
