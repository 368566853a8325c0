"""A list matches its selection, whatever subset of it the store supports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from asyncjobs import AsyncJobs, Page, Selection
from asyncjobs.core.job import Job, JobStatus, new_job_id
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


class BeforeMembers(MemoryStore):
    """A store written before selections could leave out the members of batches."""

    filters = MemoryStore.filters - {"members"}

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        assert which.members
        return await super().list(which, limit=limit, after=after)


async def test_members_are_removed_from_the_pages_of_a_store_that_does_not_leave_them_out() -> None:
    store, batch = BeforeMembers(), new_job_id()
    own = [sample_job(user_id="ann") for _ in "12"]
    members = [sample_job(user_id="ann", batch=batch) for _ in "12"]
    which = Selection(user_id="ann", members=False)
    async with AsyncJobs(store) as jobs:
        await store.insert([own[0], members[0], own[1], members[1]])
        first = await jobs.list(which, limit=2)
        rest = await jobs.list(which, limit=2, after=first.next)
        assert [ids(first.jobs), ids(rest.jobs)] == [[own[1].id], [own[0].id]]
        assert len((await jobs.list(Selection(user_id="ann"))).jobs) == 4


@pytest.mark.parametrize(
    "which", [Selection(batch=new_job_id(), members=False), Selection(tag="a", batch=new_job_id())]
)
async def test_properties_that_exclude_each_other_are_refused(which: Selection) -> None:
    async with AsyncJobs(MemoryStore()) as jobs:
        with pytest.raises(InvalidQuery, match="batch"):
            await jobs.list(which)
        with pytest.raises(InvalidQuery, match="batch"):
            await anext(jobs.subscribe_list(which))


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
    member = sample_job(type="import", batch=new_job_id(), tags=("a",))
    return [job, begun(job), sample_job(user_id=""), member]


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
        ({"tag": "a"}, [3]),
        ({"members": False}, [0, 1, 2]),
        ({"members": False, "tag": "a"}, []),
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
