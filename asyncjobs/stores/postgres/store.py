"""Keeps jobs in a schema of a PostgreSQL database. Durability: what the server does at a commit.

Any number of processes on any number of machines may share it. Few connections are enough, since
the queue merges concurrent calls into large ones.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from asyncjobs.core.encoding import from_microseconds, to_microseconds
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.protocols import (
    Change,
    ChangeNotices,
    Finding,
    Inspection,
    Listing,
    MigrationScript,
    Page,
    Selection,
    StoreClock,
    Transactions,
)
from asyncjobs.stores.event_loops import require_asyncio
from asyncjobs.stores.postgres import rows
from asyncjobs.stores.postgres import statements as sql
from asyncjobs.stores.postgres.checks import inspect
from asyncjobs.stores.postgres.commits import Commits
from asyncjobs.stores.postgres.links import Links
from asyncjobs.stores.postgres.notices import Notices
from asyncjobs.stores.postgres.schema import migration_sql, prepare
from asyncjobs.stores.postgres.session import server_at
from asyncjobs.stores.postgres.within import Borrowed, elsewhere, transaction_on

# What a fork copied into this process. To close an inherited connection would end the parent's.
_inherited: list[object] = []

# How often to look for other processes' changes where they cannot be heard of.
_LOOK_SECONDS = 0.25


class PostgresStore:
    """A store in the schema of that name, which is made where it does not exist.

    `pgbouncer` is for connections through a pooler in transaction mode: nothing is prepared, and
    changes are polled for instead of listened to. `connections` is the most that calls use, beside
    the one that listens. A statement that takes longer than `timeout` seconds is given up.
    """

    powers = frozenset(
        {ChangeNotices, Inspection, Listing, MigrationScript, StoreClock, Transactions}
    )

    def __init__(
        self,
        url: str,
        *,
        schema: str = "asyncjobs",
        pgbouncer: bool = False,
        connections: int = 4,
        timeout: float = 30.0,
    ) -> None:
        self.server = server_at(url, schema=schema, pgbouncer=pgbouncer, timeout=timeout)
        self._connections = connections
        self._open: _Open | None = None

    async def __aenter__(self) -> Self:
        require_asyncio("PostgreSQL", driver="psycopg")
        if self._open is not None:
            _inherited.append(self._open)
        links = Links(self.server, self._connections)
        try:
            await links.use(prepare, repeatable=True)
        except BaseException:
            await links.close()
            raise
        self._open = _Open(links)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._open = self._opened, None
        await opened.commits.close()
        await opened.notices.close()
        await opened.links.close()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        opened = self._opened
        stored = await opened.links.use(partial(rows.insert, jobs=jobs), repeatable=True)
        opened.notices.tell(
            job.id for job, found in zip(jobs, stored, strict=True) if job.id == found.id
        )
        return stored

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        opened = self._opened
        db = Borrowed(transaction_on(connection), self.server)
        async with db.savepoint():
            here, transaction = await db.whereabouts()
            if not await opened.is_at(here):
                raise elsewhere()
            stored = await rows.insert(db, jobs)
        both = zip(jobs, stored, strict=True)
        opened.commits.expect(transaction, [job.id for job, found in both if job.id == found.id])
        return stored

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._opened.links.use(partial(rows.get, ids=ids), repeatable=True)

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        opened = self._opened
        written = await opened.links.use(partial(rows.replace, changes=changes))
        both = zip(changes, written, strict=True)
        opened.notices.tell(change.job.id for change, done in both if done)
        return written

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        if limit < 1 or not lanes:
            return []
        due = to_microseconds(now), to_microseconds(until)
        return await self._opened.links.use(lambda db: rows.take(db, lanes, *due, limit))

    async def delete(self, ids: Sequence[JobId], /) -> None:
        opened = self._opened
        await opened.links.use(partial(rows.delete, ids=ids), repeatable=True)
        opened.notices.tell(ids)

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        links = self._opened.links
        return await links.use(lambda db: rows.select(db, which, limit, after), repeatable=True)

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        links, due = self._opened.links, to_microseconds(until)
        return await links.use(lambda db: rows.count_before(db, job, due, most), repeatable=True)

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return await self._opened.links.use(lambda db: rows.first_due(db, lanes), repeatable=True)

    async def now(self) -> datetime:
        return from_microseconds(await self._opened.links.use(rows.now, repeatable=True))

    async def inspect(self) -> Sequence[Finding]:
        return await self._opened.links.use(inspect, repeatable=True)

    def migration_sql(self, *, since: int = 0) -> str:
        return migration_sql(self.server.schema, since=since)

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield ids others have changed; `StoreUnavailable` where the connection breaks."""
        notices = self._opened.notices
        changes = notices.poll(_LOOK_SECONDS) if self.server.pgbouncer else notices.listen()
        async with aclosing(changes):
            async for ids in changes:
                yield ids

    @property
    def _opened(self) -> _Open:
        if self._open is None or self._open.pid != os.getpid():
            raise NotOpen(f"The store {self.server.name}")
        return self._open


class _Open:
    """What exists only while the store is open, in one process."""

    def __init__(self, links: Links) -> None:
        self.pid = os.getpid()
        self.links = links
        self.notices = Notices(links)
        self.commits = Commits(links, self.notices)
        self._here: tuple[Any, ...] | None = None

    async def is_at(self, place: tuple[Any, ...]) -> bool:
        """Tell whether that is where our own connections lead."""
        if self._here != place:  # the first time, or the server was restarted
            [self._here] = await self.links.use(lambda db: db.rows(sql.HERE), repeatable=True)
        return self._here == place


def from_url(url: str) -> PostgresStore:
    """Make a store for `postgresql://user:password@host:port/database`.

    The query may have `asyncjobs_schema=name` and `pgbouncer=true` beside libpq's own parameters.
    """
    address, mark, query = url.partition("?")
    parts = query.split("&") if mark else []
    ours = [part for part in parts if part.partition("=")[0] in ("asyncjobs_schema", "pgbouncer")]
    theirs = "&".join(part for part in parts if part not in ours)
    options = parse_qs("&".join(ours), keep_blank_values=True)
    [schema] = options.get("asyncjobs_schema", ["asyncjobs"])[-1:]
    [pgbouncer] = options.get("pgbouncer", ["false"])[-1:]
    if pgbouncer not in ("true", "false"):
        raise ConfigurationError(f"pgbouncer is true or false, got {pgbouncer!r}.")
    bare = f"{address}?{theirs}" if theirs else address
    return PostgresStore(bare, schema=schema, pgbouncer=pgbouncer == "true")
