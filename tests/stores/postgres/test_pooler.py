"""Behind a pooler in transaction mode, without a session per client, everything still works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncjobs import AsyncJobs, JobContext, Settings
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import (
    ListingConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    StoreConformance,
    TalliesConformance,
    sample_job,
)
from tests.stores.postgres.pooler import TransactionPooler

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

# Without a notice a queue waits for minutes, which fails the test.
PATIENT = Settings(poll_interval=timedelta(minutes=5), sweep_interval=timedelta(minutes=5))


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[TransactionPooler]:
    address = conninfo_to_dict(postgres.url)
    if address.get("password"):
        pytest.skip("the pooler of these tests knows no passwords")
    with TransactionPooler(str(address["host"]), int(address.get("port") or 5432)) as pooler:
        yield pooler


@pytest.fixture
def pooled(postgres: PostgresServer, pooler: TransactionPooler) -> str:
    """Return the URL of the server through a pooler."""
    return make_conninfo(postgres.url, host="127.0.0.1", port=pooler.port)


class TestPostgresStoreThroughAPooler(
    StoreConformance,
    ListingConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    TalliesConformance,
):
    tested_elsewhere = PostgresStore.powers

    @pytest.fixture
    def store(self, pooled: str, schema: str) -> PostgresStore:
        return PostgresStore(pooled, schema=schema, pgbouncer=True)


async def test_without_pgbouncer_true_prepared_statements_are_missing(
    pooled: str, schema: str
) -> None:
    """This tests the pooler itself: a store that leaves state in a session must fail."""
    job = sample_job()

    async def get_often(store: PostgresStore) -> None:
        for _ in range(20):
            await store.get([job.id])

    async with PostgresStore(pooled, schema=schema, connections=1) as store:
        await store.insert([job])
        with pytest.raises(StoreUnavailable, match="prepared statement"):
            await get_often(store)


@pytest.mark.parametrize("pgbouncer", [False, True])
async def test_inspect_detects_a_pooler_without_pgbouncer_true(
    pooled: str, schema: str, *, pgbouncer: bool
) -> None:
    async with PostgresStore(pooled, schema=schema, pgbouncer=pgbouncer) as store:
        found = {one.subject: (one.found, one.advice) for one in await store.inspect()}
    told = found["connections"]
    assert told[0] == "through a pooler"
    assert ("pgbouncer=true" in told[1]) is not pgbouncer


async def test_with_pgbouncer_true_no_state_is_left_in_a_session(
    pooler: TransactionPooler, pooled: str, schema: str
) -> None:
    job = sample_job()
    async with PostgresStore(pooled, schema=schema, connections=1, pgbouncer=True) as store:
        await store.insert([job])
        for _ in range(20):
            assert list(await store.get([job.id])) == [job]
        async with aclosing(store.changes()) as changes:
            await anext(changes)
    assert any(b"pg_notify" in message for message in pooler.messages)
    for message in pooler.messages:
        lasting = rb"LISTEN|set_config\((?![^)]*, true\))|(?<!\w )SET (?!LOCAL)|pg_advisory_lock"
        assert not re.search(lasting, message)
        # The statement's name comes first; without a name it ends with its transaction.
        assert message[:1] != b"P" or message[5:6] == b"\0"


async def test_two_queues_and_a_transaction_work_together_behind_a_pooler(
    pooled: str, schema: str
) -> None:
    stores = [PostgresStore(pooled, schema=schema, pgbouncer=True) for _ in "12"]
    desk = AsyncJobs(stores[0], dispatcher="worker", settings=PATIENT)
    works = AsyncJobs(stores[1], settings=PATIENT)
    for jobs in (desk, works):
        jobs.handler("double")(double)
    async with desk, works, await psycopg.AsyncConnection.connect(pooled) as conn:
        with anyio.fail_after(60):
            for number in range(5):
                job = await desk.enqueue("double", number)
                assert (await desk.wait(job.id)).result == 2 * number
            mine = await desk.enqueue("double", 21, connection=conn)
            await conn.commit()
            assert (await desk.wait(mine.id)).result == 42


async def double(number: int, _job: JobContext) -> int:
    return 2 * number
