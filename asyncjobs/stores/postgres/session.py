"""One connection of `stores.postgres`: where it leads, and what is executed on it, in time."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from asyncjobs.errors import ConfigurationError

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")

# One for all hosts, or one for each, which may be empty.
_PORTS = re.compile(r"(\d{1,5})?(,(\d{1,5})?)*")

# What the URL leaves open. A connection whose other end is gone without a word is found out within
# half a minute, where the operating system's own limits are hours.
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "fallback_application_name": "asyncjobs",
}

# How much longer than the server, which ends a slow statement cleanly, we wait for its answer.
_GRACE_SECONDS = 1.0

_LIMITS = (
    "SELECT set_config('statement_timeout', %b, false),"
    " set_config('idle_in_transaction_session_timeout', %b, false)"
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the database is, which schema of it is ours, and how it is talked to."""

    conninfo: str
    name: str
    schema: str
    pgbouncer: bool
    timeout: float


def server_at(url: str, *, schema: str, pgbouncer: bool, timeout: float) -> Server:
    """Read the URL; `name` is what may be shown of it."""
    if _NAME.fullmatch(schema) is None:
        raise ConfigurationError(
            f"A schema's name is made of a-z, 0-9 and _ (63 at most), got {schema!r}."
        )
    given = _parameters_of(url)
    if given is None:
        # Neither the URL nor the driver's words may be shown: there is a password in them.
        raise ConfigurationError(
            "The PostgreSQL store's URL is postgresql://user:password@host:port/database, with "
            "libpq's connection parameters as its query; this one cannot be read."
        )
    host = given.get("host") or given.get("hostaddr") or "localhost"
    name = f"postgresql://{host}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
    conninfo = make_conninfo("", **{**_DEFAULTS, **given, "client_encoding": "utf8"})
    return Server(conninfo=conninfo, name=name, schema=schema, pgbouncer=pgbouncer, timeout=timeout)


def _parameters_of(url: str) -> dict[str, Any] | None:
    try:
        given: dict[str, Any] = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return None
    # libpq would find that out only when it connects, and call the server away.
    return given if _PORTS.fullmatch(str(given.get("port") or "")) else None


@cache
def in_schema(query: str, schema: str) -> bytes:
    """Name the schema in a statement."""
    return query.replace("{s}", f'"{schema}"').encode()


class Database(Protocol):
    """Where statements are executed, in which `{s}` stands for the schema."""

    server: Server

    async def rows(self, query: str, /, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        ...


class Session:
    """One connection; in what it executes, `{s}` stands for the schema."""

    def __init__(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], server: Server
    ) -> None:
        self.server = server
        self.connection = connection
        self.overdue = False

    async def rows(
        self, query: str, /, *values: Any, within: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows; values go both ways in binary form.

        One that gets no answer in time has its connection cut. To cancel it would not do: psycopg
        then asks the server to cancel and waits for its answer, which is what does not come.
        """
        statement = in_schema(query, self.server.schema)
        seconds = within or self.server.timeout
        timer = asyncio.get_running_loop().call_later(seconds + _GRACE_SECONDS, self._give_up)
        try:
            # Without values it may be a script, which only the simple protocol takes.
            cursor = await self.connection.execute(statement, values or None, binary=bool(values))
            return [] if cursor.description is None else await cursor.fetchall()
        finally:
            timer.cancel()

    async def uninterrupted(self, query: str, /, *values: Any) -> None:
        """Execute to the end, which comes in time, also for who is cancelled.

        To break a statement off is something that the driver warns of.
        """
        with anyio.CancelScope(shield=True):
            await self.rows(query, *values)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Do all of the block or nothing; one that fails leaves a connection that is not usable."""
        await self.rows("BEGIN")
        yield
        await self.rows("COMMIT")

    @property
    def stale(self) -> bool:
        """Whether the server has ended this idle connection."""
        try:
            for _ in "12":  # first the server's last words, if any, then the end
                self.connection.pgconn.consume_input()
        except psycopg.Error:
            return True
        return not self.usable

    @property
    def usable(self) -> bool:
        """Whether a statement can be executed now, outside any transaction."""
        idle = self.connection.info.transaction_status == TransactionStatus.IDLE
        return idle and not self.connection.closed

    async def close(self) -> None:
        """Close the connection; a transaction under way is rolled back."""
        await self.connection.close()

    def cut(self) -> None:
        """End the connection below the driver, so that whoever waits for it gets its error."""
        with suppress(psycopg.Error, OSError):
            line = socket.socket(fileno=self.connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()

    def _give_up(self) -> None:
        self.overdue = True
        self.cut()


async def connect(server: Server) -> Session:
    """Open a connection; the driver's errors are raised as they are."""
    # Behind pgbouncer, the next statement may meet a server that does not know what was prepared.
    threshold = None if server.pgbouncer else 5
    connection = await psycopg.AsyncConnection.connect(
        server.conninfo, autocommit=True, prepare_threshold=threshold
    )
    session = Session(connection, server)
    if not server.pgbouncer:
        # By the server's own hand, so that nothing stays locked.
        limit = f"{int(server.timeout * 1000)}ms"
        try:
            await session.uninterrupted(_LIMITS, limit, limit)
        except BaseException:
            await session.close()
            raise
    return session
