"""A queue with a quick rhythm, so that what takes seconds takes milliseconds.

Leases are longer than a busy machine may pause: those who want to see one lapse wait for it.

A test marked `every_store` that asks for `make` or `jobs` runs on every store.
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
