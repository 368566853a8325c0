"""Leaves jobs to worker processes, which take them from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from asyncjobs.core.job import Delivery, Job


class WorkerDispatcher:
    """The dispatcher of a process that runs no jobs: `asyncjobs worker` processes do."""

    delivery = Delivery.PULL

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    def reserve(self, _most: int, /) -> int:
        return 0

    def release(self, _places: int, /) -> None:
        return None

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        """Do nothing: the jobs are due in their lanes, and the store notifies the workers."""
