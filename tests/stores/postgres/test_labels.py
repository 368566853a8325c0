"""Labels and tallies under concurrent writes, in transactions, and after the last job."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobStatus, new_job_id
from asyncjobs.core.labels import Tally, label_of_batch, tallies_of
from asyncjobs.protocols import Selection
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, begun, change_of, ids
from tests.stores.postgres.test_queries import LIMIT, WAITING
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

BATCHES = [new_job_id() for _ in range(3)]
LABELS = [label_of_batch(batch) for batch in BATCHES]
ROUNDS = 15


class Writer:
    """Inserts, changes and deletes jobs of the same batches as others do, in an order of its own.

    `counts` has what must have been counted.
    """

    def __init__(self, store: PostgresStore, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)  # noqa: S311  # no secret
        self.jobs: list[Job] = []
        self.counts = {label: Counter[str]() for label in LABELS}

    async def write(self) -> None:
        for _ in range(ROUNDS):
            batches = self.random.choices(BATCHES, k=self.random.randint(1, 6))
            new = [sample_job(batch=batch, tags=("a",)) for batch in batches]
            self.jobs += await self.store.insert(new)
            for job in new:
                self.count(tallies_of(job))
            await self.replace(self.random.sample(self.jobs, min(4, len(self.jobs))))
            gone = self.random.sample(self.jobs, min(3, len(self.jobs)))
            await self.store.delete(ids(gone))
            self.jobs = [job for job in self.jobs if job not in gone]

    async def replace(self, jobs: list[Job]) -> None:
        changes = [change_of(job, begun(job)) for job in jobs if job.status is JobStatus.PENDING]
        changes += [change_of(job, done(job)) for job in jobs if job.lease is not None]
        assert all(await self.store.replace(changes))
        for change in changes:
            self.count(change.tallies)
            self.jobs = [change.job if job.id == change.job.id else job for job in self.jobs]

    def count(self, changes: Mapping[str, Tally] | None) -> None:
        for label, tally in (changes or {}).items():
            self.counts[label].update(tally)


def done(job: Job) -> Job:
    return lifecycle.complete(job, NOW, token="t", result=b'"done"')


async def test_concurrent_writers_count_exactly_and_without_deadlocks(
    store: PostgresStore,
    other: PostgresStore,
    postgres: PostgresServer,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LIMIT, 1)  # each result is a statement of its own
    kept = [sample_job(batch=batch) for batch in BATCHES]
    writers = [Writer(one, seed) for seed, one in enumerate((store, store, other, other))]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = postgres.execute(deadlocks)
    async with store, other:
        await store.insert(kept)  # so that no counters go with the last job
        async with anyio.create_task_group() as tasks:
            for writer in writers:
                tasks.start_soon(writer.write)
        expected = {label: Counter({"total": 1, "pending": 1}) for label in LABELS}
        for writer in writers:
            for label, counts in writer.counts.items():
                expected[label].update(counts)
        found = await store.tally(LABELS)
        assert [+Counter(tally) for tally in found] == [+expected[label] for label in LABELS]
        left = [job for writer in writers for job in writer.jobs] + kept
        page = await store.list(Selection(tag="a"), limit=1000)
        assert {*ids(page.jobs)} == {*ids(left)} - {*ids(kept)}
        await store.delete(ids(left))
        assert list(await other.tally(LABELS)) == [{}, {}, {}]
    assert rows_of(postgres, schema) == [0, 0]
    assert postgres.execute(deadlocks) == before


async def test_counters_stay_if_an_open_transaction_adds_a_job_during_the_last_deletion(
    store: PostgresStore, postgres: PostgresServer, schema: str, conn: psycopg.AsyncConnection[Any]
) -> None:
    batch = BATCHES[0]
    old, last, late = (sample_job(batch=batch) for _ in "123")
    async with store:
        await store.insert([old, last])
        await store.delete([old.id])
        await store.insert_within(conn, [late])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.delete, [last.id])
            await until(lambda: postgres.execute(WAITING) == [(1,)])
            await conn.commit()
        assert list(await store.tally([label_of_batch(batch)])) == [{"total": 3, "pending": 3}]
        await store.delete([late.id])
    assert rows_of(postgres, schema) == [0, 0]


async def test_a_crash_between_the_last_deletion_and_its_clean_up_leaves_no_counters(
    store: PostgresStore, postgres: PostgresServer, schema: str
) -> None:
    label = LABELS[0]
    async with store:
        postgres.execute(f"INSERT INTO {schema}.tallies VALUES ('{label}', 0, '{{\"total\": 7}}')")
        assert list(await store.tally([label])) == [{}]
        await store.insert([sample_job(batch=BATCHES[0])])
        assert list(await store.tally([label])) == [{"total": 1, "pending": 1}]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_labels_and_counters_share_the_transaction_of_the_application(
    store: PostgresStore, conn: psycopg.AsyncConnection[Any], end: str
) -> None:
    job = sample_job(batch=BATCHES[0], tags=("a",))
    async with store:
        await store.insert_within(conn, [job])
        assert list(await store.tally(LABELS[:1])) == [{}]
        assert list((await store.list(Selection(tag="a"), limit=9)).jobs) == []
        await getattr(conn, end)()
        [tally] = await store.tally(LABELS[:1])
        page = await store.list(Selection(tag="a"), limit=9)
    committed = end == "commit"
    assert tally == ({"total": 1, "pending": 1} if committed else {})
    assert ids(page.jobs) == ([job.id] if committed else [])


async def test_jobs_without_labels_leave_the_tables_of_labels_alone(
    store: PostgresStore, postgres: PostgresServer, schema: str
) -> None:
    jobs = [sample_job() for _ in range(3)]
    async with store:
        await store.insert(jobs)
        await store.replace([change_of(job, begun(job)) for job in jobs])
        assert rows_of(postgres, schema) == [0, 0]


def rows_of(postgres: PostgresServer, schema: str) -> list[object]:
    """Count the rows of labels and of tallies."""
    query = (
        f"SELECT (SELECT count(*) FROM {schema}.labels), (SELECT count(*) FROM {schema}.tallies)"
    )
    [numbers] = postgres.execute(query)
    return [*numbers]
