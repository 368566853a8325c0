"""Output in PostgreSQL: what is left behind, deadlocks, lost answers, and the rights of a role."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncjobs.core.job import Job
from asyncjobs.core.output import Append, Appended, Refusal
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.stores.postgres import PostgresStore, migration_sql
from asyncjobs.testing import TcpProxy, sample_job
from asyncjobs.testing.output_conformance import contents, items, text
from asyncjobs.testing.samples import begun, ids

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

ROUNDS = 15
TABLES = ("outputs", "output_streams", "output_chunks")


async def begun_jobs(store: PostgresStore, number: int) -> list[Job]:
    return list(await store.insert([begun(sample_job()) for _ in range(number)]))


def rows_of(postgres: PostgresServer, schema: str) -> list[int]:
    """Count the rows of output."""
    found = [postgres.execute(f"SELECT count(*) FROM {schema}.{one}") for one in TABLES]
    return [int(str(number)) for [(number,)] in found]


async def test_a_deletion_leaves_no_row_of_appends_that_race_with_it(
    postgres: PostgresServer, schema: str, store: PostgresStore, other: PostgresStore
) -> None:
    async def append(job: Job) -> None:
        answer = Appended()
        while answer.refusal is None:
            [answer] = await store.append([text(job, b"x")])
        assert answer.refusal is Refusal.GONE

    async with store, other:
        for _ in range(ROUNDS):
            jobs = await begun_jobs(store, 4)
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(append, job)
                await other.get(ids(jobs))
                await other.delete(ids(jobs))
    assert rows_of(postgres, schema) == [0, 0, 0]


async def test_appends_and_changes_of_the_same_jobs_do_not_deadlock(
    store: PostgresStore, other: PostgresStore
) -> None:
    chance = random.Random(1)  # noqa: S311  # no secret

    async def append(opened: PostgresStore, jobs: list[Job]) -> None:
        for _ in range(ROUNDS):
            done = await opened.append([text(job, b"x") for job in chance.sample(jobs, len(jobs))])
            assert all(one.refusal is None for one in done)

    async def change(opened: PostgresStore, jobs: list[Job]) -> None:
        for number in range(ROUNDS):
            changes = [
                Change(job.changed(revision=job.revision + number + 1), job.revision + number)
                for job in chance.sample(jobs, len(jobs))
            ]
            assert all(await opened.replace(changes))

    async with store, other:
        jobs = await begun_jobs(store, 20)
        async with anyio.create_task_group() as tasks:
            for opened in (store, other):
                tasks.start_soon(append, opened, jobs)
            tasks.start_soon(change, other, jobs)
        for job in jobs:
            assert await contents(store, job) == b"x" * 2 * ROUNDS


async def test_an_append_with_a_lost_answer_is_repeated_if_it_has_a_position(
    wire: TcpProxy, far: PostgresStore, store: PostgresStore
) -> None:
    async with far, store:
        [job] = await begun_jobs(store, 1)
        wire.lose(1)
        with pytest.raises(StoreUnavailable):
            await far.append([text(job, b"ab"), items(job, 1, b"1", position=0)])
        wire.lose(0)
        assert await contents(store, job) == b"ab"
        await far.get([job.id])  # on a new connection
        wire.lose(1)
        appends = [text(job, b"cd", position=2), items(job, 1, b"2", position=1)]
        assert list(await far.append(appends)) == [Appended(4), Appended(2)]
        wire.lose(0)
        assert await contents(store, job) == b"abcd"
        assert await contents(store, job, "items") == b"12"


async def test_calls_are_split_into_statements_of_limited_size(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.postgres.values.MAX_STATEMENT_BYTES", 5)
    async with store:
        one, two = await begun_jobs(store, 2)
        appends: list[Append] = [
            *(text(one, b"abc"), text(two, b"12345678", max_bytes=7), items(one, 2, b"1,2")),
            *(text(one, b"def"), text(two, b"9"), items(two, 1, b"3")),
        ]
        done = await store.append(appends)
        assert [answer.end for answer in done] == [3, 0, 2, 6, 0, 1]
        assert [answer.refusal for answer in done] == [
            *(None, Refusal.FULL, None),
            *(None, Refusal.FULL, None),
        ]
        assert await contents(store, one) == b"abcdef"


async def test_a_role_that_owns_nothing_can_append(
    postgres: PostgresServer, schema: str, humble: PostgresStore, grants: list[str]
) -> None:
    postgres.execute(migration_sql(schema), *grants)
    async with humble as store:
        [job] = await begun_jobs(store, 1)
        await store.begin_epoch(job.id, 1)
        assert list(await store.append([text(job, b"x")])) == [Appended(1)]
        assert await contents(store, job) == b"x"
        assert list(await store.delete([job.id])) == [True]
    assert rows_of(postgres, schema) == [0, 0, 0]
