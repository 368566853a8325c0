"""Notifies other processes on the same PostgreSQL database of writes, and receives their notices.

A NOTIFY inside a writing transaction would let only one transaction commit at a time. So the ids
are sent by a separate statement right after it: at once if writes are rare, combined if they are
frequent.
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

# The average time between two notices of a process that writes all the time.
_PACE_SECONDS = 0.005

# NOTIFY's limit. If the ids do not fit, the notice contains none: any job may have changed.
_MAX_PAYLOAD_BYTES = 7999

# After this much silence, a query checks whether the listening connection is still alive.
_SILENCE_SECONDS = 20.0

# One statement serves processes that listen (the ids) and processes that poll (the counter). A
# commit with a notice holds a lock that others wait for, so it does not wait for the disk. If a
# crash loses it, the listening connections break too, and all processes look anew.
_NOTIFY = (
    "SELECT nextval('{s}.changes'), pg_notify(%b::text, %b::text),"
    " set_config('synchronous_commit', 'off', true)"
)
# Before the first `nextval`, `last_value` is already 1 and `is_called` is false.
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
        """Schedule a notice that these jobs have changed, and return at once.

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
        """Yield the ids of other processes; the first batch is empty, for all earlier changes."""
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
        """Yield an empty batch whenever other processes have sent notices."""
        # The counter includes this process's own notices, which are subtracted.
        seen = await self._count() - self._begun
        yield ()
        while True:
            await anyio.sleep(every)
            # One of this process's own notices may be in flight, and not counted by the server yet.
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
                # Counted before it is sent: `poll` must never mistake it for another process's
                # notice.
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
    """Decode a notice; one that another program sent means that any job may have changed."""
    try:
        sender, *ids = json.loads(payload)
    except (ValueError, TypeError):
        return "", []
    return str(sender), [JobId(str(one)) for one in ids]
