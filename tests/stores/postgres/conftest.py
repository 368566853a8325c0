"""Fixtures of the PostgreSQL store's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncjobs.core.job import JobId
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import TcpProxy
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, which the driver needs."""
    return "asyncio"


@pytest.fixture
def store(postgres: PostgresServer, schema: str) -> PostgresStore:
    return PostgresStore(postgres.url, schema=schema)


@pytest.fixture
def other(postgres: PostgresServer, schema: str) -> PostgresStore:
    """Make a second store on the same schema, as another process does."""
    return PostgresStore(postgres.url, schema=schema)


@pytest.fixture
def grants(schema: str) -> list[str]:
    """Return the statements that grant an application's role its rights on a schema."""
    role = f"{schema}_app"
    return [
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
    ]


@pytest.fixture
def humble(postgres: PostgresServer, schema: str) -> Iterator[PostgresStore]:
    """Make a store for a role that owns nothing."""
    role = f"{schema}_app"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'app'")
    yield PostgresStore(make_conninfo(postgres.url, user=role, password="app"), schema=schema)
    postgres.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.fixture
def wire(postgres: PostgresServer) -> Iterator[TcpProxy]:
    """A proxy between a store and its server, which can stall or break connections."""
    address = conninfo_to_dict(postgres.url)
    with TcpProxy(str(address["host"]), int(address.get("port") or 5432)) as proxy:
        yield proxy


@pytest.fixture
def far(postgres: PostgresServer, wire: TcpProxy, schema: str) -> PostgresStore:
    """Make a store that reaches its server through the proxy, with short time-outs."""
    near = make_conninfo(postgres.url, host="127.0.0.1", port=wire.port, sslmode="disable")
    return PostgresStore(near, schema=schema, timeout=0.5)


@pytest.fixture
async def conn(postgres: PostgresServer) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Connect to the server with the driver, as the application does."""
    async with await psycopg.AsyncConnection.connect(postgres.url) as connection:
        yield connection


@pytest.fixture
async def notified(
    postgres: PostgresServer, schema: str
) -> AsyncIterator[Callable[[JobId], Awaitable[None]]]:
    """Return when another program sees a store's notice of this job."""
    async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as listening:
        await listening.execute(f'LISTEN "{schema}"'.encode())
        async with aclosing(listening.notifies()) as notices:

            async def wait_for(job_id: JobId) -> None:
                with anyio.fail_after(PATIENCE_SECONDS):
                    async for notice in notices:
                        if job_id in notice.payload:
                            return

            yield wait_for
