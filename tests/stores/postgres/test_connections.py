"""Broken, silent and refused connections: typed errors, then recovery without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncjobs.core.job import Job, JobId, new_job_id
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.stores.postgres import PostgresStore, migration_sql
from asyncjobs.testing import TcpProxy, sample_job
from asyncjobs.testing.samples import LATER, NOW, begun, ids
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

Connection = psycopg.AsyncConnection[Any]

UNKNOWN = new_job_id()

TERMINATE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE application_name = 'asyncjobs'"
)
BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND application_name = 'asyncjobs'"
)
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'"


# broken connections


async def test_a_connection_that_was_closed_while_idle_fails_no_call(
    postgres: PostgresServer, store: PostgresStore
) -> None:
    job = sample_job()
    async with store:
        await store.insert([job])
        assert postgres.execute(TERMINATE)
        assert list(await store.replace([Change(begun(job), job.revision)])) == [True]
        postgres.execute(TERMINATE)
        assert len(await store.take(["default"], now=NOW, until=LATER, limit=1)) == 0


async def test_idempotent_calls_are_repeated_after_a_lost_answer(
    far: PostgresStore, wire: TcpProxy
) -> None:
    job = sample_job(idempotency_key="k")
    async with far as store:
        wire.lose(1)
        assert await store.insert([job]) == [job]
        wire.lose(1)
        assert await store.get([job.id]) == [job]
        wire.lose(1)
        await store.delete([job.id])
        assert await store.get([job.id]) == [None]
        assert wire.to_lose == 0


async def test_a_change_with_a_lost_answer_raises_and_is_not_repeated(
    far: PostgresStore, store: PostgresStore, wire: TcpProxy
) -> None:
    job = sample_job()
    started = begun(job)
    async with store, far:
        await store.insert([job])
        wire.lose(1)
        with pytest.raises(StoreUnavailable) as caught:
            await far.replace([Change(started, job.revision)])
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert await far.get([job.id]) == [started]


async def test_a_take_with_a_lost_answer_raises_and_is_not_repeated(
    far: PostgresStore, store: PostgresStore, wire: TcpProxy
) -> None:
    jobs = [sample_job(), sample_job()]
    async with store, far:
        await store.insert(jobs)
        wire.lose(1)
        with pytest.raises(StoreUnavailable):
            await far.take(["default"], now=NOW, until=LATER, limit=1)
        assert ids(await far.take(["default"], now=NOW, until=LATER, limit=9)) == [jobs[1].id]


async def test_repetitions_are_bounded(far: PostgresStore, wire: TcpProxy) -> None:
    async with far as store:
        await store.get([])
        wire.lose(1000)
        with pytest.raises(StoreUnavailable):
            await store.get([UNKNOWN])
        assert wire.to_lose == 1000 - 3
        wire.lose(0)
        assert await store.get([UNKNOWN]) == [None]


# silence


async def test_a_server_that_stops_answering_times_out_after_one_attempt(
    far: PostgresStore, wire: TcpProxy
) -> None:
    async with far as store:
        connections = wire.connections
        wire.stall()
        with anyio.fail_after(60), pytest.raises(StoreUnavailable, match=r"within 0\.5 s"):
            await store.get([UNKNOWN])
        assert wire.connections == connections
        wire.flow()
        assert await store.get([UNKNOWN]) == [None]


async def test_the_server_ends_a_statement_that_waits_too_long_for_a_lock(
    postgres: PostgresServer, schema: str, store: PostgresStore, conn: Connection
) -> None:
    job = sample_job()
    async with store, PostgresStore(postgres.url, schema=schema, timeout=0.2) as hasty:
        await store.insert([job])
        async with locked(conn, schema):
            with anyio.fail_after(60), pytest.raises(StoreUnavailable, match="timeout"):
                await hasty.replace([Change(begun(job), job.revision)])
            assert postgres.execute(BLOCKED) == [(0,)]
        assert await hasty.get([job.id]) == [job]


# cancelled callers


async def test_a_started_statement_completes_although_its_caller_is_cancelled(
    postgres: PostgresServer, schema: str, store: PostgresStore, conn: Connection
) -> None:
    job = sample_job()
    started = begun(job)
    async with store:
        await store.insert([job])
        async with locked(conn, schema), anyio.create_task_group() as tasks:
            tasks.start_soon(store.replace, [Change(started, job.revision)])
            await until(lambda: postgres.execute(BLOCKED) != [(0,)])
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await conn.commit()
        assert await store.get([job.id]) == [started]


async def test_a_cancelled_caller_starts_no_statement(store: PostgresStore) -> None:
    job = sample_job()
    async with store:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.insert([job])
        assert await store.get([job.id]) == [None]


async def test_a_task_killed_during_a_statement_leaves_no_busy_connection(
    postgres: PostgresServer, schema: str, store: PostgresStore, conn: Connection
) -> None:
    job = sample_job()
    async with store:
        await store.insert([job])
        async with locked(conn, schema):
            task = asyncio.ensure_future(store.replace([Change(begun(job), job.revision)]))
            await until(lambda: postgres.execute(BLOCKED) != [(0,)])
            task.cancel()
            with anyio.fail_after(10), pytest.raises((asyncio.CancelledError, StoreUnavailable)):
                await task
        assert await store.get([job.id]) == [job]


# refusals


async def test_a_read_only_server_raises_and_the_store_reconnects(
    postgres: PostgresServer, schema: str, humble: PostgresStore, grants: list[str]
) -> None:
    postgres.execute(migration_sql(schema), *grants)
    role, job = f"{schema}_app", sample_job()
    postgres.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    async with humble as store:
        with pytest.raises(StoreUnavailable, match="read-only") as caught:
            await store.insert([job])
        assert isinstance(caught.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)
        postgres.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
        assert await store.insert([job]) == [job]


async def test_too_many_connections_raise_store_unavailable(
    postgres: PostgresServer, schema: str, humble: PostgresStore, grants: list[str]
) -> None:
    postgres.execute(migration_sql(schema), *grants)
    role = f"{schema}_app"
    async with humble as store:
        postgres.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1", TERMINATE)
        async with await psycopg.AsyncConnection.connect(humble.server.conninfo):
            with pytest.raises(StoreUnavailable, match="too many connections"):
                await store.get([UNKNOWN])
        await until(lambda: postgres.execute(CONNECTED.format(role=role)) == [(0,)])
        assert await store.get([UNKNOWN]) == [None]


async def test_a_missing_table_raises_store_unavailable(
    postgres: PostgresServer, schema: str, store: PostgresStore
) -> None:
    async with store:
        postgres.execute(f"DROP TABLE {schema}.jobs")
        with pytest.raises(StoreUnavailable, match="does not exist") as caught:
            await store.get([UNKNOWN])
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)


# restarts


async def test_a_server_killed_under_load_loses_no_write_and_is_used_again(
    postgres: PostgresServer, store: PostgresStore
) -> None:
    promised: dict[JobId, Job] = {}
    errors: list[StoreUnavailable] = []
    back = anyio.Event()

    async def submit() -> None:
        seen = 0
        while seen < 5:
            job = sample_job()
            try:
                [promised[job.id]] = await store.insert([job])
                started = begun(job)
                del promised[job.id]  # until it is known which of both states is stored
                await store.replace([Change(started, job.revision)])
                promised[job.id] = started
                seen += back.is_set()
            except StoreUnavailable as error:
                errors.append(error)

    with anyio.fail_after(60):
        async with store, anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(submit)
            await until(lambda: len(promised) > 50)
            with postgres.away():
                await until(lambda: len(errors) > 8)
            back.set()
        async with store:
            assert await store.get(list(promised)) == list(promised.values())
    assert all(isinstance(error.__cause__, psycopg.Error) for error in errors)


@asynccontextmanager
async def locked(conn: Connection, schema: str) -> AsyncGenerator[None]:
    """Lock the jobs inside the block, as a migration of another program does."""
    await conn.execute(f"LOCK TABLE {schema}.jobs".encode())
    yield
    await conn.rollback()
