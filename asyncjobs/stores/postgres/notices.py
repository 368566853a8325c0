"""How processes on one PostgreSQL database learn of each other's writes.

A NOTIFY inside a writing transaction would let only one of them commit at a time. So the ids are
told by a statement of their own, a moment later, and those of that moment together.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import anyio

from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreError
from asyncjobs.stores.postgres import statements as sql
from asyncjobs.stores.postgres.links import Links

log = logging.getLogger("asyncjobs")

_SOON = 0.01

# Of NOTIFY's payload; where the ids do not fit, any job may have changed.
_MOST_BYTES = 7999

# How often a connection on which nothing is heard is asked whether it still lives.
_SILENCE = 20.0


class Notices:
    """Tells what this process writes, and hears of what others write."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._channel = links.server.schema
        self._me = uuid.uuid4().hex[:8]
        self._ids: set[JobId] = set()
        self._here = False
        self._told = 0
        self._task: asyncio.Task[None] | None = None

    def tell(self, ids: Iterable[JobId], *, here: bool = False) -> None:
        """Tell other processes soon that these jobs have changed; nobody waits for it.

        With `here`, this one hears of it, too, in the same way.
        """
        self._ids.update(ids)
        self._here |= here
        if self._ids and self._task is None:
            self._task = asyncio.create_task(self._tell_soon())

    async def close(self) -> None:
        """Return when all is told."""
        if self._task is not None:
            with anyio.CancelScope(shield=True):
                await self._task

    async def listen(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield the ids others tell, beginning with an empty batch for what was told before."""
        async with self._links.lent() as session:
            await session.uninterrupted(f'LISTEN "{self._channel}"')
            yield ()
            while True:
                async with aclosing(session.connection.notifies(timeout=_SILENCE)) as heard:
                    async for notice in heard:
                        sender, ids = _read(notice.payload)
                        if sender != self._me:
                            yield ids
                await session.uninterrupted("SELECT 1")

    async def poll(self, every: float) -> AsyncGenerator[Sequence[JobId]]:
        """Yield an empty batch whenever others have told something."""
        seen = await self._count() - self._told
        yield ()
        while True:
            await anyio.sleep(every)
            # What this process tells meanwhile may be counted on one side only: a needless look.
            others = await self._count() - self._told
            if others != seen:
                seen = others
                yield ()

    async def _tell_soon(self) -> None:
        try:
            while self._ids:
                await asyncio.sleep(_SOON)
                mine = not self._here
                payload = _payload(self._me if mine else "", self._ids)
                self._ids, self._here = set(), False
                try:
                    await self._links.use(lambda db: db.rows(sql.TELL, self._channel, payload))  # noqa: B023
                    self._told += mine
                except StoreError as error:
                    log.debug("Other processes were not told of changes: %s", error)
        finally:
            self._task = None

    async def _count(self) -> int:
        [(value,)] = await self._links.use(lambda db: db.rows(sql.TOLD), repeatable=True)
        return int(value)


def _payload(sender: str, ids: Iterable[JobId]) -> str:
    payload = json.dumps([sender, *ids], separators=(",", ":"))
    return payload if len(payload) <= _MOST_BYTES else json.dumps([sender])


def _read(payload: str) -> tuple[str, list[JobId]]:
    """Read what was told; of what does not come from us, any job may be meant."""
    try:
        sender, *ids = json.loads(payload)
    except (ValueError, TypeError):
        return "", []
    return str(sender), [JobId(str(one)) for one in ids]
