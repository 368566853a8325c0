"""The store as a whole: the shared suites, URLs, opening and forking."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from asyncjobs.errors import ConfigurationError, NotOpen, StoreUnavailable
from asyncjobs.protocols import ChangeNotices, Listing, StoreClock
from asyncjobs.stores import store_from_url
from asyncjobs.stores.postgres import PostgresStore, from_url
from asyncjobs.testing import (
    ChangeNoticesConformance,
    InspectionConformance,
    ListingConformance,
    MigrationScriptConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    StoreConformance,
    TalliesConformance,
    TransactionsConformance,
)
from asyncjobs.testing.power_conformance import Begin
from tests.stores.opening import open_and_close

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio


class TestPostgresStore(
    StoreConformance,
    ChangeNoticesConformance,
    InspectionConformance,
    ListingConformance,
    MigrationScriptConformance,
    OutputStreamsConformance,
    StoreClockConformance,
    TalliesConformance,
    TransactionsConformance,
):
    @pytest.fixture
    def store(self, postgres: PostgresServer, schema: str) -> PostgresStore:
        return PostgresStore(postgres.url, schema=schema)

    @pytest.fixture
    def opener(self, postgres: PostgresServer, schema: str) -> Callable[[], PostgresStore]:
        return partial(PostgresStore, postgres.url, schema=schema)

    @pytest.fixture
    def begin(self, postgres: PostgresServer) -> Begin:
        @asynccontextmanager
        async def begin_one() -> AsyncGenerator[PsycopgTransaction]:
            async with await psycopg.AsyncConnection.connect(postgres.url) as connection:
                await connection.execute("SELECT 1")
                yield PsycopgTransaction(connection)

        return begin_one


@dataclass(frozen=True)
class PsycopgTransaction:
    """A transaction of an application, begun by its first statement."""

    connection: psycopg.AsyncConnection[Any]

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


class TestPostgresStoreOnOneConnection(StoreConformance):
    """One connection is enough; calls wait for each other."""

    tested_elsewhere = PostgresStore.powers

    @pytest.fixture
    def store(self, postgres: PostgresServer, schema: str) -> PostgresStore:
        return PostgresStore(postgres.url, schema=schema, connections=1)


# its URL


def test_a_url_names_server_schema_and_pooler() -> None:
    server = from_url(
        "postgresql://ann:secret@db:6432/app?sslmode=require&asyncjobs_schema=work&pgbouncer=true"
    ).server
    assert (server.name, server.schema, server.pgbouncer) == (
        "postgresql://db:6432/app",
        "work",
        True,
    )
    given = conninfo_to_dict(server.conninfo)
    assert given["sslmode"] == "require"
    assert given["password"] == "secret"  # noqa: S105  # not a real one
    assert "asyncjobs_schema" not in given


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_url_schemes_use_the_schema_asyncjobs(scheme: str) -> None:
    store = store_from_url(f"{scheme}://localhost/app")
    assert isinstance(store, PostgresStore)
    assert (store.server.schema, store.server.pgbouncer) == ("asyncjobs", False)
    assert {ChangeNotices, Listing, StoreClock} <= store.powers


def test_connections_have_timeouts_that_the_url_can_override() -> None:
    server = from_url("postgresql://db/app?connect_timeout=3").server
    given = conninfo_to_dict(server.conninfo)
    assert given["connect_timeout"] == "3"
    assert given["tcp_user_timeout"] == "30000"
    assert given["keepalives_idle"] == "15"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@db/app?nonsense=1",
        "postgresql://ann:sec%ret@db/app",
        "postgresql://ann:secret@db:five/app",
        "postgresql://ann:secret@db:5432,other:five/app",
        "postgresql://ann:secret@db/app?pgbouncer=perhaps",
        "postgresql://ann:secret@db/app?asyncjobs_schema=a;b",
        "postgresql://ann:secret@db/app?asyncjobs_schema=",
    ],
)
def test_an_invalid_url_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_url(url)
    assert "sec" not in str(caught.value).partition("The known ones are")[0]
    assert caught.value.__cause__ is None


# opening


async def test_a_closed_store_raises_not_open(store: PostgresStore) -> None:
    with pytest.raises(NotOpen):
        await store.get([])
    async with store:
        changes = store.changes()
        await anext(changes)
    with pytest.raises((NotOpen, StoreUnavailable)):
        await anext(changes)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_another_event_loop_is_refused_by_its_name(store: PostgresStore) -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        await open_and_close(store)


async def test_an_unreachable_server_raises_store_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        closed_port = closed.getsockname()[1]
    with pytest.raises(StoreUnavailable, match=r"(?i)refused") as caught:
        await open_and_close(PostgresStore(f"postgresql://ann:secret@127.0.0.1:{closed_port}/app"))
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert "secret" not in str(caught.value)


async def test_a_silent_server_times_out_after_one_attempt() -> None:
    asked: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, back: asked.append(back), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = f"postgresql://127.0.0.1:{port}/app?connect_timeout=2&sslmode=disable"
    with anyio.fail_after(20), pytest.raises(StoreUnavailable, match="timeout"):
        await open_and_close(PostgresStore(url))
    assert len(asked) == 1
    asked[0].close()
    silent.close()


FORKED = """
import asyncio, os, psycopg, sys, threading, warnings
from asyncjobs.errors import NotOpen
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import sample_job

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forking with threads

async def child(store: PostgresStore) -> None:
    try:
        await store.insert([sample_job()])
    except NotOpen:
        print("not open")
    async with store:
        await store.insert([sample_job()])
        print("inserted")

def connections() -> set:
    with psycopg.connect(sys.argv[1]) as own:
        names = "SELECT pid FROM pg_stat_activity WHERE application_name = 'asyncjobs'"
        return set(own.execute(names).fetchall())

async def main(store: PostgresStore) -> None:
    async with store:
        await store.insert([sample_job()])
        before = connections()
        if os.fork() == 0:
            thread = threading.Thread(target=lambda: asyncio.run(child(store)))
            thread.start()
            thread.join()
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        await store.insert([sample_job()])
        print(before <= connections())

asyncio.run(main(PostgresStore(sys.argv[1], schema=sys.argv[2])))
"""


def test_a_forked_child_does_not_use_its_parents_connections(
    postgres: PostgresServer, schema: str
) -> None:
    command = [sys.executable, "-W", "error", "-c", FORKED, postgres.url, schema]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["not open", "inserted", "True"]
    assert done.stderr == ""
