"""How the tables are created, migrated and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest

from asyncjobs.errors import SchemaError, StoreUnavailable
from asyncjobs.stores.postgres import PostgresStore, migration_sql
from asyncjobs.testing import sample_job
from tests.stores.opening import open_and_close
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio


async def test_a_schema_of_another_version_is_refused_and_not_changed(
    postgres: PostgresServer, store: PostgresStore, schema: str
) -> None:
    await open_and_close(store)
    postgres.execute(f"UPDATE {schema}.asyncjobs_versions SET version = 2")
    with pytest.raises(SchemaError, match="schema version 2"):
        await open_and_close(store)


@pytest.mark.parametrize(
    "table", ["jobs (day text)", "results (day text)", "asyncjobs_versions (day text)"]
)
async def test_tables_of_another_program_are_refused_and_not_changed(
    postgres: PostgresServer, store: PostgresStore, schema: str, table: str
) -> None:
    postgres.execute(f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.{table}")
    with pytest.raises(SchemaError, match="another program"):
        await open_and_close(store)
    tables = f"SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
    assert postgres.execute(tables) == [(table.partition(" ")[0],)]


async def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(f"CREATE DATABASE {schema} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(SchemaError, match="LATIN1"):
            await open_and_close(PostgresStore(f"{postgres.url}?dbname={schema}"))
    finally:
        postgres.execute(f"DROP DATABASE {schema} WITH (FORCE)")


async def test_a_server_of_an_old_version_is_refused_and_not_changed(
    postgres: PostgresServer, store: PostgresStore, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(version, number)] = postgres.execute(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::integer"
    )
    assert isinstance(number, int)
    # No older server is available: require a newer version instead.
    monkeypatch.setattr("asyncjobs.stores.postgres.schema.MIN_SERVER_VERSION", number + 10_000)
    told = f"it is PostgreSQL {version}; version {number // 10_000 + 1} or later is required"
    with pytest.raises(SchemaError, match=told):
        await open_and_close(store)
    assert postgres.execute(f"SELECT to_regnamespace('{schema}') IS NULL") == [(True,)]


async def test_the_printed_script_creates_the_same_schema_as_opening(
    postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(migration_sql(schema))
    await open_and_close(PostgresStore(postgres.url, schema=schema))
    assert postgres.execute(f"SELECT version FROM {schema}.asyncjobs_versions") == [(1,)]
    assert migration_sql(since=1) == ""


async def test_stores_that_open_a_new_schema_concurrently_wait_in_turn(
    postgres: PostgresServer, store: PostgresStore, schema: str
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event = 'advisory' AND application_name = 'asyncjobs'"
    )
    others = [PostgresStore(postgres.url, schema=schema) for _ in range(7)]
    lock = migration_sql(schema).partition(";")[2].partition(";")[0]
    with psycopg.connect(postgres.url) as held:
        held.execute(lock.encode())
        async with anyio.create_task_group() as tasks:
            for one in (store, *others):
                tasks.start_soon(open_and_close, one)
            await until(lambda: postgres.execute(waiting) == [(8,)])
            held.rollback()
    assert postgres.execute(f"SELECT version FROM {schema}.asyncjobs_versions") == [(1,)]


# rights


async def test_a_role_without_ddl_rights_can_use_an_up_to_date_schema(
    postgres: PostgresServer, schema: str, humble: PostgresStore, grants: list[str]
) -> None:
    postgres.execute(migration_sql(schema), *grants)
    job = sample_job()
    async with humble as store:
        assert await store.insert([job]) == [job]
        await store.delete([job.id])


async def test_a_role_without_ddl_rights_gets_an_error_with_the_remedy(
    humble: PostgresStore,
) -> None:
    with pytest.raises(SchemaError, match="migration_sql"):
        await open_and_close(humble)


async def test_a_role_without_any_rights_gets_permission_denied(
    postgres: PostgresServer, schema: str, humble: PostgresStore
) -> None:
    postgres.execute(migration_sql(schema))
    with pytest.raises(StoreUnavailable, match="permission denied"):
        await open_and_close(humble)


async def test_the_owner_of_a_schema_needs_no_right_on_the_database(
    postgres: PostgresServer, schema: str, humble: PostgresStore
) -> None:
    postgres.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {schema}_app")
    await open_and_close(humble)
