"""A queue with a quick rhythm, so that what takes seconds takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from asyncjobs import AsyncJobs, Settings
from asyncjobs.stores.memory import MemoryStore

QUICK = Settings(
    lease=timedelta(seconds=0.6),
    redelivery=timedelta(seconds=0.6),
    poll=timedelta(seconds=0.05),
    sweep=timedelta(seconds=0.05),
    progress=timedelta(seconds=0.01),
    grace=timedelta(seconds=0.2),
)

Make = Callable[..., AsyncJobs]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def make(store: MemoryStore) -> Make:
    """Make a queue on the test's store; several of them share it, as processes do."""

    def build(**arguments: object) -> AsyncJobs:
        return AsyncJobs(**{"store": store, "settings": QUICK, **arguments})  # type: ignore[arg-type]

    return build


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return make()
