"""Keeps jobs in one SQLite file: the embedded default. Durability: fsync.

Any number of processes may share the file. Writes go through one thread, all or nothing per call,
and are on disk when they return (WAL, synchronous=FULL). Reads are short and happen on the calling
thread: they cost less than a change of threads, and in WAL mode wait for nobody.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar

import anyio
import anyio.lowlevel

from asyncjobs.core.encoding import to_microseconds
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.threads import ThreadQueue
from asyncjobs.protocols import (
    HOLD,
    Change,
    ChangeNotices,
    Finding,
    InlineReads,
    Inspection,
    Listing,
    MigrationScript,
    Page,
    Selection,
)
from asyncjobs.stores.opening import OpenState
from asyncjobs.stores.sqlite import queries
from asyncjobs.stores.sqlite.file import (
    DatabaseFile,
    inspect,
    is_busy,
    migration_sql,
    set_patience,
    transaction,
)
from asyncjobs.stores.urls import check_parameters

T = TypeVar("T")

#: How long a commit may keep the event loop from other tasks, on average.
MAX_COMMIT_SECONDS_IN_LOOP = 0.001

# So long the loop may be kept by reads that find their answer at once. A turn of the loop costs as
# much as a read.
_TURN_SECONDS = 0.001

# How often to look for others' writes for how long after the last one. To look takes 20 us.
_BUSY_NOTICE_SECONDS = 0.002
_BUSY_SECONDS = 1.0

# A write of more jobs keeps the event loop from other tasks for longer than its commit does.
_MAX_JOBS_IN_LOOP = 200


class SqliteStore:
    """A store in the file at `path`, which is made if it does not exist."""

    powers: frozenset[type] = frozenset(
        {ChangeNotices, InlineReads, Inspection, Listing, MigrationScript}
    )
    filters: frozenset[str] = frozenset({"user_id", "type", "status"})

    def __init__(self, path: str | Path, *, notice: float = 0.03) -> None:
        self.path = Path(path)
        self._file = DatabaseFile(self.path)
        self._notice = notice
        self._state: OpenState[_OpenFile] = OpenState(str(self.path))

    async def __aenter__(self) -> Self:
        thread = ThreadQueue("asyncjobs sqlite")
        thread.start()
        try:
            writer, reader = await thread.call(self._file.open)
        except BaseException:
            thread.close()
            raise
        self._state.set(_OpenFile(thread, writer, reader))
        return self

    async def __aexit__(self, *_: object) -> None:
        opened = self._state.clear()
        opened.reader.close()
        with anyio.CancelScope(shield=True):
            await opened.thread.call(opened.writer.close)
        opened.thread.close()
        self._file.closed()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._write(lambda db: queries.insert(db, jobs), len(jobs))

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        opened = self._state.get()
        if perf_counter() - opened.turn_at > _TURN_SECONDS:
            # Other tasks get their turn even while one reads in a loop.
            await anyio.lowlevel.checkpoint()
            opened.turn_at = perf_counter()
        return await self._read(lambda db: queries.get(db, ids))

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._write(lambda db: queries.replace(db, changes), len(changes))

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        moment = to_microseconds(now)
        # Workers ask all the time and mostly for nothing: that costs no write lock.
        if limit < 1 or not await self._read(lambda db: queries.any_due(db, lanes, moment)):
            return []
        due_next = to_microseconds(until)
        return await self._write(lambda db: queries.take(db, lanes, moment, due_next, limit), limit)

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._write(lambda db: queries.delete(db, ids), len(ids))

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await self._read(lambda db: queries.select(db, which, limit, after))

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        now, end = to_microseconds(until - HOLD), to_microseconds(until)
        return await self._read(lambda db: queries.count_before(db, job, now, end, most))

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return await self._read(lambda db: queries.first_due(db, lanes))

    async def inspect(self) -> Sequence[Finding]:
        opened = self._state.get()
        return await self._in_thread(lambda: inspect(opened.writer))

    def migration_sql(self, *, since: int = 0) -> str:
        return migration_sql(since=since)

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield an empty batch (any job may have changed) when another process has written.

        The first is for what was written before the count began.
        """
        seen = await self._written_by_others()
        yield ()
        wrote_at = perf_counter()
        while True:
            # A process that has just written will most likely write again. While we write, a look
            # costs a change of threads.
            quiet = perf_counter() - wrote_at > _BUSY_SECONDS or self._state.get().thread.busy
            await anyio.sleep(self._notice if quiet else min(self._notice, _BUSY_NOTICE_SECONDS))
            now = await self._written_by_others()
            if now != seen:
                seen = now
                wrote_at = perf_counter()
                yield ()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        opened = self._state.get()
        try:
            return query(opened.reader)
        except sqlite3.Error:
            # Only while the file is recovered after a crash can a reader be locked out.
            return await self._in_thread(lambda: query(opened.writer))

    async def _written_by_others(self) -> object:
        """Return what changes when another process writes; in no time, unless we write just now."""
        opened = self._state.get()

        def count() -> object:
            # This counter of the writing connection ignores what that connection itself writes.
            return opened.writer.execute("PRAGMA data_version").fetchone()

        if not opened.thread.busy:
            with self._file.errors(), suppress(sqlite3.OperationalError):
                opened.set_patience(patient=False)
                return count()
        return await self._in_thread(count)

    async def _write(self, change: Callable[[sqlite3.Connection], T], jobs: int) -> T:
        opened = self._state.get()

        def write() -> T:
            self._file.check_in_place()
            with transaction(opened.writer) as db:
                answer = change(db)
                begun = perf_counter()
            opened.note_commit(perf_counter() - begun)
            return answer

        if opened.quick and jobs <= _MAX_JOBS_IN_LOOP and not opened.thread.busy:
            with self._file.errors():
                try:
                    opened.set_patience(patient=False)
                    return write()
                except sqlite3.OperationalError as error:
                    if not is_busy(error):
                        raise
        return await self._in_thread(write)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        opened = self._state.get()

        def patiently() -> T:
            opened.set_patience(patient=True)
            return work()

        with self._file.errors():
            return await opened.thread.call(patiently)


