"""The connections of `stores.postgres`: the address, the pool, and statements with time limits.

There are few connections, and each is discarded at its first failure.
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

# One port for all hosts, or one for each host, which may be empty.
_PORTS = re.compile(r"(\d{1,5})?(,(\d{1,5})?)*")

# Defaults for parameters that the URL omits. A peer that disappears silently is detected within
# half a minute; the operating system's own limits are hours.
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "fallback_application_name": "asyncjobs",
}

# The server ends a slow statement itself. This is the extra time allowed for its answer.
_ANSWER_GRACE_SECONDS = 1.0

# With outdated statistics of a table that has grown, the planner expects few waiting jobs. It would
# collect and sort them all, although the index returns the first ones in order.
_LIMITS = (
    "SELECT set_config('statement_timeout', %b, false),"
    " set_config('idle_in_transaction_session_timeout', %b, false),"
    " set_config('enable_bitmapscan', 'off', false)"
)

# After these errors the server guarantees that nothing was done.
_NOTHING_DONE = (errors.DeadlockDetected, errors.SerializationFailure)

# SQLSTATEs of a server that is shutting down or starting up.
_SHUT_DOWN_STATES = ("57P01", "57P02", "57P03")


@dataclass(frozen=True, kw_only=True)
class PostgresAddress:
    """The database, our schema in it, and how to connect to it."""

    conninfo: str = field(repr=False)
    name: str
    schema: str
    pgbouncer: bool
    timeout: float


def address_of(url: str, *, schema: str, pgbouncer: bool, timeout: float) -> PostgresAddress:
    """Parse the URL; `name` is the part that may be shown."""
    check_characters("The URL of the PostgreSQL store", url)
    check_credentials("The URL of the PostgreSQL store", url)
    if _SCHEMA_NAME.fullmatch(schema) is None:
        raise ConfigurationError(
            f"A schema's name must have only a-z, 0-9 and _ (at most 63), got {schema!r}."
        )
    given = _parameters_of(url)
    if given is None:
        # The message must quote neither the URL nor the driver's error, which contain the password.
        raise ConfigurationError(
            "The URL of the PostgreSQL store cannot be parsed. Its form is "
            "postgresql://user:password@host:port/database, with libpq's connection parameters as "
            "the query."
        )
    host = given.get("host") or given.get("hostaddr") or "localhost"
    name = f"postgresql://{host}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
    conninfo = make_conninfo("", **{**_DEFAULTS, **given, "client_encoding": "utf8"})
    return PostgresAddress(
        conninfo=conninfo, name=name, schema=schema, pgbouncer=pgbouncer, timeout=timeout
    )


def libpq_parameters() -> set[str]:
    """Return the names of the connection parameters that this libpq accepts in a URL."""
    # `ssl=true`, known from JDBC, is accepted in URLs only.
    return {"ssl", *(option.keyword.decode() for option in Conninfo.get_defaults())}


def _parameters_of(url: str) -> dict[str, Any] | None:
    try:
        given: dict[str, Any] = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the latter for escapes of non-UTF-8
        return None
    # libpq would find this error only when it connects, and would report an unreachable server.
    return given if _PORTS.fullmatch(str(given.get("port") or "")) else None


@cache
def in_schema(query: str, schema: str) -> bytes:
    """Insert the schema's name into a statement."""
    return query.replace("{s}", f'"{schema}"').encode()


@cache
def _array_types(query: str) -> list[str]:
    """Return the element type of each parameter of a statement, '' if it is not an array."""
    found: list[str] = _PARAMETER.findall(query)
    return found


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer | None:
        return bytes(obj)


