"""The fixtures `make` and `jobs`: queues with short intervals, on the store of the test.

The lease is longer than a busy machine may pause. A test marked `every_store` that uses one of them
runs on every store.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncjobs import AsyncJobs, Settings

QUICK = Settings(
    lease=timedelta(seconds=2),
    redelivery=timedelta(seconds=0.6),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    progress_interval=timedelta(seconds=0.01),
    grace=timedelta(seconds=0.2),
)

Make = Callable[..., AsyncJobs]


@pytest.fixture
def make(new_store: Callable[[], Any]) -> Make:
    """Make a queue on the test's store; several of them share it, as processes do."""

    def build(**arguments: Any) -> AsyncJobs:
        given: dict[str, Any] = {"store": new_store(), "settings": QUICK, **arguments}
        return AsyncJobs(**given)

    return build


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return make()
