"""Part `stores`: asyncjobs, a floor and other libraries on each store, in turns."""

from __future__ import annotations

from benchmarks.jobs import Request, measured
from benchmarks.running import Run
from benchmarks.sides.catalogue import SIDES


def measure(run: Run) -> None:
    names = [name for name, entry in SIDES.items() if entry.installed and run.wants(name)]
    if run.quick and not run.only:  # the part `engines` measures these
        names = [name for name in names if "/" in name]
    for number in range(run.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            with run.attempt(name):
                found = measured(run.servers, Request(name, on_engine=False, quick=run.quick))
                run.figures.add("stores", SIDES[name].store, name.partition("/")[0], found)
