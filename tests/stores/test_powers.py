"""A queue uses exactly the powers that its store declares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Self

import pytest

from asyncjobs import AsyncJobs, JobContext, Selection
from asyncjobs.core.job import JobId
from asyncjobs.errors import ConfigurationError, UnusableConnection
from asyncjobs.protocols import (
    ChangeNotices,
    Inspection,
    Listing,
    MigrationScript,
    StoreClock,
    Transactions,
)
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import sample_job

pytestmark = pytest.mark.anyio

POWERS = [ChangeNotices, Inspection, Listing, MigrationScript, StoreClock, Transactions]


class FiveMethods:
    """A store with the five methods and no others."""

    def __init__(self, powers: frozenset[type]) -> None:
        inner = MemoryStore()
        self.powers = powers
        self.insert, self.get, self.replace = inner.insert, inner.get, inner.replace
        self.take, self.delete = inner.take, inner.delete

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class Undeclared(MemoryStore):
    """A store with the methods of every power that declares none; each call is an error."""

    powers: frozenset[type] = frozenset()

    def changes(self) -> AsyncIterator[Sequence[JobId]]:
        raise AssertionError("changes")

    async def now(self) -> datetime:
        raise AssertionError("now")

    async def list(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("list")

    async def count_before(self, *_: Any, **__: Any) -> int:
        raise AssertionError("count_before")

    async def first_due(self, *_: Any) -> Any:
        raise AssertionError("first_due")

    async def insert_within(self, *_: Any) -> Any:
        raise AssertionError("insert_within")


@pytest.mark.parametrize("power", POWERS, ids=lambda power: power.__name__)
async def test_a_store_that_lacks_the_methods_of_a_declared_power_is_refused(power: type) -> None:
    jobs = AsyncJobs(FiveMethods(frozenset({power})))
    with pytest.raises(
        ConfigurationError, match=f"FiveMethods declares the power {power.__name__}"
    ):
        async with jobs:
            pass


async def test_a_store_without_powers_runs_jobs() -> None:
    async with queue(FiveMethods(frozenset())) as jobs:
        job = await jobs.enqueue("double", 21)
        assert await job.result(timeout=60) == 42


async def test_an_undeclared_power_is_not_used() -> None:
    async with queue(Undeclared()) as jobs:
        job = await jobs.enqueue("double", 21)
        assert await job.result(timeout=60) == 42
        with pytest.raises(ConfigurationError):
            await jobs.list(Selection())
        assert await jobs.position(sample_job()) is None
        assert await jobs.oldest_waiting() == {}
        with pytest.raises(UnusableConnection):
            await jobs.enqueue("double", 21, connection=object())


def queue(store: Any) -> AsyncJobs:
    jobs = AsyncJobs(store)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    return jobs
