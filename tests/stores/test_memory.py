"""The reference store."""

from __future__ import annotations

from datetime import timedelta

import pytest

from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import HOLD
from asyncjobs.stores.memory import MemoryStore, from_url
from asyncjobs.testing import (
    InlineReadsConformance,
    ListingConformance,
    OutputStreamsConformance,
    StoreConformance,
    TalliesConformance,
    sample_job,
)
from asyncjobs.testing.samples import LANE, LATER, NOW


class TestMemoryStore(
    StoreConformance,
    InlineReadsConformance,
    ListingConformance,
    OutputStreamsConformance,
    TalliesConformance,
):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def test_the_memory_url_has_nothing_after_its_scheme() -> None:
    assert isinstance(from_url("memory://"), MemoryStore)
    with pytest.raises(ConfigurationError, match="memory://"):
        from_url("memory://jobs")


@pytest.mark.anyio
async def test_thousands_of_jobs_are_counted_and_taken_in_order() -> None:
    moments = [NOW - timedelta(seconds=(number * 7919) % 3001) for number in range(3000)]
    jobs = [sample_job(created_at=moment) for moment in moments]
    order = sorted(jobs, key=lambda job: job.created_at)
    gone, left = order[::3], [job for place, job in enumerate(order) if place % 3]
    async with MemoryStore() as store:
        await store.insert(jobs)
        await store.delete([job.id for job in gone])
        for place in (0, 1, 700, 1999):
            count = await store.count_before(left[place], until=NOW + HOLD, most=5000)
            assert count == place
        for start in range(0, 2000, 500):
            taken = await store.take([LANE], now=NOW, until=LATER, limit=500)
            assert [job.id for job in taken] == [job.id for job in left[start : start + 500]]
