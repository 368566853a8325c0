"""What `stores.postgres` executes in a transaction of the application's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import psycopg
from anyio import to_thread
from psycopg.rows import tuple_row

from asyncjobs.errors import AsyncJobsError, StoreUnavailable, UnusableConnection
from asyncjobs.stores.postgres import statements as sql
from asyncjobs.stores.postgres.session import Server, in_schema

_FAILED = "its transaction has failed: roll it back and begin another one"
_ELSEWHERE = "it does not lead to the tables of the queue's store"

# By SQLSTATE. All else is not the caller's mistake.
_MISUSED = {
    "25P01": "it is in autocommit mode, so there is no transaction: begin one",
    "25P02": _FAILED,
    "25006": "its transaction is read-only",
    "42501": "its role may not write to the tables of the queue's store",
}


class Refused(Exception):
    """Say that a driver raised an error, and by which SQLSTATE."""

    def __init__(self, error: Exception, state: str | None) -> None:
        self.error = error
        self.state = state


class Transaction(ABC):
    """The transaction that is under way on a connection, or begins with its next statement."""

    @abstractmethod
    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Execute a statement, whose parameters are `%b::type`; raise `Refused`."""


class _Asynchronous(Transaction):
    def __init__(self, connection: Any) -> None:
        self._connection: psycopg.AsyncConnection[Any] = connection

    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        # Made here, since the connection's own factories may be any.
        cursor = psycopg.AsyncCursor(self._connection, row_factory=tuple_row)
        try:
            await cursor.execute(statement.encode(), values or None, prepare=False, binary=True)
            return [] if cursor.description is None else await cursor.fetchall()
        except psycopg.Error as error:
            raise Refused(error, error.sqlstate) from error


class _Synchronous(Transaction):
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
    """Find out what kind of connection it is; raise `UnusableConnection`."""
    if isinstance(connection, Transaction):
        return connection
    given = connection  # whose rows may be of any kind
    if not isinstance(connection, psycopg.AsyncConnection | psycopg.Connection):
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise UnusableConnection(
            f"it is a {kind}, where the PostgreSQL store takes psycopg's, or from SQLAlchemy what "
            "`asyncjobs.adapters.sqlalchemy.transaction_of` returns"
        )
    if connection.closed:
        raise UnusableConnection("it is closed")
    if isinstance(connection, psycopg.AsyncConnection):
        return _Asynchronous(given)
    return _Synchronous(given)


class Borrowed:
    """A transaction of the application's, in which statements of ours are executed."""

    def __init__(self, transaction: Transaction, server: Server) -> None:
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
        """Undo what the block did where it raises, so that the transaction can go on."""
        with anyio.CancelScope(shield=True):
            await self.rows("SAVEPOINT asyncjobs")
        try:
            yield
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(AsyncJobsError):
                await self.rows("ROLLBACK TO SAVEPOINT asyncjobs")
                await self.rows("RELEASE SAVEPOINT asyncjobs")
            raise
        with anyio.CancelScope(shield=True):
            await self.rows("RELEASE SAVEPOINT asyncjobs")

    async def whereabouts(self) -> tuple[tuple[Any, ...], int]:
        """Return what tells our tables from any others, and the transaction's number."""
        [(*here, number)] = await self.rows(sql.HERE_AND_WHO)
        return tuple(here), int(number)


def elsewhere() -> UnusableConnection:
    """Say that a connection leads to other tables than those of the store."""
    return UnusableConnection(_ELSEWHERE)
