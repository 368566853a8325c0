"""Stores jobs in a schema of a PostgreSQL database. Durability: as the server commits.

Any number of processes on any number of machines may share it. A few connections are enough, since
the queue combines concurrent calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any, Self
from urllib.parse import parse_qs

from asyncjobs.core.encoding import from_microseconds, to_microseconds
from asyncjobs.core.job import Job, JobId
from asyncjobs.core.labels import Tally
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import (
    HOLD,
    Change,
    ChangeNotices,
    Finding,
    Inspection,
    Listing,
    MigrationScript,
    OutputStreams,
    Page,
    Selection,
    StoreClock,
    Tallies,
    Transactions,
)
from asyncjobs.stores.opening import OpenState, require_asyncio
from asyncjobs.stores.postgres import output, queries
from asyncjobs.stores.postgres.connections import ConnectionPool, address_of, libpq_parameters
from asyncjobs.stores.postgres.notices import Notices
from asyncjobs.stores.postgres.schema import inspect, migration_sql, prepare
from asyncjobs.stores.postgres.transactions import (
    PLACE,
    BorrowedTransaction,
    CommitWatch,
    elsewhere,
    transaction_on,
)
from asyncjobs.stores.urls import check_credentials, check_parameters

# Parameters of the URL, in addition to libpq's.
_PARAMETERS = ("asyncjobs_schema", "pgbouncer")

#: How often to poll for other processes' changes through a pooler, which forwards no notices.
POLL_SECONDS = 0.25


class PostgresStore:
    """A store in a schema of the database, which is created if it does not exist.

    `pgbouncer` is for connections through a pooler in transaction mode: no statements are prepared,
    and changes are polled for. `connections` is the maximum for calls; one more listens for
    changes. A statement is aborted after `timeout` seconds.
    """

    powers: frozenset[type] = frozenset(
        {
            *(ChangeNotices, Inspection, Listing, MigrationScript, OutputStreams, StoreClock),
            *(Tallies, Transactions),
        }
    )
    filters: frozenset[str] = frozenset({"user_id", "type", "status", "tag", "batch", "members"})

    def __init__(
        self,
        url: str,
        *,
        schema: str = "asyncjobs",
        pgbouncer: bool = False,
        connections: int = 4,
        timeout: float = 30.0,
    ) -> None:
        self.server = address_of(url, schema=schema, pgbouncer=pgbouncer, timeout=timeout)
        self._connections = connections
        self._state: OpenState[_OpenPool] = OpenState(self.server.name)

    async def __aenter__(self) -> Self:
        require_asyncio("PostgreSQL", driver="psycopg")
        pool = ConnectionPool(self.server, self._connections)
        try:
            await pool.use(prepare, repeatable=True)
        except BaseException:
            await pool.close()
            raise
        self._state.set(_OpenPool(pool))
        return self

    async def __aexit__(self, *_: object) -> None:
        opened = self._state.clear()
        await opened.commits.close()
        await opened.notices.close()
        await opened.pool.close()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        opened = self._state.get()
        stored = await opened.pool.use(partial(queries.insert, jobs=jobs), repeatable=True)
        opened.notices.send(
            job.id for job, found in zip(jobs, stored, strict=True) if job.id == found.id
        )
        return stored

    async def insert_within(self, connection: object, jobs: Sequence[Job], /) -> Sequence[Job]:
        opened = self._state.get()
        db = BorrowedTransaction(transaction_on(connection), self.server)
        async with db.savepoint():
            here, transaction = await db.place()
            if not await opened.is_at(here):
                raise elsewhere()
            stored = await queries.insert(db, jobs)
        both = zip(jobs, stored, strict=True)
        opened.commits.expect(transaction, [job.id for job, found in both if job.id == found.id])
        return stored

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._state.get().pool.use(partial(queries.get, ids=ids), repeatable=True)

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        opened = self._state.get()
        written = await opened.pool.use(partial(queries.replace, changes=changes))
        both = zip(changes, written, strict=True)
        opened.notices.send(change.job.id for change, done in both if done)
        return written

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        if limit < 1 or not lanes:
            return []
        due = to_microseconds(now), to_microseconds(until)
        return await self._state.get().pool.use(lambda db: queries.take(db, lanes, *due, limit))

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        opened = self._state.get()
        deleted = await opened.pool.use(partial(queries.delete, ids=ids), repeatable=True)
        opened.notices.send(ids)
        return deleted

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        pool = self._state.get().pool
        return await pool.use(lambda db: queries.select(db, which, limit, after), repeatable=True)

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        now, end = to_microseconds(until - HOLD), to_microseconds(until)
        return await self._state.get().pool.use(
            lambda db: queries.count_before(db, job, now, end, most), repeatable=True
        )

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return await self._state.get().pool.use(
            lambda db: queries.first_due(db, lanes), repeatable=True
        )

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        return await self._state.get().pool.use(
            lambda db: queries.tally(db, labels), repeatable=True
        )

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        opened = self._state.get()
        done = await opened.pool.use(
            partial(output.append, appends=appends),
            # A repetition is recognised by its position.
            repeatable=all(one.position is not None for one in appends),
        )
        both = zip(appends, done, strict=True)
        opened.notices.send(one.job_id for one, answer in both if answer.refusal is None)
        return done

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await self._state.get().pool.use(
            lambda db: output.begin_epoch(db, job_id, epoch), repeatable=True
        )

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        return await self._state.get().pool.use(
            lambda db: output.read_output(db, reads), repeatable=True
        )

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        return await self._state.get().pool.use(lambda db: output.outputs(db, ids), repeatable=True)

    async def now(self) -> datetime:
        return from_microseconds(await self._state.get().pool.use(queries.now, repeatable=True))

    async def inspect(self) -> Sequence[Finding]:
        return await self._state.get().pool.use(inspect, repeatable=True)

    def migration_sql(self, *, since: int = 0) -> str:
        return migration_sql(self.server.schema, since=since)

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield ids that others have changed; raise `StoreUnavailable` if the connection breaks."""
        notices = self._state.get().notices
        changes = notices.poll(POLL_SECONDS) if self.server.pgbouncer else notices.listen()
        async with aclosing(changes):
            async for ids in changes:
                yield ids


