"""Shared by the modules of engines: the asyncjobs queue that runs its jobs on the engine."""

from __future__ import annotations

from asyncjobs import AsyncJobs, Dispatcher
from benchmarks.places import Place
from benchmarks.sides.ours import with_handler

#: The engine's worker loads its module, too, and gets its place from the environment.
PLACE = Place.current()


def queue_on(dispatcher: Dispatcher, store: str = "redis") -> AsyncJobs:
    return with_handler(AsyncJobs(PLACE.store(store), dispatcher=dispatcher))
