"""A way to run jobs, behind the few calls that measurements make."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from benchmarks.places import Place

#: How many jobs a worker process may hold at once, if its library lets one say so.
CONCURRENCY = 100

#: What each job gets, and what it returns.
PAYLOAD = {"x": 1}
RESULT = 1


@asynccontextmanager
async def nothing() -> AsyncGenerator[None]:
    yield


class Side:
    """A library, or a floor.

    Where a library blocks, `blocking` is set and the methods are plain functions: measurements then
    use threads where several callers are wanted.
    """

    blocking = False
    #: Whether a result is kept in the store, and read by `ended`.
    keeps_results = True
    #: Jobs that a worker process is given at once; fewer for those that would take minutes.
    drained = 5000

    def __init__(self, place: Place) -> None:
        self.place = place

    def opened(self) -> AbstractAsyncContextManager[object]:
        """Return what must be open while jobs are submitted."""
        return nothing()

    def submit(self) -> Any:
        """Submit one job that does nothing; return by what it is found again."""
        raise NotImplementedError

    #: `submit_many(count)` submits that many by one call, and returns their tickets in order.
    submit_many: Any = None

    def ended(self, ticket: Any) -> Any:
        """Read state and result from the store; return whether the job has completed."""
        raise NotImplementedError

    def worker(self) -> Sequence[str]:
        """Return Python's arguments for a worker process; none if jobs run in this process."""
        return ()


async def settled(value: Any) -> Any:
    """Return the value, or what it comes to."""
    return await value if inspect.isawaitable(value) else value
