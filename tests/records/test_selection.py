"""A list matches its selection, whatever subset of it the store supports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from asyncjobs import AsyncJobs, Page, Selection
from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import ConfigurationError, InvalidQuery
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import begun, ids

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class NewerSelection(Selection):
    """A `Selection` of a later version."""

    queue: str | None = None


class OlderStore(MemoryStore):
    """A store written before selections had a queue."""

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        known = Selection(which.user_id, which.type, which.status)
        return await super().list(known, limit=limit, after=after)


class NewerStore(MemoryStore):
    """A store that can select by queue."""

    filters = MemoryStore.filters | {"queue"}


class ListsAll(MemoryStore):
    """A store that ignores every selection."""

    async def list(self, _which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await super().list(Selection(), limit=limit, after=after)


async def test_a_field_that_the_store_does_not_declare_is_refused() -> None:
    async with AsyncJobs(OlderStore()) as jobs:
        with pytest.raises(ConfigurationError, match="by these fields: queue"):
            await jobs.list(NewerSelection(user_id="ann", queue="high"))
        assert list((await jobs.list(NewerSelection(user_id="ann"))).jobs) == []


async def test_a_field_that_the_store_declares_is_passed_on() -> None:
    store = NewerStore()
    high, low = sample_job(queue="high"), sample_job(queue="low")
    async with AsyncJobs(store) as jobs:
        await store.insert([high, low])
        assert ids((await jobs.list(NewerSelection(queue="high"))).jobs) == [high.id]


@pytest.mark.parametrize(
    "which", [Selection(user_id="ann"), Selection(type="import"), Selection(user_id="")]
)
async def test_jobs_listed_by_the_store_are_filtered_again(which: Selection) -> None:
    store = ListsAll()
    stored = [
        sample_job(user_id=owner, type=kind)
        for owner in (None, "", "ann", "Ann")
        for kind in ("import", "export")
    ]
    async with AsyncJobs(store) as jobs:
        await store.insert(stored)
        page = await jobs.list(which)
        assert ids(page.jobs) == ids([job for job in reversed(stored) if which.fits(job)])
        assert 0 < len(page.jobs) < len(stored)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(limit: int) -> None:
    async with AsyncJobs(MemoryStore()) as jobs:
        with pytest.raises(InvalidQuery, match="limit"):
            await jobs.list(Selection(), limit=limit)


def some_jobs() -> list[Job]:
    job = sample_job(user_id="ann")
    return [job, begun(job), sample_job(user_id=""), sample_job(type="import")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"user_id": "ann"}, [0, 1]),
        ({"user_id": ""}, [2]),
        ({"user_id": "Ann"}, []),
        ({"type": "export"}, [0, 1, 2]),
        ({"status": JobStatus.PROCESSING}, [1]),
        ({"user_id": "ann", "type": "export", "status": JobStatus.PENDING}, [0]),
        ({"user_id": "ann", "type": "import"}, []),
    ],
)
def test_a_job_fits_if_it_matches_every_given_field(
    given: dict[str, Any], expected: list[int]
) -> None:
    jobs, which = some_jobs(), replace(Selection(), **given)
    assert which.given() == given
    assert [place for place, job in enumerate(jobs) if which.fits(job)] == expected


def test_the_text_of_a_status_is_converted() -> None:
    status: Any = "failed"
    assert Selection(status=status).status is JobStatus.FAILED
    assert replace(NewerSelection(), status=status).status is JobStatus.FAILED
    status = "lost"
    with pytest.raises(ValueError, match="lost"):
        Selection(status=status)
