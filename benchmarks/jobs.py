"""Measure one side: submit, drain, follow, read. Each round runs it in a new process.

The parts `stores` and `engines` start it: `python -m benchmarks.jobs REQUEST`, which prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import stamps
from benchmarks.measuring import Plan, in_flight, latencies, many, one_after_another, spread, until
from benchmarks.places import ROOT, Place, Servers
from benchmarks.processes import Process
from benchmarks.sides.catalogue import ON_ENGINES, SIDES, Entry
from benchmarks.sides.side import Side, settled

BATCH = 500
#: How long a worker has to run the jobs of a drain.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """The process's task: a side of the catalogue, or an asyncjobs queue on the engine."""

    name: str
    on_engine: bool
    quick: bool

    @property
    def entry(self) -> Entry:
        return (ON_ENGINES if self.on_engine else SIDES)[self.name]


def measured(servers: Servers, request: Request) -> Mapping[str, float]:
    """Start the process, and return its figures."""
    with servers.place(request.entry.store) as place:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.jobs", json.dumps(asdict(request))],
            env=place.environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
    if done.returncode:
        raise RuntimeError(f"{request.name}: {done.stderr[-6000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


async def measure(side: Side, plan: Plan) -> dict[str, float]:
    found: dict[str, float] = {}
    async with side.opened():
        if side.worker():
            found |= await _with_worker(side, plan)
        else:
            found |= await _in_place(side, plan)
        found["submit one after another [jobs/s]"] = await one_after_another(
            side.submit, plan.seconds
        )
        found["submit 100 in flight [jobs/s]"] = await in_flight(side.submit, plan.seconds)
        if side.submit_many is not None:
            calls = await one_after_another(lambda: side.submit_many(BATCH), plan.seconds)
            found["submit batches [jobs/s]"] = BATCH * calls
    return found


async def _with_worker(side: Side, plan: Plan) -> dict[str, float]:
    """Give a worker process all jobs at once, then one at a time, then all while it waits."""
    count = plan.drained(side.drained)
    tickets = await many(side.submit, count)
    async with AsyncExitStack() as stack:
        worker = stack.enter_context(Process(side.worker(), side.place))
        try:
            await _all_ended(side, tickets, worker)
        except TimeoutError as error:
            raise TimeoutError(f"{stamps.count()} of {count}: {worker.log()}") from error
        found = {"drain [jobs/s]": len(tickets) / (time.monotonic() - stamps.read()[0])}
        found |= await latencies(lambda: _submitted_and_ended(side, worker), plan.latencies)
        found |= await _read(side, tickets, plan)
        stamps.clear()
        begun = time.process_time() + worker.cpu()
        again = await many(side.submit, count)
        await _all_ended(side, again, worker)
        for ticket in again:
            await _ended(side, ticket, worker)
        taken = time.process_time() + worker.cpu() - begun
        found["CPU of a job [us]"] = 1e6 * taken / len(again)
    return found


async def _in_place(side: Side, plan: Plan) -> dict[str, float]:
    count = plan.drained(side.drained)
    cpu, begun = time.process_time(), time.monotonic()
    tickets = await many(side.submit, count)
    await _all_ended(side, tickets, None)
    found = {"drain [jobs/s]": len(tickets) / (time.monotonic() - begun)}
    for ticket in tickets:
        await _ended(side, ticket, None)
    found["CPU of a job [us]"] = 1e6 * (time.process_time() - cpu) / len(tickets)
    found |= await latencies(lambda: _submitted_and_ended(side, None), plan.latencies)
    return found | await _read(side, tickets, plan)


async def _all_ended(side: Side, tickets: list[Any], worker: Process | None) -> None:
    """Wait until all handlers have run, and a sample of the results can be read."""
    check = worker.check if worker else _nothing
    await until(lambda: stamps.count() >= len(tickets), check, PATIENCE_SECONDS)
    for ticket in tickets if len(tickets) < 100 else spread(tickets, 50):
        await _ended(side, ticket, worker)
    if worker:
        for ticket in tickets[-100:]:
            await _ended(side, ticket, worker)


async def _submitted_and_ended(side: Side, worker: Process | None) -> None:
    await _ended(side, await settled(side.submit()), worker)


async def _ended(side: Side, ticket: Any, worker: Process | None) -> None:
    await until(lambda: side.ended(ticket), worker.check if worker else _nothing, 20)


async def _read(side: Side, tickets: list[Any], plan: Plan) -> dict[str, float]:
    turn = 0

    def following() -> Any:
        nonlocal turn
        turn += 1
        return tickets[turn % len(tickets)]

    async def read() -> None:
        await side.ended(following())

    def read_blocking() -> None:
        side.ended(following())

    call = read_blocking if side.blocking else read
    return {
        "read one after another [reads/s]": await one_after_another(call, plan.seconds),
        "read 100 in flight [reads/s]": await in_flight(call, plan.seconds),
    }


def _nothing() -> None: ...


def main() -> None:
    request, place = Request(**json.loads(sys.argv[1])), Place.current()
    stamps.use(Path(place.folder) / "stamps")
    found = asyncio.run(measure(request.entry.side(place), Plan(request.quick)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
