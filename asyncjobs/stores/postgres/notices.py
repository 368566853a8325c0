"""How processes on one PostgreSQL database learn of each other's writes.

A NOTIFY inside a writing transaction would let only one of them commit at a time. So the ids are
sent by a statement of their own right after it: at once where few are written, else those of a
moment together.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import anyio

from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreError
from asyncjobs.records.logging import log
from asyncjobs.stores.pacing import Pace
from asyncjobs.stores.postgres.connections import ConnectionPool

# Between two notices of a process that writes all the time.
_PACE_SECONDS = 0.005

# NOTIFY's limit. If the ids do not fit, the notice names none: any job may have changed.
_MAX_PAYLOAD_BYTES = 7999

# After such a silence a listening connection is asked whether it is still alive.
_SILENCE_SECONDS = 20.0

# In one statement, since both are for the same moment: the ids are for processes that listen, the
# counter is for those that poll. Others wait for the lock that a commit with a notice holds; so it
# does not wait for the disk. A crash ends all who listen, and they look anew.
_NOTIFY = (
    "SELECT nextval('{s}.changes'), pg_notify(%b::text, %b::text),"
    " set_config('synchronous_commit', 'off', true)"
)
# The first value is the last one already before it is given out.
_COUNT_NOTICES = "SELECT last_value + is_called::int FROM {s}.changes"


class Notices:
    """Sends the ids that this process writes, and receives those of other processes."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._channel = pool.server.schema
        self._me = uuid.uuid4().hex[:8]
        self._ids: set[JobId] = set()
        self._here = False
        self._begun = 0
        self._pace = Pace(_PACE_SECONDS)
        self._task: asyncio.Task[None] | None = None

    def send(self, ids: Iterable[JobId], *, here: bool = False) -> None:
        """Notify other processes soon that these jobs have changed; return at once.

        With `here`, this process receives the notice, too.
        """
        self._ids.update(ids)
        self._here |= here
        if self._ids and self._task is None:
            self._task = asyncio.create_task(self._send_soon())

    async def close(self) -> None:
        """Return when all notices are sent."""
        if self._task is not None:
            with anyio.CancelScope(shield=True):
                await self._task

    async def listen(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield the ids of other processes; first an empty batch for what was sent before."""
        async with self._pool.dedicated() as session:
            await session.uninterrupted(f'LISTEN "{self._channel}"')
            yield ()
            while True:
                async with aclosing(session.connection.notifies(timeout=_SILENCE_SECONDS)) as heard:
                    async for notice in heard:
                        sender, ids = _read(notice.payload)
                        if sender != self._me:
                            yield ids
                await session.uninterrupted("SELECT 1")

    async def poll(self, every: float) -> AsyncGenerator[Sequence[JobId]]:
        """Yield an empty batch whenever other processes have sent something."""
        seen = await self._count() - self._begun
        yield ()
        while True:
            await anyio.sleep(every)
            # One of this process may be under way, and not be counted by the server yet.
            others = await self._count() - self._begun
            if others not in (seen - 1, seen):
                seen = others
                yield ()

    async def _send_soon(self) -> None:
        try:
            while self._ids:
                await asyncio.sleep(self._pace.pause(anyio.current_time()))
                mine = not self._here
                payload = _payload(self._me if mine else "", self._ids)
                self._ids, self._here = set(), False
                self._begun += mine
                try:
                    await self._pool.use(lambda db: db.rows(_NOTIFY, self._channel, payload))  # noqa: B023
                except StoreError as error:
                    self._begun -= mine
                    log.debug("Other processes were not notified of changes: %s", error)
        finally:
            self._task = None

    async def _count(self) -> int:
        [(value,)] = await self._pool.use(lambda db: db.rows(_COUNT_NOTICES), repeatable=True)
        return int(value)


def _payload(sender: str, ids: Iterable[JobId]) -> str:
    payload = json.dumps([sender, *ids], separators=(",", ":"))
    return payload if len(payload) <= _MAX_PAYLOAD_BYTES else json.dumps([sender])


def _read(payload: str) -> tuple[str, list[JobId]]:
    """Read a notice; one of another program means any job."""
    try:
        sender, *ids = json.loads(payload)
    except (ValueError, TypeError):
        return "", []
    return str(sender), [JobId(str(one)) for one in ids]
