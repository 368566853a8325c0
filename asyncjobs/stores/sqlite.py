"""Keeps jobs in one SQLite file: the embedded default. Durability: fsync.

Any number of processes may share the file. Writes go through one thread, all or nothing per call,
and are on disk when they return (WAL, synchronous=FULL). Reads are short and happen on the calling
thread: they cost less than a change of threads, and in WAL mode wait for nobody.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from asyncjobs.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    to_microseconds,
)
from asyncjobs.errors import ConfigurationError, NotOpen, UnreadableJob
from asyncjobs.model import Job, JobId
from asyncjobs.protocols import Change
from asyncjobs.stores.sqlite_file import File, is_busy, transaction, waiting_for_locks
from asyncjobs.threads import ThreadQueue

log = logging.getLogger("asyncjobs")

T = TypeVar("T")

# The longest that the disk may keep the event loop from other things, on average.
_QUICK_SECONDS = 0.001

_JOB = (
    "SELECT id, submission, state, payload, result, revision, lane, due_at, seq"
    " FROM jobs JOIN submissions USING (seq) LEFT JOIN results USING (seq)"
)
_BY_ID = f"{_JOB} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608  # constants
_BY_SEQ = f"{_JOB} WHERE seq IN (SELECT value FROM json_each(?))"  # noqa: S608  # constants
_ANY_DUE = "SELECT 1 FROM jobs WHERE lane = ? AND due_at <= ? LIMIT 1"
_DUE = "SELECT due_at, seq FROM jobs WHERE lane = ? AND due_at <= ? ORDER BY due_at, seq LIMIT ?"
_BY_KEY = "SELECT seq FROM idempotency_keys WHERE owner = ? AND type = ? AND key = ?"
_UPDATE = (
    "UPDATE jobs SET state = ?, revision = ?, lane = ?, due_at = ? WHERE id = ? AND revision = ?"
)
_FORGET = (
    "DELETE FROM idempotency_keys WHERE seq = ?",
    "DELETE FROM results WHERE seq = ?",
    "DELETE FROM submissions WHERE seq = ?",
    "DELETE FROM jobs WHERE seq = ?",
)


class SqliteStore:
    """A store in the file at `path`, which is made where it does not exist."""

    def __init__(self, path: str | Path, *, notice: float = 0.1) -> None:
        self.path = Path(path)
        self._file = File(self.path)
        self._notice = notice
        self._open: _Open | None = None

    async def __aenter__(self) -> Self:
        thread = ThreadQueue("asyncjobs sqlite")
        thread.start()
        try:
            writer, reader = await thread.call(self._file.open)
        except BaseException:
            thread.close()
            raise
        self._open = _Open(thread, writer, reader)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._open = self._opened, None
        opened.reader.close()
        with anyio.CancelScope(shield=True):
            await opened.thread.call(opened.writer.close)
        opened.thread.close()
        self._file.closed()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._write(lambda db: _insert(db, jobs))

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        found = await self._read(lambda db: db.execute(_BY_ID, (json.dumps(ids),)).fetchall())
        jobs = {row[0]: _job(row) for row in found}
        return [jobs.get(job_id) for job_id in ids]

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._write(lambda db: [_replace(db, change) for change in changes])

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        moment = to_microseconds(now)

        def any_due(db: sqlite3.Connection) -> bool:
            return any(db.execute(_ANY_DUE, (lane, moment)).fetchone() for lane in lanes)

        # Workers ask all the time and mostly for nothing: that costs no write lock.
        if limit < 1 or not await self._read(any_due):
            return []
        due_next = to_microseconds(until)
        return await self._write(lambda db: _take(db, lanes, moment, due_next, limit))

    async def delete(self, ids: Sequence[JobId], /) -> None:
        await self._write(lambda db: _delete(db, ids))

    async def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield an empty batch (any job may have changed) when another process has written."""
        opened = self._opened
        # This counter of the writing connection ignores what that connection itself writes.
        count = "PRAGMA data_version"
        seen = await self._in_thread(lambda: opened.writer.execute(count).fetchone())
        while True:
            await anyio.sleep(self._notice)
            now = await self._in_thread(lambda: opened.writer.execute(count).fetchone())
            if now != seen:
                seen = now
                yield ()

    @property
    def _opened(self) -> _Open:
        if self._open is None:
            raise NotOpen(f"The store {self.path}")
        return self._open

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        opened = self._opened
        # Only while the file is recovered after a crash can a reader be locked out.
        with self._file.errors(), suppress(sqlite3.OperationalError):
            return query(opened.reader)
        return await self._in_thread(lambda: query(opened.writer))

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        opened = self._opened

        def write() -> T:
            self._file.check_in_place()
            with transaction(opened.writer) as db:
                answer = change(db)
                begun = perf_counter()
            opened.note_commit(perf_counter() - begun)
            return answer

        if opened.quick and not opened.thread.busy:
            with self._file.errors():
                try:
                    return write()
                except sqlite3.OperationalError as error:
                    if not is_busy(error):
                        raise
        return await self._in_thread(write)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        opened = self._opened

        def patiently() -> T:
            with waiting_for_locks(opened.writer):
                return work()

        with self._file.errors():
            return await opened.thread.call(patiently)