class StatementRunner(Protocol):
    """Executes statements, in which `{s}` stands for the schema."""

    server: PostgresAddress

    async def rows(self, query: str, /, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        ...


class Session:
    """One connection; in its statements `{s}` stands for the schema."""

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

        If the answer does not come in time, the connection is cut. Cancelling would not help:
        psycopg asks the server to cancel and waits for the answer that does not come.
        """
        statement = in_schema(query, self.server.schema)
        both = zip(_array_types(query), values, strict=True)
        given = [packed(kind, value) if kind else value for kind, value in both]
        seconds = within or self.server.timeout
        timer = asyncio.get_running_loop().call_later(
            seconds + _ANSWER_GRACE_SECONDS, self._give_up
        )
        try:
            # Without values it may be a script, which only the simple protocol accepts.
            cursor = await self.connection.execute(statement, given or None, binary=bool(given))
            return [] if cursor.description is None else await cursor.fetchall()
        finally:
            timer.cancel()

    async def uninterrupted(self, query: str, /, *values: Any) -> None:
        """Execute a statement to its end, within the time limit, even if the caller is cancelled.

        The driver logs a warning when a statement is interrupted.
        """
        with anyio.CancelScope(shield=True):
            await self.rows(query, *values)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Do all of the block or nothing; after a failure the connection is no longer usable."""
        await self.rows("BEGIN")
        yield
        await self.rows("COMMIT")

    @property
    def stale(self) -> bool:
        """Whether the server has ended this idle connection."""
        try:
            for _ in "12":  # first the server's last message, if any, then the end
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
        """Close the connection; a transaction in progress is rolled back."""
        await self.connection.close()

    def cut(self) -> None:
        """Shut the socket down below the driver, so that a waiting call fails."""
        with suppress(psycopg.Error, OSError):
            line = socket.socket(fileno=self.connection.fileno())
            try:
                line.shutdown(socket.SHUT_RDWR)
            finally:
                # The driver still owns the descriptor and closes it.
                line.detach()

    def _give_up(self) -> None:
        self.overdue = True
        self.cut()


async def connect(server: PostgresAddress) -> Session:
    """Open a connection; the driver's errors are raised unchanged."""
    # Behind pgbouncer, the next statement may reach a server process without the prepared
    # statement.
    threshold = None if server.pgbouncer else 5
    connection = await psycopg.AsyncConnection.connect(
        server.conninfo, autocommit=True, prepare_threshold=threshold
    )
    connection.adapters.register_dumper(Array, _ArrayDumper)
    session = Session(connection, server)
    if not server.pgbouncer:
        # The server itself enforces the limit, so that no locks are left behind.
        limit = f"{int(server.timeout * 1000)}ms"
        try:
            await session.uninterrupted(_LIMITS, limit, limit)
        except BaseException:
            await session.close()
            raise
    return session


class ConnectionPool:
    """Up to `most` connections, opened on demand and kept open."""

    def __init__(self, server: PostgresAddress, most: int) -> None:
        self.server = server
        self._places = anyio.Semaphore(most, fast_acquire=True)
        self._idle: list[Session] = []
        self._lent: set[Session] = set()
        self._closed = False

    async def use(self, work: Callable[[Session], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Do some work on a connection; raise `StoreUnavailable` if it fails.

        Work that the server may have done is repeated only if it is `repeatable`. A cancelled
        caller waits for work that has begun, which is limited in time. A caller cancelled while it
        waits for a connection starts no work.
        """
        async with self._places:
            with anyio.CancelScope(shield=True):
                return await self._persist(work, repeatable=repeatable)
        raise AssertionError("a shielded scope ends by its return")

    @asynccontextmanager
    async def dedicated(self) -> AsyncGenerator[Session]:
        """Open an extra connection for the block; errors in it are raised as in `use`."""
        try:
            session = await self._connect()
            try:
                yield session
            finally:
                await self._put_back(session, keep=False)
        except psycopg.Error as error:
            raise self._unavailable(_AttemptFailed(error)) from error

    async def close(self) -> None:
        """Close all connections; those in use are cut, and closed by their users."""
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
            # If no server answers, another attempt would only prolong the wait.
            silent = isinstance(error, errors.ConnectionTimeout)
            raise _AttemptFailed(error, undone=not silent) from error
        try:
            return await work(session)
        except psycopg.Error as error:
            # Even if the connection works: after a failover it may lead to a server that is
            # read-only.
            await session.close()
            if session.overdue:
                reason = f"no answer within {self.server.timeout:g} s"
                raise _AttemptFailed(error, reason=reason) from error
            undone, lost = isinstance(error, _NOTHING_DONE), _is_lost(error)
            raise _AttemptFailed(error, undone=undone, lost=lost) from error
        except asyncio.CancelledError:
            # The task was cancelled despite the shield. The driver has asked the server to cancel;
            # that may arrive late and hit the next statement on this connection.
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

    `undone` is True if the server has certainly not done the work, `lost` if the connection broke
    before the answer came.
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
