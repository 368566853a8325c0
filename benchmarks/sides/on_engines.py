"""What the modules of engines share: the queue of ours that runs its jobs on the engine."""

from __future__ import annotations

from asyncjobs import AsyncJobs, Dispatcher
from benchmarks.places import Place
from benchmarks.sides.ours import with_handler

#: An engine's module is loaded by its worker, too, which learns from the environment where it is.
PLACE = Place.current()


def queue_on(dispatcher: Dispatcher, store: str = "redis") -> AsyncJobs:
    return with_handler(AsyncJobs(PLACE.store(store), dispatcher=dispatcher))
