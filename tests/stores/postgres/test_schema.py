"""How the tables are made, brought up to date and checked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import psycopg
import pytest

from asyncjobs.errors import SchemaError, StoreUnavailable
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.postgres.schema import MIGRATIONS, migration_sql
from asyncjobs.testing import sample_job

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio


async def test_a_schema_of_a_newer_version_is_left_as_it_is(
    postgres: PostgresServer, store: PostgresStore, schema: str
) -> None:
    await opened(store)
    newer = len(MIGRATIONS) + 1
    postgres.execute(f"INSERT INTO {schema}.asyncjobs_versions VALUES ({newer})")
    with pytest.raises(SchemaError, match=f"schema version {newer}"):
        await opened(store)


@pytest.mark.parametrize(
    "table", ["jobs (day text)", "results (day text)", "asyncjobs_versions (day text)"]
)
async def test_another_program_s_tables_are_left_as_they_are(
    postgres: PostgresServer, store: PostgresStore, schema: str, table: str
) -> None:
    postgres.execute(f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.{table}")
    with pytest.raises(SchemaError, match="another program"):
        await opened(store)
    tables = f"SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
    assert postgres.execute(tables) == [(table.partition(" ")[0],)]


async def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(f"CREATE DATABASE {schema} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(SchemaError, match="LATIN1"):
            await opened(PostgresStore(f"{postgres.url}?dbname={schema}"))
    finally:
        postgres.execute(f"DROP DATABASE {schema} WITH (FORCE)")


async def test_a_server_of_an_old_version_is_refused_and_left_as_it_is(
    postgres: PostgresServer, store: PostgresStore, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(version, number)] = postgres.execute(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::integer"
    )
    assert isinstance(number, int)
    # There is no older server at hand; this one is old to who wants the next.
    monkeypatch.setattr("asyncjobs.stores.postgres_schema.LEAST", number + 10_000)
    told = f"it is PostgreSQL {version}; version {number // 10_000 + 1} is the first"
    with pytest.raises(SchemaError, match=told):
        await opened(store)
    assert postgres.execute(f"SELECT to_regnamespace('{schema}') IS NULL") == [(True,)]


async def test_an_interrupted_migration_leaves_nothing_half_made(
    postgres: PostgresServer,
    store: PostgresStore,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = (*MIGRATIONS, "CREATE TABLE {s}.more (x text); SELECT 1 / 0;")
    with monkeypatch.context() as patch:
        patch.setattr("asyncjobs.stores.postgres_schema.MIGRATIONS", broken)
        with pytest.raises(StoreUnavailable, match="division by zero"):
            await opened(store)
    assert postgres.execute(f"SELECT to_regnamespace('{schema}') IS NULL") == [(True,)]
    await opened(store)


async def test_a_schema_is_brought_up_to_date_once(
    postgres: PostgresServer, store: PostgresStore, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(store)
    newer = (*MIGRATIONS, "CREATE TABLE {s}.more (x text);")
    monkeypatch.setattr("asyncjobs.stores.postgres_schema.MIGRATIONS", newer)
    await opened(store)
    await opened(store)
    versions = postgres.execute(f"SELECT version FROM {schema}.asyncjobs_versions ORDER BY 1")
    assert versions == [(number + 1,) for number in range(len(newer))]


async def test_the_printed_script_makes_what_opening_makes(
    postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(migration_sql(schema))
    await opened(PostgresStore(postgres.url, schema=schema))
    assert postgres.execute(f"SELECT version FROM {schema}.asyncjobs_versions") == [
        (len(MIGRATIONS),)
    ]
    assert migration_sql(since=len(MIGRATIONS)).count("INSERT") == 0


OPENING = """
import asyncio, sys
from asyncjobs.stores.postgres import PostgresStore

async def main() -> None:
    sys.stdin.readline()
    async with PostgresStore(sys.argv[1], schema=sys.argv[2]):
        print("opened")

asyncio.run(main())
"""


def test_eight_processes_may_open_a_new_schema_at_once(
    postgres: PostgresServer, schema: str
) -> None:
    command = [sys.executable, "-W", "error", "-c", OPENING, postgres.url, schema]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.communicate(timeout=60)[0].strip() for one in started] == ["opened"] * 8


async def test_those_who_open_a_new_schema_at_once_wait_for_each_other(
    postgres: PostgresServer, store: PostgresStore, schema: str
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event = 'advisory' AND application_name = 'asyncjobs'"
    )
    others = [PostgresStore(postgres.url, schema=schema) for _ in range(7)]
    lock = migration_sql(schema).partition(";")[2].partition(";")[0]
    with anyio.fail_after(60), psycopg.connect(postgres.url) as held:
        held.execute(lock.encode())
        async with anyio.create_task_group() as tasks:
            for one in (store, *others):
                tasks.start_soon(opened, one)
            while postgres.execute(waiting) != [(8,)]:
                await anyio.lowlevel.checkpoint()
            held.rollback()
    assert postgres.execute(f"SELECT version FROM {schema}.asyncjobs_versions") == [(1,)]


# rights


async def test_a_role_that_may_not_change_tables_uses_those_that_are_up_to_date(
    postgres: PostgresServer, schema: str, humble: PostgresStore, grants: list[str]
) -> None:
    postgres.execute(migration_sql(schema), *grants)
    job = sample_job()
    async with humble as store:
        assert await store.insert([job]) == [job]
        await store.delete([job.id])


async def test_a_role_that_may_not_make_tables_is_told_what_to_do(humble: PostgresStore) -> None:
    with pytest.raises(SchemaError, match="migration_sql"):
        await opened(humble)


async def test_a_role_without_any_right_is_told_so(
    postgres: PostgresServer, schema: str, humble: PostgresStore
) -> None:
    postgres.execute(migration_sql(schema))
    with pytest.raises(StoreUnavailable, match="permission denied"):
        await opened(humble)


async def test_the_owner_of_a_schema_needs_no_right_on_the_database(
    postgres: PostgresServer, schema: str, humble: PostgresStore
) -> None:
    postgres.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {schema}_app")
    await opened(humble)


async def opened(store: PostgresStore) -> None:
    """Open and close a store."""
    async with store:
        pass
