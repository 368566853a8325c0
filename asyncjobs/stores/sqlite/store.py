"""Stores jobs in one SQLite file: the embedded default. Durability: fsync.

Any number of processes may share the file. Each call's writes are all or nothing, and on disk when
it returns (WAL, synchronous=FULL). Writes run in one thread, quick ones on the calling thread.
Reads are short and run on the calling thread: they cost less than a switch of threads, and in WAL
mode they wait for no writer.
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
from asyncjobs.core.labels import Tally
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
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
    OutputStreams,
    Page,
    Selection,
    Tallies,
)
from asyncjobs.stores.opening import OpenState
from asyncjobs.stores.sqlite import output, queries
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

#: How long a commit may block the event loop, on average.
MAX_COMMIT_SECONDS_IN_LOOP = 0.001

# How long reads that return at once may occupy the event loop. A turn of the loop costs as much as
# a read.
_TURN_SECONDS = 0.001

# After a write of another process, poll at this interval for this long. A look takes 20 us.
_BUSY_NOTICE_SECONDS = 0.002
_BUSY_SECONDS = 1.0

# Writing more jobs than this blocks the event loop for longer than the commit does. Appending or
# deleting so many bytes of output takes as long as writing a job.
_MAX_JOBS_IN_LOOP = 200
_BYTES_PER_JOB = 4096


class SqliteStore:
    """A store in the file at `path`, which is created if it does not exist."""

    powers: frozenset[type] = frozenset(
        {
            *(ChangeNotices, InlineReads, Inspection, Listing),
            *(MigrationScript, OutputStreams, Tallies),
        }
    )
    filters: frozenset[str] = frozenset({"user_id", "type", "status", "tag", "batch", "members"})

    def __init__(self, path: str | Path, *, notice: float = 0.03) -> None:
        self.path = Path(path)
        self._file = DatabaseFile(self.path)
        self._notice = notice
        self._state: OpenState[_OpenFile] = OpenState(str(self.path))

    def folder_for_files(self) -> Path:
        """Return the folder beside the database in which jobs save their files by default."""
        return self.path.with_name(f"{self.path.name}-files")

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
        # The writer is closed last and in the thread: closing the last connection empties the log
        # into the file, which can take long.
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
            # Other tasks get a turn even if a caller reads in a loop.
            await anyio.lowlevel.checkpoint()
            opened.turn_at = perf_counter()
        return await self._read(lambda db: queries.get(db, ids))

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._write(lambda db: queries.replace(db, changes), len(changes))

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        moment = to_microseconds(now)
        # Workers poll often and mostly find nothing; the read spares them the write lock.
        if limit < 1 or not await self._read(lambda db: queries.any_due(db, lanes, moment)):
            return []
        due_next = to_microseconds(until)
        return await self._write(lambda db: queries.take(db, lanes, moment, due_next, limit), limit)

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        size = await self._read(lambda db: output.bytes_of(db, ids))
        weight = len(ids) + size // _BYTES_PER_JOB
        return await self._write(lambda db: queries.delete(db, ids), weight)

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        return await self._read(lambda db: queries.select(db, which, limit, after))

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        now, end = to_microseconds(until - HOLD), to_microseconds(until)
        return await self._read(lambda db: queries.count_before(db, job, now, end, most))

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        return await self._read(lambda db: queries.first_due(db, lanes))

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        return await self._read(lambda db: queries.tally(db, labels))

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        weight = len(appends) + sum(len(one.data) for one in appends) // _BYTES_PER_JOB
        return await self._write(lambda db: output.append(db, appends), weight)

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await self._write(lambda db: output.begin_epoch(db, job_id, epoch), 1)

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        return await self._read(lambda db: output.read_output(db, reads))

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        return await self._read(lambda db: output.outputs(db, ids))

    async def inspect(self) -> Sequence[Finding]:
        opened = self._state.get()
        return await self._in_thread(lambda: inspect(opened.writer))

    def migration_sql(self, *, since: int = 0) -> str:
        return migration_sql(since=since)

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield an empty batch (any job may have changed) when another process has written.

        The first batch is for all writes before the counter was read.
        """
        seen = await self._written_by_others()
        yield ()
        wrote_at = perf_counter()
        while True:
            # A process that has just written will probably write again. While this process writes,
            # reading the counter costs a switch of threads.
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
            # A reader is locked out only while the file is recovered after a crash.
            return await self._in_thread(lambda: query(opened.writer))

    async def _written_by_others(self) -> object:
        """Return a value that changes when another process writes.

        This takes no time, except while this process writes.
        """
        opened = self._state.get()

        def count() -> object:
            # This counter of the writer's connection ignores that connection's own writes.
            return opened.writer.execute("PRAGMA data_version").fetchone()

        if not opened.thread.busy:
            # If the file is locked, do not wait here but in the thread.
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

        # If the thread is idle, no other call uses the writer, so this thread may use it. Nothing
        # awaits before the write ends, so no other task can come in between.
        if opened.quick and jobs <= _MAX_JOBS_IN_LOOP and not opened.thread.busy:
            with self._file.errors():
                try:
                    opened.set_patience(patient=False)
                    return write()
                except sqlite3.OperationalError as error:
                    # Another process holds the lock, and the transaction was not begun or was
                    # rolled back. The same write waits for the lock in the thread.
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
    """The state that exists only while the store is open.

    A switch of threads costs as much as a commit on a good disk. Therefore, while commits are quick
    and the thread is idle, writes run on the calling thread. There they never wait for another
    process's lock.
    """

    def __init__(
        self, thread: ThreadQueue, writer: sqlite3.Connection, reader: sqlite3.Connection
    ) -> None:
        self.thread = thread
        self.writer = writer
        self.reader = reader
        #: When other tasks last had a turn before a read.
        self.turn_at = 0.0
        # Not quick at first: only measured commits allow writes on the event loop.
        self._seconds = MAX_COMMIT_SECONDS_IN_LOOP
        self._patient = False

    def set_patience(self, *, patient: bool) -> None:
        """Let the writer wait for other processes' locks (in the thread) or not (in the loop)."""
        if patient is not self._patient:
            set_patience(self.writer, patient=patient)
            self._patient = patient

    @property
    def quick(self) -> bool:
        return self._seconds < MAX_COMMIT_SECONDS_IN_LOOP

    def note_commit(self, seconds: float) -> None:
        """Add a commit to the average; the work before it blocks the event loop anyway."""
        self._seconds += (seconds - self._seconds) / 4


def from_url(url: str) -> SqliteStore:
    """Make a store from `sqlite:///relative/path` or `sqlite:////absolute/path`."""
    check_parameters("SQLite", url, ())
    scheme, _, path = url.partition("?")[0].partition(":///")
    if scheme != "sqlite" or not path or path == ":memory:":
        raise ConfigurationError(
            "The SQLite store's URL must be sqlite:///relative/path or sqlite:////absolute/path. "
            "Use memory:// to keep jobs in memory."
        )
    return SqliteStore(path)