class _OpenPool:
    """The state that exists only while the store is open."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.notices = Notices(pool)
        self.commits = CommitWatch(pool, self.notices)
        self._here: tuple[Any, ...] | None = None

    async def is_at(self, place: tuple[Any, ...]) -> bool:
        """Return whether the store's own connections lead to this place."""
        if self._here != place:  # the first time, or the server was restarted
            [self._here] = await self.pool.use(lambda db: db.rows(PLACE), repeatable=True)
        return self._here == place


def from_url(url: str) -> PostgresStore:
    """Make a store from `postgresql://user:password@host:port/database`.

    The query may have `asyncjobs_schema=name` and `pgbouncer=true` in addition to libpq's
    parameters.
    """
    check_credentials("The URL of the PostgreSQL store", url)
    check_parameters("PostgreSQL", url, {*_PARAMETERS, *libpq_parameters()})
    address, mark, query = url.partition("?")
    parts = query.split("&") if mark else []
    ours = [part for part in parts if part.partition("=")[0] in _PARAMETERS]
    theirs = "&".join(part for part in parts if part not in ours)
    options = parse_qs("&".join(ours), keep_blank_values=True)
    [schema] = options.get("asyncjobs_schema", ["asyncjobs"])[-1:]
    [pgbouncer] = options.get("pgbouncer", ["false"])[-1:]
    if pgbouncer not in ("true", "false"):
        raise ConfigurationError(f"pgbouncer must be true or false, got {pgbouncer!r}.")
    bare = f"{address}?{theirs}" if theirs else address
    return PostgresStore(bare, schema=schema, pgbouncer=pgbouncer == "true")
