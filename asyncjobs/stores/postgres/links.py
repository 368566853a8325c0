"""The connections of `stores.postgres`: few, and discarded at the first failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.lowlevel
import psycopg
from psycopg import errors

from asyncjobs.errors import NotOpen, StoreUnavailable
from asyncjobs.stores.postgres.session import Server, Session, connect

T = TypeVar("T")

# Between attempts of what may be repeated: a dropped connection, not a server that stays away.
_PAUSES = (0.05, 0.2)

# Of these the server says itself that nothing was done.
_UNDONE = (errors.DeadlockDetected, errors.SerializationFailure)

_SHUT_DOWN = ("57P01", "57P02", "57P03")


class Links:
    """Up to `most` connections, opened when they are needed and kept open."""

    def __init__(self, server: Server, most: int) -> None:
        self.server = server
        self._places = anyio.Semaphore(most)
        self._idle: list[Session] = []
        self._lent: set[Session] = set()
        self._closed = False

    async def use(self, work: Callable[[Session], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Do some work on a connection; raise `StoreUnavailable` where that fails.

        Work that the server may have done is tried again only where `repeatable` says so. What was
        begun is awaited even by a cancelled caller: it is bounded in time.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            async with self._places:
                return await self._persist(work, repeatable=repeatable)
        raise AssertionError("a shielded scope that nobody cancels ends by its return")

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[Session]:
        """Open one more connection for the block; what fails in it is raised as in `use`."""
        try:
            session = await self._connect()
            try:
                yield session
            finally:
                await self._put_back(session, keep=False)
        except psycopg.Error as error:
            raise self._unavailable(_Failed(error)) from error

    async def close(self) -> None:
        """Close all connections; those in use break, and are closed by their users."""
        self._closed = True
        for session in self._lent:
            session.cut()
        for session in self._idle:
            await session.close()
        self._idle.clear()

    async def _persist(self, work: Callable[[Session], Awaitable[T]], *, repeatable: bool) -> T:
        pauses = iter(_PAUSES)
        while True:
            try:
                return await self._attempt(work)
            except _Failed as failed:
                again = failed.undone or (failed.lost and repeatable)
                pause = next(pauses, None) if again else None
                if pause is None:
                    raise self._unavailable(failed) from failed.error
            await anyio.sleep(pause)

    async def _attempt(self, work: Callable[[Session], Awaitable[T]]) -> T:
        try:
            session = await self._obtain()
        except psycopg.Error as error:
            # Where nobody answers, to ask again would only make the wait longer.
            silent = isinstance(error, errors.ConnectionTimeout)
            raise _Failed(error, undone=not silent) from error
        try:
            return await work(session)
        except psycopg.Error as error:
            # Not only where it is lost: after a failover it may lead to a server that only reads.
            await session.close()
            if session.overdue:
                reason = f"no answer within {self.server.timeout:g} s"
                raise _Failed(error, reason=reason) from error
            undone, lost = isinstance(error, _UNDONE), _is_lost(error)
            raise _Failed(error, undone=undone, lost=lost) from error
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

    def _unavailable(self, failed: _Failed) -> StoreUnavailable:
        return StoreUnavailable(self.server.name, failed.reason)


class _Failed(Exception):
    """Say why an attempt failed.

    `undone` is whether the server has certainly not done the work, `lost` whether the connection
    broke before it could tell.
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
    away = state.startswith("08") or state in _SHUT_DOWN
    return away and isinstance(error, psycopg.OperationalError)