class _Open:
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
        self._seconds = _QUICK_SECONDS

    @property
    def quick(self) -> bool:
        return self._seconds < _QUICK_SECONDS

    def note_commit(self, seconds: float) -> None:
        """Take a commit into the average. The work before it would hold up the loop anyway."""
        self._seconds += (seconds - self._seconds) / 4


def _insert(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Job]:
    ids = json.dumps([job.id for job in jobs])
    stored = {row[0]: _job(row) for row in db.execute(_BY_ID, (ids,))}
    [last] = db.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchone()
    answer: list[Job] = []
    for job in jobs:
        found = stored.get(job.id) or _by_key(db, job)
        if found is None:
            last += 1
            _add(db, last, job)
            found = stored[job.id] = job
        answer.append(found)
    return answer


def _add(db: sqlite3.Connection, seq: int, job: Job) -> None:
    due_at = None if job.due_at is None else to_microseconds(job.due_at)
    row = (seq, job.id, job.lane, due_at, job.revision, encode_state(job))
    db.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", row)
    wide = (seq, encode_submission(job), job.payload_json)
    db.execute("INSERT INTO submissions VALUES (?, ?, ?)", wide)
    if job.result_json is not None:
        db.execute("INSERT INTO results VALUES (?, ?)", (seq, job.result_json))
    if job.idempotency_key is not None:
        db.execute("INSERT INTO idempotency_keys VALUES (?, ?, ?, ?)", (*_key(job), seq))


def _by_key(db: sqlite3.Connection, job: Job) -> Job | None:
    if job.idempotency_key is None:
        return None
    row = db.execute(_BY_KEY, _key(job)).fetchone()
    return None if row is None else _job(db.execute(_BY_SEQ, (json.dumps(row),)).fetchone())


def _replace(db: sqlite3.Connection, change: Change) -> bool:
    job = change.job
    due_at = None if job.due_at is None else to_microseconds(job.due_at)
    values = (encode_state(job), job.revision, job.lane, due_at, job.id, change.expected_revision)
    if not db.execute(_UPDATE, values).rowcount:
        return False
    if job.result_json is not None:
        keep = "INSERT OR REPLACE INTO results SELECT seq, ? FROM jobs WHERE id = ?"
        db.execute(keep, (job.result_json, job.id))
    return True


def _take(
    db: sqlite3.Connection, lanes: Sequence[str], now: int, until: int, limit: int
) -> list[Job]:
    # One index scan per lane: with all lanes in one query SQLite would sort everything due.
    due = [row for lane in set(lanes) for row in db.execute(_DUE, (lane, now, limit))]
    chosen = [seq for _, seq in sorted(due)[:limit]]
    move = "UPDATE jobs SET due_at = ? WHERE seq = ?"
    db.executemany(move, [(until, seq) for seq in chosen])
    order = {seq: place for place, seq in enumerate(chosen)}
    rows = db.execute(_BY_SEQ, (json.dumps(chosen),)).fetchall()
    jobs: list[Job] = []
    for row in sorted(rows, key=lambda row: order[row[-1]]):
        try:
            jobs.append(_job(row))
        except UnreadableJob as error:  # the others in its lane must not wait for it
            log.error("%s", error, extra={"job_id": error.job_id})  # noqa: TRY400  # no traceback
    return jobs


def _delete(db: sqlite3.Connection, ids: Sequence[JobId]) -> None:
    find = "SELECT seq FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
    found = db.execute(find, (json.dumps(ids),)).fetchall()
    for statement in _FORGET:
        db.executemany(statement, found)


def _job(row: tuple[Any, ...]) -> Job:
    job_id, submission, state, payload, result, revision, lane, due_at, _ = row
    return decode(job_id, submission, state, Columns(payload, result, revision, lane, due_at))


def _key(job: Job) -> tuple[str, str, str | None]:
    # NULLs are all different to a unique index; no owner must be one owner.
    owner = "" if job.user_id is None else f"={job.user_id}"
    return owner, job.type, job.idempotency_key


def from_url(url: str) -> SqliteStore:
    """Make a store for `sqlite:///relative/path` or `sqlite:////absolute/path`."""
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or not path or path == ":memory:":
        raise ConfigurationError(
            "The SQLite store's URL is sqlite:///relative/path or sqlite:////absolute/path, "
            f"got {url!r}; for jobs that need no disk there is memory://."
        )
    return SqliteStore(path)
