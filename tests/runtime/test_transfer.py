"""A transfer copies jobs exactly, resumes after an interruption, or is refused."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjobs import Job
from asyncjobs.core import lifecycle
from asyncjobs.core.batches import batch_of
from asyncjobs.core.job import JobStatus, Lease, new_job_id
from asyncjobs.core.labels import label_of_batch
from asyncjobs.errors import ConfigurationError, StoreUnavailable, TransferRefused
from asyncjobs.protocols import Change, Selection
from asyncjobs.runtime.transfer import Digest, TransferPlan, copy_jobs, plan_transfer, same_job
from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import (
    LATER,
    NOW,
    begun,
    change_of,
    failed,
    full_job,
    ids,
    sample_submission,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]
Holding = Callable[[Sequence[Job]], AbstractAsyncContextManager[Any]]


def quiet(_what: str, _done: int, _total: int) -> None:
    """Report no progress."""


def samples(number: int = 20) -> list[Job]:
    """Make waiting, running and ended jobs, with and without keys."""
    waiting = [sample_job(idempotency_key=f"k{one}" if one % 2 else None) for one in range(number)]
    ended = [lifecycle.complete(begun(job), NOW, token="t", result=b'{"a":1}') for job in waiting]
    return [full_job(), *(ended[one] if one % 3 else waiting[one] for one in range(number))]


async def all_of(store: Any) -> list[Job]:
    """Read all jobs, oldest first."""
    page = await store.list(Selection(), limit=10_000)
    found = await store.get([job.id for job in reversed(page.jobs)])
    return [job for job in found if job is not None]


@pytest.fixture
def holding(new_url: Callable[[], str]) -> Holding:
    """Open new stores, with some jobs."""

    @asynccontextmanager
    async def opened(jobs: Sequence[Job]) -> AsyncGenerator[Any]:
        async with store_from_url(new_url()) as store:
            await store.insert(jobs)
            yield store

    return opened


class Breaking(MemoryStore):
    """Fails at one of the writes, before or after it is carried out."""

    def __init__(self, calls: int, *, after: bool) -> None:
        super().__init__()
        self.calls = calls
        self.after = after

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        self.calls -= 1
        if self.calls == 0 and not self.after:
            raise StoreUnavailable("the target", "it broke")
        stored = await super().insert(jobs)
        if self.calls == 0:
            raise StoreUnavailable("the target", "it broke")
        return stored


async def test_every_job_is_copied_completely_and_in_order(holding: Holding) -> None:
    jobs = samples()
    async with holding(jobs) as source, holding([]) as target:
        moved = await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert await all_of(target) == await all_of(source) == jobs
        assert (moved.digest.jobs, moved.copied, moved.updated) == (len(jobs), len(jobs), 0)


@settings(max_examples=20)
@given(call=st.integers(1, 3), after=st.booleans(), late=st.integers(0, 3))
def test_an_interrupted_transfer_resumes_without_duplicates(
    call: int, after: bool, late: int
) -> None:
    async def check() -> None:
        jobs, further = samples(50), samples(late)
        async with MemoryStore() as source, Breaking(call, after=after) as target:
            await source.insert(jobs)
            with pytest.raises(StoreUnavailable):
                await copy_jobs(source, target, await plan_transfer(source, target), quiet)
            await source.insert(further)
            planned = await plan_transfer(source, target)
            moved = await copy_jobs(source, target, planned, quiet)
            assert moved.copied == len(planned.ids) - planned.present
            assert await all_of(target) == await all_of(source)

    anyio.run(check)


async def test_changes_of_the_source_between_two_runs_are_copied(
    holding: Holding,
) -> None:
    waiting, running, taken = sample_job(), begun(sample_job()), sample_job()
    async with holding([waiting, running, taken]) as source, holding([]) as target:
        await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        done = lifecycle.complete(running, NOW, token="t", result=b"7")
        await source.replace([Change(begun(waiting), 1), Change(done, running.revision)])
        # A take changes no revision.
        await source.take(["default"], now=NOW, until=LATER, limit=5)
        moved = await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert (moved.copied, moved.updated) == (0, 3)
        assert await all_of(target) == await all_of(source)


async def test_labels_and_counters_are_copied(holding: Holding) -> None:
    batch = new_job_id()
    first = sample_job(batch=batch, tags=("a",), user_id="ann")
    waiting, plain = sample_job(batch=batch, tags=("a", "b")), sample_job()
    early, late = failed(sample_job(batch=batch)), sample_job(batch=batch)
    selections = [
        *(Selection(tag=tag) for tag in "abc"),
        Selection("ann", tag="a"),
        Selection(batch=batch),
        Selection(status=JobStatus.FAILED, batch=batch),
    ]

    async def seen(store: Any) -> list[object]:
        pages = [await store.list(which, limit=99) for which in selections]
        [tally] = await store.tally([label_of_batch(batch)])
        return [+Counter(tally), *(ids(page.jobs) for page in pages)]

    async with holding([first, waiting, plain, early, late]) as source, holding([]) as target:
        await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert await seen(target) == await seen(source)
        # What has changed in the source when a transfer is repeated is counted again.
        await source.replace([change_of(late, failed(late)), change_of(first, begun(first))])
        await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert await seen(target) == await seen(source)
        counts = {"total": 4, "pending": 1, "processing": 1, "failed": 2, "progress": 200}
        assert (await seen(target))[0] == counts
        assert (await seen(target))[-1] == ids([late, early])


async def test_the_counters_of_an_open_batch_cover_jobs_that_were_deleted(holding: Holding) -> None:
    batch = batch_of(sample_submission(), 3)
    members = [sample_job(batch=batch.id) for _ in range(3)]
    done = [lifecycle.complete(begun(job), NOW, token="t", result=b"1") for job in members[:2]]
    label = label_of_batch(batch.id)

    async def tally_of(store: Any) -> Counter[str]:
        [tally] = await store.tally([label])
        counted: Counter[str] = Counter(tally)
        return +counted

    async with holding([batch, *done, members[2]]) as source, holding([]) as target:
        await source.delete(ids(done))
        for _ in range(2):  # a repetition adds nothing
            await copy_jobs(source, target, await plan_transfer(source, target), quiet)
            assert await tally_of(target) == await tally_of(source)
        counted = {"total": 3, "completed": 2, "pending": 1, "progress": 200}
        assert await tally_of(target) == counted


async def test_a_target_whose_jobs_changed_is_left_unchanged(holding: Holding) -> None:
    job = sample_job()
    async with holding([job]) as source, holding([job]) as target:
        await target.replace([Change(begun(job), job.revision)])
        with pytest.raises(TransferRefused, match="changed in the target"):
            await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert await all_of(target) == [begun(job)]


async def test_a_target_with_other_jobs_is_refused(holding: Holding) -> None:
    async with holding(samples()) as source, holding([sample_job()]) as target:
        with pytest.raises(TransferRefused, match="has other jobs"):
            await plan_transfer(source, target)


async def test_an_idempotency_key_in_use_in_the_target_is_an_error(holding: Holding) -> None:
    job = sample_job(idempotency_key="k")
    async with holding([job]) as source, holding([]) as target:
        planned = await plan_transfer(source, target)
        other = sample_job(idempotency_key="k")
        await target.insert([other])
        with pytest.raises(TransferRefused, match=f"{other.id} has the idempotency key"):
            await copy_jobs(source, target, planned, quiet)


async def test_changes_of_the_source_during_a_transfer_are_detected(holding: Holding) -> None:
    job = sample_job()

    async with holding([job]) as source, holding([]) as target:
        planned = await plan_transfer(source, target)
        before = TransferPlan([], planned.present, planned.running, [])
        with pytest.raises(TransferRefused, match="stop all processes"):
            await copy_jobs(source, target, before, quiet)


@pytest.mark.parametrize(
    "change",
    [
        {"payload_json": b"2"},
        {"result_json": b"null"},
        {"revision": 9},
        {"version": 9},
        {"due_at": LATER},
        {"lane": "other"},
        {"user_id": ""},
        {"progress": 1},
        {"retry_of": new_job_id()},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_checksum_sees_every_part_of_a_job(change: dict[str, Any]) -> None:
    job = sample_job()
    other = job.model_copy(update=change)
    assert not same_job(job, other)
    assert Digest().plus([job]) != Digest().plus([other])


async def test_a_checksum_ignores_order_and_detects_duplicates() -> None:
    one, two, three = (sample_job() for _ in range(3))
    assert Digest().plus([one, two]).plus([three]) == Digest().plus([three, one, two])
    assert Digest().plus([one, one]) != Digest().plus([two, two])


async def test_running_jobs_are_counted_by_their_leases(holding: Holding) -> None:
    now = datetime.now(UTC)

    def leased(until: datetime) -> Job:
        job = sample_job(created_at=now)
        return lifecycle.start(job, now, Lease(worker="w", token="t", until=until))

    alive, lapsed = leased(now + timedelta(hours=1)), leased(now - timedelta(hours=1))
    async with holding([alive, lapsed, sample_job()]) as source, holding([]) as target:
        assert (await plan_transfer(source, target)).running == 1


async def test_an_unreadable_job_is_named_and_the_others_are_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [sample_job() for _ in range(3)]
    path = tmp_path / "a.db"
    async with SqliteStore(path) as source, MemoryStore() as target:
        await source.insert(jobs)
        with closing(sqlite3.connect(path)) as damaging, damaging:
            damaging.execute("UPDATE jobs SET state = x'00' WHERE id = ?", (jobs[1].id,))
        with caplog.at_level(logging.ERROR, "asyncjobs"):
            moved = await copy_jobs(source, target, await plan_transfer(source, target), quiet)
        assert moved.unreadable == [jobs[1].id]
        assert [job.id for job in await all_of(target)] == [jobs[0].id, jobs[2].id]


async def test_large_jobs_are_read_a_few_at_a_time() -> None:
    class Counting(MemoryStore):
        sizes: list[int]

        async def get(self, ids: Sequence[Any], /) -> Sequence[Job | None]:
            found = await super().get(ids)
            self.sizes.append(sum(len(job.payload_json) for job in found if job))
            return found

    payload = b'"' + b"x" * 1_000_000 + b'"'
    source = Counting()
    source.sizes = []
    async with source, MemoryStore() as target:
        await source.insert([sample_job(payload_json=payload) for _ in range(60)])
        await copy_jobs(source, target, await plan_transfer(source, target), quiet)
    assert max(source.sizes) <= 17_000_000


async def test_progress_is_reported_to_the_end(holding: Holding) -> None:
    told: list[tuple[str, int, int]] = []
    async with holding(samples(60)) as source, holding([]) as target:
        planned = await plan_transfer(source, target)

        def note(what: str, done: int, total: int) -> None:
            told.append((what, done, total))

        await copy_jobs(source, target, planned, note)
    assert told[-1] == ("verify", 122, 122)
    assert ("copy", 61, 61) in told
    assert all(one[1] <= two[1] for one, two in pairwise(told) if one[0] == two[0])


async def test_a_store_without_lists_cannot_be_transferred() -> None:
    class Listless:
        async def now(self) -> datetime:
            return datetime.now(UTC)

    with pytest.raises(ConfigurationError, match="list"):
        await plan_transfer(Listless(), MemoryStore())  # type: ignore[arg-type]


async def test_an_empty_source_is_transferred_at_once(holding: Holding) -> None:
    async with holding([]) as source, holding([]) as target:
        moved = await copy_jobs(source, target, await plan_transfer(source, target), quiet)
    assert moved.digest == Digest(0, 0)
