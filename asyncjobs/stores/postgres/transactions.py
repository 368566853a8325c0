"""Inserts jobs in the application's own transaction, and notices when it commits.

PostgreSQL does not announce commits. A NOTIFY inside the transaction would, but allows only one
commit at a time. So the server is polled, but only while such transactions are open.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import psycopg
from anyio import to_thread
from psycopg.rows import tuple_row

from asyncjobs.core.job import JobId
from asyncjobs.errors import AsyncJobsError, StoreError, StoreUnavailable, UnusableConnection
from asyncjobs.records.logging import log
from asyncjobs.stores.postgres.connections import ConnectionPool, PostgresAddress, in_schema
from asyncjobs.stores.postgres.notices import Notices

# Most transactions end quickly. One that stays open is polled less and less often.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.01, 0.2

#: Equal for two connections only if both use the same tables of the same server.
PLACE = """
SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
    to_regclass('{s}.jobs')::oid::bigint
"""
_PLACE_AND_TRANSACTION = f"{PLACE}, txid_current()"

_FATES = "SELECT asked, txid_status(asked) FROM unnest(%b::bigint[]) AS asked"

_FAILED = "its transaction has failed: roll it back and begin a new one"
_ELSEWHERE = "it does not use the tables of the queue's store"

# Mistakes of the caller, by SQLSTATE.
_MISUSED = {
    "25P01": "it is in autocommit mode, so there is no transaction: begin one",
    "25P02": _FAILED,
    "25006": "its transaction is read-only",
    "42501": "its role may not write to the tables of the queue's store",
}


class Refused(Exception):
    """Raised when the driver raised an error; `state` is its SQLSTATE."""

    def __init__(self, error: Exception, state: str | None) -> None:
        self.error = error
        self.state = state


class Transaction(ABC):
    """The transaction in progress on a connection, or the one its next statement begins."""

    @abstractmethod
    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Execute a statement with parameters of the form `%b::type`; raise `Refused`."""


class _AsyncioTransaction(Transaction):
    def __init__(self, connection: Any) -> None:
        self._connection: psycopg.AsyncConnection[Any] = connection

    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        # The connection's own factories may return other types of cursors and rows.
        cursor = psycopg.AsyncCursor(self._connection, row_factory=tuple_row)
        try:
            await cursor.execute(statement.encode(), values or None, prepare=False, binary=True)
            return [] if cursor.description is None else await cursor.fetchall()
        except psycopg.Error as error:
            raise Refused(error, error.sqlstate) from error


class _ThreadTransaction(Transaction):
    def __init__(self, connection: Any) -> None:
        self._connection: psycopg.Connection[Any] = connection

    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await to_thread.run_sync(self._rows, statement, values)

    def _rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor = psycopg.Cursor(self._connection, row_factory=tuple_row)
        try:
            cursor.execute(statement.encode(), values or None, prepare=False, binary=True)
            return [] if cursor.description is None else cursor.fetchall()
        except psycopg.Error as error:
            raise Refused(error, error.sqlstate) from error


def transaction_on(connection: object) -> Transaction:
    """Return the transaction of a connection; raise `UnusableConnection` for an unknown type."""
    if isinstance(connection, Transaction):
        return connection
    given = connection  # its rows may be of any type
    if not isinstance(connection, psycopg.AsyncConnection | psycopg.Connection):
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise UnusableConnection(
            f"it is a {kind}, but the PostgreSQL store takes a connection of psycopg or, for "
            "SQLAlchemy, the result of `asyncjobs.adapters.sqlalchemy.transaction_of`"
        )
    if connection.closed:
        raise UnusableConnection("it is closed")
    if isinstance(connection, psycopg.AsyncConnection):
        return _AsyncioTransaction(given)
    return _ThreadTransaction(given)


class BorrowedTransaction:
    """The application's transaction, in which the store executes its statements."""

    def __init__(self, transaction: Transaction, server: PostgresAddress) -> None:
        self.server = server
        self._transaction = transaction

    async def rows(self, query: str, /, *values: Any) -> list[tuple[Any, ...]]:
        statement = in_schema(query, self.server.schema).decode()
        try:
            return await self._transaction.rows(statement, values)
        except Refused as refused:
            if refused.state in _MISUSED:
                raise UnusableConnection(_MISUSED[refused.state]) from refused.error
            reason = " ".join(str(refused.error).split())
            raise StoreUnavailable(self.server.name, reason) from refused.error

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """Roll back only the block if it raises, so that the transaction can continue."""
        with anyio.CancelScope(shield=True):
            await self.rows("SAVEPOINT asyncjobs")
        try:
            yield
        except BaseException:
            # If the connection is broken, the rollback fails as well; the first error explains
            # more.
            with anyio.CancelScope(shield=True), suppress(AsyncJobsError):
                await self.rows("ROLLBACK TO SAVEPOINT asyncjobs")
                await self.rows("RELEASE SAVEPOINT asyncjobs")
            raise
        with anyio.CancelScope(shield=True):
            await self.rows("RELEASE SAVEPOINT asyncjobs")

    async def place(self) -> tuple[tuple[Any, ...], int]:
        """Return the `PLACE` of the connection, and the transaction's number."""
        [(*here, number)] = await self.rows(_PLACE_AND_TRANSACTION)
        return tuple(here), int(number)


def elsewhere() -> UnusableConnection:
    """Return the error for a connection that uses other tables than the store's."""
    return UnusableConnection(_ELSEWHERE)


class CommitWatch:
    """Notifies all processes of jobs in transactions, soon after these have committed."""

    def __init__(self, pool: ConnectionPool, notices: Notices) -> None:
        self._pool = pool
        self._notices = notices
        self._expected: dict[int, set[JobId]] = {}
        self._pause = _MIN_PAUSE_SECONDS
        self._task: asyncio.Task[None] | None = None

    def expect(self, transaction: int, ids: Sequence[JobId]) -> None:
        """Send notices of these jobs when the transaction with this number has committed."""
        if not ids:
            return
        self._expected.setdefault(transaction, set()).update(ids)
        self._pause = _MIN_PAUSE_SECONDS
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop polling; the workers' polling finds the jobs of transactions that are still open."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        try:
            while self._expected:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)
                await self._look()
        except StoreError as error:
            # After a failover the numbers may be meaningless; the workers' polling finds the jobs.
            log.debug("The outcome of transactions is unknown: %s", error)
            self._expected.clear()
        finally:
            self._task = None

    async def _look(self) -> None:
        asked = list(self._expected)
        for number, fate in await self._pool.use(lambda db: db.rows(_FATES, asked)):
            if fate != "in progress":
                ids = self._expected.pop(number)
                # NULL means that the server no longer knows; a superfluous notice does no harm.
                if fate != "aborted":
                    self._notices.send(ids, here=True)
