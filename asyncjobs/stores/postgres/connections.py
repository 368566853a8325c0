"""The connections of `stores.postgres`: where they lead, and what is executed on them, in time.

They are few, and are discarded at the first failure.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

import anyio
import psycopg
from psycopg import errors
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, Format, TransactionStatus

from asyncjobs.errors import ConfigurationError, NotOpen, StoreUnavailable
from asyncjobs.stores.postgres.arrays import Array, packed
from asyncjobs.stores.retries import with_retries
from asyncjobs.stores.urls import check_characters, check_credentials

T = TypeVar("T")

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_PARAMETER = re.compile(r"%b(?:::(\w+)\[\])?")

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

# The server ends a slow statement cleanly. Its answer may take that much longer.
_ANSWER_GRACE_SECONDS = 1.0

# A table that has grown since the planner last looked seems to it to hold few jobs that wait: it
# would gather and sort them all, where the index has the first ones in order.
_LIMITS = (
    "SELECT set_config('statement_timeout', %b, false),"
    " set_config('idle_in_transaction_session_timeout', %b, false),"
    " set_config('enable_bitmapscan', 'off', false)"
)

# After these errors the server itself guarantees that nothing was done.
_NOTHING_DONE = (errors.DeadlockDetected, errors.SerializationFailure)

# SQLSTATEs of a server that shuts down or starts up.
_SHUT_DOWN_STATES = ("57P01", "57P02", "57P03")


@dataclass(frozen=True, kw_only=True)
class PostgresAddress:
    """Where the database is, which of its schemas is ours, and how it is reached."""

    conninfo: str = field(repr=False)
    name: str
    schema: str
    pgbouncer: bool
    timeout: float


def address_of(url: str, *, schema: str, pgbouncer: bool, timeout: float) -> PostgresAddress:
    """Read the URL; `name` is what may be shown of it."""
    check_characters("The URL of the PostgreSQL store", url)
    check_credentials("The URL of the PostgreSQL store", url)
    if _SCHEMA_NAME.fullmatch(schema) is None:
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
    return PostgresAddress(
        conninfo=conninfo, name=name, schema=schema, pgbouncer=pgbouncer, timeout=timeout
    )


def libpq_parameters() -> set[str]:
    """Return the names of the connection parameters that this libpq knows in a URL."""
    # JDBC's `ssl=true` is known in URLs only.
    return {"ssl", *(option.keyword.decode() for option in Conninfo.get_defaults())}


def _parameters_of(url: str) -> dict[str, Any] | None:
    try:
        given: dict[str, Any] = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the latter for escapes of no UTF-8
        return None
    # libpq would find that out only when it connects, and call the server away.
    return given if _PORTS.fullmatch(str(given.get("port") or "")) else None


@cache
def in_schema(query: str, schema: str) -> bytes:
    """Name the schema in a statement."""
    return query.replace("{s}", f'"{schema}"').encode()


@cache
def _array_types(query: str) -> list[str]:
    """Return for each parameter of a statement the type of its elements, '' if it is no array."""
    found: list[str] = _PARAMETER.findall(query)
    return found


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer | None:
        return bytes(obj)


class StatementRunner(Protocol):
    """Where statements are executed, in which `{s}` stands for the schema."""

    server: PostgresAddress

    async def rows(self, query: str, /, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        ...


class Session:
    """One connection; in what it executes, `{s}` stands for the schema."""

    def __init__(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], server: PostgresAddress
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
        both = zip(_array_types(query), values, strict=True)
        given = [packed(kind, value) if kind else value for kind, value in both]
        seconds = within or self.server.timeout
        timer = asyncio.get_running_loop().call_later(
            seconds + _ANSWER_GRACE_SECONDS, self._give_up
        )
        try:
            # Without values it may be a script, which only the simple protocol takes.
            cursor = await self.connection.execute(statement, given or None, binary=bool(given))
            return [] if cursor.description is None else await cursor.fetchall()
        finally:
            timer.cancel()

    async def uninterrupted(self, query: str, /, *values: Any) -> None:
        """Execute to the end, which comes in time, even if the caller is cancelled.

        The driver warns of a statement that is broken off.
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
        """End the connection below the driver, so that a call that waits for it gets its error."""
        with suppress(psycopg.Error, OSError):
            line = socket.socket(fileno=self.connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                line.detach()

    def _give_up(self) -> None:
        self.overdue = True
        self.cut()


async def connect(server: PostgresAddress) -> Session:
    """Open a connection; the driver's errors are raised as they are."""
    # Behind pgbouncer, the next statement may meet a server that does not know what was prepared.
    threshold = None if server.pgbouncer else 5
    connection = await psycopg.AsyncConnection.connect(
        server.conninfo, autocommit=True, prepare_threshold=threshold
    )
    connection.adapters.register_dumper(Array, _ArrayDumper)
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


class ConnectionPool:
    """Up to `most` connections, opened when they are needed and kept open."""

    def __init__(self, server: PostgresAddress, most: int) -> None:
        self.server = server
        self._places = anyio.Semaphore(most, fast_acquire=True)
        self._idle: list[Session] = []
        self._lent: set[Session] = set()
        self._closed = False

    async def use(self, work: Callable[[Session], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Do some work on a connection; raise `StoreUnavailable` if that fails.

        Work that the server may have done is tried again only if it is `repeatable`. A cancelled
        caller, too, waits for work that has begun: it is bounded in time. One that waits for a
        connection begins nothing.
        """
        async with self._places:
            with anyio.CancelScope(shield=True):
                return await self._persist(work, repeatable=repeatable)
        raise AssertionError("a shielded scope ends by its return")

    @asynccontextmanager
    async def dedicated(self) -> AsyncGenerator[Session]:
        """Open one more connection for the block; what fails in it is raised as in `use`."""
        try:
            session = await self._connect()
            try:
                yield session
            finally:
                await self._put_back(session, keep=False)
        except psycopg.Error as error:
            raise self._unavailable(_AttemptFailed(error)) from error

    async def close(self) -> None:
        """Close all connections; those in use break, and are closed by their users."""
        self._closed = True
        for session in self._lent:
            session.cut()
        for session in self._idle:
            await session.close()
        self._idle.clear()

    async def _persist(self, work: Callable[[Session], Awaitable[T]], *, repeatable: bool) -> T:
        def may_repeat(failed: _AttemptFailed) -> bool:
            return failed.undone or (failed.lost and repeatable)

        try:
            return await with_retries(lambda: self._attempt(work), _AttemptFailed, may_repeat)
        except _AttemptFailed as failed:
            raise self._unavailable(failed) from failed.error

    async def _attempt(self, work: Callable[[Session], Awaitable[T]]) -> T:
        try:
            session = await self._obtain()
        except psycopg.Error as error:
            # If no server answers, another attempt would only make the wait longer.
            silent = isinstance(error, errors.ConnectionTimeout)
            raise _AttemptFailed(error, undone=not silent) from error
        try:
            return await work(session)
        except psycopg.Error as error:
            # Even if it is not lost: after a failover it may lead to a server that only reads.
            await session.close()
            if session.overdue:
                reason = f"no answer within {self.server.timeout:g} s"
                raise _AttemptFailed(error, reason=reason) from error
            undone, lost = isinstance(error, _NOTHING_DONE), _is_lost(error)
            raise _AttemptFailed(error, undone=undone, lost=lost) from error
        except asyncio.CancelledError:
            # By force. The driver has asked the server to stop; that may come late and hit others.
            await session.close()
            raise
        finally:
            await self._put_back(session)

    async def _obtain(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            if not session.stale:
                self._lent.add(session)
                return session
            await session.close()
        return await self._connect()

    async def _connect(self) -> Session:
        if self._closed:
            raise NotOpen(f"The store {self.server.name}")
        session = await connect(self.server)
        self._lent.add(session)
        return session

    async def _put_back(self, session: Session, *, keep: bool = True) -> None:
        self._lent.discard(session)
        if keep and session.usable and not self._closed:
            self._idle.append(session)
        else:
            await session.close()

    def _unavailable(self, failed: _AttemptFailed) -> StoreUnavailable:
        return StoreUnavailable(self.server.name, failed.reason)


class _AttemptFailed(Exception):
    """Raised when an attempt failed.

    `undone` is whether the server has certainly not done the work, `lost` whether the connection
    broke before its answer came.
    """

    def __init__(
        self, error: psycopg.Error, *, undone: bool = False, lost: bool = False, reason: str = ""
    ) -> None:
        self.error = error
        self.undone = undone
        self.lost = lost
        self.reason = reason or " ".join(str(error).split())


def _is_lost(error: psycopg.Error) -> bool:
    state = error.sqlstate or "08"
    away = state.startswith("08") or state in _SHUT_DOWN_STATES
    return away and isinstance(error, psycopg.OperationalError)
