"""Part `engines`: an asyncjobs job on an engine beside the engine's own task, with results."""

from __future__ import annotations

from benchmarks.jobs import Request, measured
from benchmarks.running import Run
from benchmarks.sides.catalogue import ON_ENGINES

#: The engine of a quick run: its worker starts and stops fast.
QUICK = "SAQ"


def measure(run: Run) -> None:
    names = [name for name, entry in ON_ENGINES.items() if entry.installed and run.wants(name)]
    if run.quick and not run.only:
        names = [name for name in names if name == QUICK]
    for _ in range(run.rounds):
        for name in names:
            for on_engine, side in ((False, "own"), (True, "asyncjobs")):
                with run.attempt(f"{name}, {side}"):
                    found = measured(run.servers, Request(name, on_engine, run.quick))
                    run.figures.add("engines", name, side, found)
