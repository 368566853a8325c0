"""SQLAlchemy: `await jobs.enqueue(export, cmd, connection=transaction_of(session))`.

It works with every PostgreSQL driver: the statements go through SQLAlchemy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from anyio import to_thread

try:
    from sqlalchemy import Connection, Row, TextClause, text
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
except ImportError as error:
    raise ImportError(
        "asyncjobs.adapters.sqlalchemy needs SQLAlchemy: pip install 'sqlalchemy[asyncio]'"
    ) from error
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session

from asyncjobs.errors import UnusableConnection

try:
    from asyncjobs.stores.postgres.transactions import Refused, Transaction
except ImportError as error:
    raise ImportError(
        "asyncjobs.adapters.sqlalchemy is for jobs in PostgreSQL, and needs its driver: "
        "pip install 'asyncjobs-http[postgres]'"
    ) from error

Asynchronous = AsyncSession | AsyncConnection | async_scoped_session[Any]
Synchronous = Session | Connection | scoped_session[Any]

_PARAMETER = re.compile(r"%b::(\w+(?:\[\])?)")


def transaction_of(session: Asynchronous | Synchronous) -> Transaction:
    """Return the transaction of a session or connection, to be passed to `AsyncJobs.enqueue`.

    The job exists once that commits. For a scoped session, this is the session of the current
    scope. Raises `UnusableConnection` for a database other than PostgreSQL.
    """
    if isinstance(session, async_scoped_session | scoped_session):
        # Resolved here, since the statements may run in a thread or task with another scope.
        return transaction_of(session())
    where = session.get_bind() if isinstance(session, AsyncSession | Session) else session
    if where.dialect.name != "postgresql":
        raise UnusableConnection(f"it uses {where.dialect.name}, but the store uses PostgreSQL")
    if isinstance(session, AsyncSession | AsyncConnection):
        return _Asynchronous(session)
    return _Synchronous(session)


class _Asynchronous(Transaction):
    def __init__(self, session: AsyncSession | AsyncConnection) -> None:
        self._session = session

    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        query, given = _translated(statement, values)
        try:
            session = self._session
            own = await session.connection() if isinstance(session, AsyncSession) else session
            result = await own.execute(query, given)
        except (DBAPIError, InvalidRequestError) as error:
            raise _refused(error) from error
        return _plain(result) if result.returns_rows else []


class _Synchronous(Transaction):
    def __init__(self, session: Session | Connection) -> None:
        self._session = session

    async def rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await to_thread.run_sync(self._rows, statement, values)

    def _rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        query, given = _translated(statement, values)
        try:
            session = self._session
            own = session.connection() if isinstance(session, Session) else session
            result = own.execute(query, given)
        except (DBAPIError, InvalidRequestError) as error:
            raise _refused(error) from error
        return _plain(result) if result.returns_rows else []


def _translated(statement: str, values: Sequence[Any]) -> tuple[TextClause, dict[str, Any]]:
    return _query(statement), {f"p{place}": value for place, value in enumerate(values)}


@cache
def _query(statement: str) -> TextClause:
    """Name the parameters, as SQLAlchemy requires for every driver."""
    numbers = iter(range(len(statement)))
    named = _PARAMETER.sub(lambda found: f"CAST(:p{next(numbers)} AS {found[1]})", statement)
    return text(named)


def _plain(rows: Iterable[Row[Any]]) -> list[tuple[Any, ...]]:
    """Convert binary columns to bytes, since psycopg2 returns them in another type."""
    return [tuple(map(_plain_value, row)) for row in rows]


def _plain_value(value: Any) -> Any:
    return value.tobytes() if isinstance(value, memoryview) else value


def _refused(error: DBAPIError | InvalidRequestError) -> Exception:
    if not isinstance(error, DBAPIError):  # closed, or its transaction must be rolled back
        return UnusableConnection(" ".join(str(error).split()))
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return Refused(error, state)
