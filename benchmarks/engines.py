"""What a job costs over a plain task of the same engine, whose own result is kept, in one run.

    python -m benchmarks.engines            # all engines; three minutes; needs the extra `test`
    python -m benchmarks.engines celery rq

Broker, result backend and store are one Valkey; for Procrastinate, and for the store beside it, one
PostgreSQL. Each engine has one worker of two slots. Both sides take turns; the ratio is between
their medians. Aim: a job costs at most 1.3 times what a task does.
"""

from __future__ import annotations

import inspect
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.stores import servers

ROOT = Path(__file__).parents[1]
ENGINES = ("celery", "rq", "dramatiq", "taskiq", "saq", "procrastinate")
MANY, ROUNDS, CALLERS, SINGLE = 500, 5, 100, 100
AIM = 1.3

Run = Callable[[int], Awaitable[object]]


async def ours(jobs: Any, count: int) -> None:
    """Submit jobs, a hundred callers at a time, and wait until each has ended."""
    callers = anyio.Semaphore(CALLERS)

    async def submit_and_wait(number: int) -> None:
        async with callers:
            handle = await jobs.enqueue("noop", number)
        assert await handle.result(timeout=120) == number

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(submit_and_wait, number)


async def own(run: Callable[[int], Any], count: int) -> None:
    """Run tasks of the engine's own; engines that block do it in a thread."""
    if inspect.iscoroutinefunction(run):
        await run(count)
    else:
        await anyio.to_thread.run_sync(run, count)


async def rate(run: Run) -> float:
    began = time.perf_counter()
    await run(MANY)
    return MANY / (time.perf_counter() - began)


async def latency(run: Run) -> float:
    found: list[float] = []
    for _ in range(SINGLE // ROUNDS):
        began = time.perf_counter()
        await run(1)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


async def measure(bench: Any, name: str) -> None:
    sides: dict[str, Run] = {"own": partial(own, bench.own), "ours": partial(ours, bench.jobs)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    waits: dict[str, list[float]] = {side: [] for side in sides}
    async with bench.opened(), bench.jobs:
        process = await started(bench.worker)
        for run in sides.values():
            await run(20)  # the worker is up, connections are open
        for _ in range(ROUNDS):
            for side, run in sides.items():
                rates[side].append(await rate(run))
                waits[side].append(await latency(run))
        process.terminate()
        process.wait(30)
    report(name, {side: statistics.median(rates[side]) for side in sides}, waits)


def report(name: str, rates: dict[str, float], waits: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(found) * 1000 for side, found in waits.items()}
    cost, delay = rates["own"] / rates["ours"], medians["ours"] / medians["own"]
    print(
        f"{name:>14}  {rates['own']:7.0f} {rates['ours']:7.0f}  x{cost:.2f}{missed(cost)}"
        f"   {medians['own']:7.2f} {medians['ours']:7.2f}  x{delay:.2f}{missed(delay)}",
        flush=True,
    )


def missed(ratio: float) -> str:
    return " " if ratio <= AIM else "*"


async def started(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log
            )

    return await anyio.to_thread.run_sync(start)


def run_one(name: str) -> None:
    """Measure one engine in this process; its servers are those of the environment."""
    anyio.run(measure, import_module(f"benchmarks.engines_measured.bench_{name}").bench, name)


def main() -> None:
    wanted = sys.argv[1:] or list(ENGINES)
    if os.environ.get("BENCHMARK_ENGINE"):
        run_one(os.environ["BENCHMARK_ENGINE"])
        return
    print(f"{'':>14}  {'tasks/s':>7} {'jobs/s':>7}  cost    {'task ms':>8} {'job ms':>7}  cost")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # the servers run as nobody
        postgres, valkey = servers(Path(folder), stack)
        for name in wanted:
            broker, store = (f"{valkey}/1", f"{valkey}/2")
            if name == "procrastinate":
                broker = store = postgres
            environment = {**os.environ, "BENCHMARK_ENGINE": name, "BROKER": broker, "STORE": store}
            subprocess.run(
                [sys.executable, "-m", "benchmarks.engines"], env=environment, check=True, cwd=ROOT
            )
    print(f"* misses the aim of {AIM}. Ratios are of medians of {ROUNDS} rounds.")


if __name__ == "__main__":
    main()