class _OpenFile:
    """What exists only while the store is open.

    A change of threads costs as much as a commit on a good disk. So while commits are quick, and
    the thread has nothing to do, a write happens on the calling thread; it never waits there for
    another process's lock.
    """

    def __init__(
        self, thread: ThreadQueue, writer: sqlite3.Connection, reader: sqlite3.Connection
    ) -> None:
        self.thread = thread
        self.writer = writer
        self.reader = reader
        #: When other tasks have last had their turn before a read.
        self.turn_at = 0.0
        self._seconds = MAX_COMMIT_SECONDS_IN_LOOP
        self._patient = False

    def set_patience(self, *, patient: bool) -> None:
        """Let the writer wait for other processes' locks, or not: in the thread, or in the loop."""
        if patient is not self._patient:
            set_patience(self.writer, patient=patient)
            self._patient = patient

    @property
    def quick(self) -> bool:
        return self._seconds < MAX_COMMIT_SECONDS_IN_LOOP

    def note_commit(self, seconds: float) -> None:
        """Take a commit into the average. The work before it would hold up the loop anyway."""
        self._seconds += (seconds - self._seconds) / 4


def from_url(url: str) -> SqliteStore:
    """Make a store for `sqlite:///relative/path` or `sqlite:////absolute/path`."""
    check_parameters("SQLite", url, ())
    scheme, _, path = url.partition("?")[0].partition(":///")
    if scheme != "sqlite" or not path or path == ":memory:":
        raise ConfigurationError(
            "The SQLite store's URL is sqlite:///relative/path or sqlite:////absolute/path; this "
            "one is not. For jobs that need no disk there is memory://."
        )
    return SqliteStore(path)
