"""What the tests of the PostgreSQL store share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncjobs.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from tests.stores.conftest import PostgresServer


@pytest.fixture
def anyio_backend() -> str:
    """Run on the one event loop that the driver knows."""
    return "asyncio"


@pytest.fixture
def store(postgres: PostgresServer, schema: str) -> PostgresStore:
    return PostgresStore(postgres.url, schema=schema)


@pytest.fixture
def other(postgres: PostgresServer, schema: str) -> PostgresStore:
    """Make a second store on the same schema, as another process would."""
    return PostgresStore(postgres.url, schema=schema)


@pytest.fixture
def grants(schema: str) -> list[str]:
    """Say what the owner of a schema grants to the role of an application."""
    role = f"{schema}_app"
    return [
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    ]


@pytest.fixture
def humble(postgres: PostgresServer, schema: str) -> Iterator[PostgresStore]:
    """Make a store for a role that owns nothing."""
    role = f"{schema}_app"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'app'")
    yield PostgresStore(make_conninfo(postgres.url, user=role, password="app"), schema=schema)
    postgres.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


class Wire:
    """What lies between a store and its server: it may fall silent, or break at the worst moment.

    `loses` is how many answers of the server it breaks at, instead of bringing them.
    """

    def __init__(self, postgres: PostgresServer) -> None:
        address = conninfo_to_dict(postgres.url)
        self._server = (str(address["host"]), int(address.get("port") or 5432))
        self.open: set[asyncio.Task[Any]] = set()
        self.url = postgres.url
        self.passes = asyncio.Event()
        self.passes.set()
        self.loses = 0
        self.lines = 0

    async def carry(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.lines += 1
        me = asyncio.current_task()
        assert me is not None
        self.open.add(me)
        far, far_out = await asyncio.open_connection(*self._server)
        ways = (self._bring(near, far_out), self._answer(far, near_out))
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for end in (near_out, far_out):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
        self.open.discard(me)

    async def _bring(self, near: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        while data := await near.read(65536):
            await self.passes.wait()
            far.write(data)

    async def _answer(self, far: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        while data := await far.read(65536):
            if self.loses:
                self.loses -= 1
                return
            near.write(data)


@pytest.fixture
async def wire(postgres: PostgresServer) -> AsyncIterator[Wire]:
    wire = Wire(postgres)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire.url = make_conninfo(postgres.url, host="127.0.0.1", port=port, sslmode="disable")
    yield wire
    wire.passes.set()
    server.close()
    if wire.open:
        await asyncio.wait(wire.open)
