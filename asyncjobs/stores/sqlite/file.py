"""The SQLite file of `stores.sqlite`: its tables, opening, checks and inspection."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Literal

from asyncjobs.errors import SchemaError, StoreUnavailable
from asyncjobs.protocols import Finding
from asyncjobs.stores.opening import require_version
from asyncjobs.stores.sql import script_since
from asyncjobs.stores.urls import check_characters

# Marks the file as an asyncjobs store (SQLite's application_id): the letters "asyn".
_APPLICATION_ID = 0x6173796E

_SCHEMA_VERSION = 1

_BUSY_TIMEOUT_MS = 10_000
_BUSY_PAUSE_SECONDS = 0.01

# SQLite reuses its log from the start at a thousand pages if no reader needs them. Without this
# limit, a log that grew during a long read would keep its size.
_LOG_BYTES = 4 * 1024 * 1024

# SQLite's names for the values of `PRAGMA synchronous`.
_SYNCHRONOUS_LEVELS = ("OFF", "NORMAL", "FULL", "EXTRA")

# The hot row stays narrow: a change of state rewrites it and two index entries, while submission,
# payload, result and errors are in other tables. Rows of all tables share `seq`, which grows, so
# wide rows are appended, and jobs with the same due time run in the order in which they came. A
# number is never reused, since cursors of lists contain it: `deleted` stores the highest one of a
# deleted job.
#
# The last two indexes of jobs are for lists of an owner's jobs and of a type's completed jobs. They
# are partial, so other jobs cost nothing there. Only jobs with tags or in a batch have `labels`.
#
# Only jobs with output have rows in the last three tables: the epoch and the sizes of the job, the
# sizes of each stream, and a chunk for each append. Chunks have row numbers: without them, inserts
# of some kilobytes take twice as long.
_SCHEMA = (
    """CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, lane TEXT NOT NULL, due_at INTEGER,
        revision INTEGER NOT NULL, state BLOB NOT NULL, owner TEXT, type TEXT NOT NULL,
        status TEXT NOT NULL)""",
    "CREATE INDEX jobs_due ON jobs (lane, due_at) WHERE due_at IS NOT NULL",
    """CREATE TABLE submissions (
        seq INTEGER PRIMARY KEY, submission BLOB NOT NULL, payload BLOB NOT NULL)""",
    "CREATE TABLE deleted (seq INTEGER NOT NULL)",
    "INSERT INTO deleted VALUES (0)",
    "CREATE TABLE results (seq INTEGER PRIMARY KEY, result BLOB, errors BLOB)",
    """CREATE TABLE idempotency_keys (
        owner TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL,
        seq INTEGER NOT NULL UNIQUE, PRIMARY KEY (owner, type, key)) WITHOUT ROWID""",
    "CREATE INDEX jobs_owned ON jobs (owner, seq) WHERE owner IS NOT NULL",
    "CREATE INDEX jobs_completed ON jobs (type, seq) WHERE status = 'completed'",
    """CREATE TABLE labels (
        label TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (label, seq)) WITHOUT ROWID""",
    "CREATE INDEX labels_of_job ON labels (seq)",
    """CREATE TABLE tallies (
        label TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (label, name)) WITHOUT ROWID""",
    """CREATE TABLE outputs (
        seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, items INTEGER NOT NULL,
        bytes INTEGER NOT NULL)""",
    """CREATE TABLE output_streams (
        seq INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, items INTEGER NOT NULL,
        bytes INTEGER NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (seq, name)) WITHOUT ROWID""",
    """CREATE TABLE output_chunks (
        seq INTEGER NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL,
        units INTEGER NOT NULL, epoch INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (seq, name, position))""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)

# The open files by device and inode, with the id of the process that opened them.
_open_files: dict[tuple[int, int], int] = {}


class DatabaseFile:
    """A path and the identity of the file that was opened there."""

    def __init__(self, path: Path) -> None:
        check_characters("The path of the SQLite file", str(path), errors="surrogateescape")
        self.path = path
        self._identity: tuple[int, int] = (0, 0)
        self._log_identity: tuple[int, int] = (0, 0)

    def open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Open the file for writing and for reading; make its tables if the file is new."""
        self.path = self.path.absolute()
        with self.errors(), ExitStack() as on_failure:
            if not self.path.parent.is_dir():
                raise StoreUnavailable(str(self.path), "its folder does not exist")
            self._refuse_after_fork()
            writer = self._connect()
            on_failure.callback(writer.close)
            with waiting_for_locks(writer):
                _prepare(writer, str(self.path))
            reader = self._connect()
            on_failure.callback(reader.close)
            # Only the writer writes; a mistaken write on the reader must fail.
            reader.execute("PRAGMA query_only = ON")
            on_failure.pop_all()
        # After `_prepare` the log exists, too, since WAL mode is on.
        self._identity, self._log_identity = map(_identity_of, self._files())
        _open_files[self._identity] = os.getpid()
        return writer, reader

    def closed(self) -> None:
        """Record that both connections are closed."""
        _open_files.pop(self._identity, None)

    def check_in_place(self) -> None:
        """Refuse to write to a deleted or replaced file; the next start would not see the data."""
        try:
            found = tuple(map(_identity_of, self._files()))
        except OSError as error:
            raise StoreUnavailable(str(self.path), "the file was removed") from error
        if found != (self._identity, self._log_identity):
            raise StoreUnavailable(str(self.path), "the file was replaced by another one")

    def _files(self) -> tuple[Path, Path]:
        """Return the paths of the database and of the log that SQLite writes first."""
        return self.path, self.path.with_name(f"{self.path.name}-wal")

    def _refuse_after_fork(self) -> None:
        """Refuse a file that the parent had open when it forked this process.

        SQLite records its locks by process and inode. A fork copies the records but not the locks,
        so connections made here would write without locks and lose what they write.
        """
        if self.path.exists():
            opener = _open_files.get(_identity_of(self.path))
            if opener is not None and opener != os.getpid():
                reason = "it was open when this process was forked; open it only after the fork"
                raise StoreUnavailable(str(self.path), reason)

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raise the driver's errors as `StoreUnavailable`."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(str(self.path), str(error)) from error

    def _connect(self) -> sqlite3.Connection:
        # No timeout, so that a statement on the event loop never waits for a lock; `set_patience`
        # allows waiting in the thread. The writer is used in both, one at a time.
        return sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)


@contextmanager
def waiting_for_locks(connection: sqlite3.Connection) -> Generator[None]:
    """Let statements in the block wait a limited time for another process's write."""
    set_patience(connection, patient=True)
    try:
        yield
    finally:
        set_patience(connection, patient=False)


def set_patience(connection: sqlite3.Connection, *, patient: bool) -> None:
    """Let statements wait a limited time for another process's write, or fail at once."""
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS if patient else 0}")


@contextmanager
def transaction(
    connection: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Generator[sqlite3.Connection]:
    """Do all or nothing; an immediate transaction holds the write lock from its start."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process holds a lock; the higher bits only name the operation."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def migration_sql(*, since: int = 0) -> str:
    """Return the script that makes the tables in an empty file (version 0)."""
    lines = ["PRAGMA journal_mode = WAL", "BEGIN IMMEDIATE", *_SCHEMA, "COMMIT;\n"]
    return script_since(since, version=_SCHEMA_VERSION, script=";\n".join(lines))


def inspect(db: sqlite3.Connection) -> list[Finding]:
    """Inspect the file through the writer's connection; this reads the whole file."""
    version, level = _pragma(db, "user_version"), int(_pragma(db, "synchronous"))
    mode, integrity = _pragma(db, "journal_mode"), _pragma(db, "quick_check(1)")
    synced = "" if level >= _SYNCHRONOUS_LEVELS.index("FULL") else "set it to FULL"
    whole = "" if integrity == "ok" else "restore the file from a backup"
    return [
        Finding("SQLite", sqlite3.sqlite_version),
        Finding("schema version", f"{version} of {_SCHEMA_VERSION}"),
        Finding("journal_mode", mode, "" if mode == "wal" else "set it to WAL"),
        Finding("synchronous", _SYNCHRONOUS_LEVELS[level], synced),
        Finding("quick_check", integrity, whole),
    ]


def _pragma(db: sqlite3.Connection, pragma: str) -> str:
    [value] = db.execute(f"PRAGMA {pragma}").fetchone()
    return str(value)


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _use_log(connection: sqlite3.Connection) -> str:
    """Switch to WAL mode; retry here, since SQLite does not wait for others that do the same."""
    give_up_at = monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or monotonic() > give_up_at:
                raise
            sleep(_BUSY_PAUSE_SECONDS)
        else:
            return str(mode)


def _prepare(connection: sqlite3.Connection, name: str) -> None:
    # Check before any pragma that writes: the file may belong to another program. One transaction,
    # since another process may be making the tables at this moment.
    with transaction(connection, "DEFERRED"):
        _has_schema(connection, name)
    if _use_log(connection) != "wal":
        raise StoreUnavailable(name, "its file system does not allow SQLite's WAL mode")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    with transaction(connection):
        # Checked again under the write lock: another process may have made the tables since.
        if not _has_schema(connection, name):
            for statement in _SCHEMA:
                connection.execute(statement)


def _has_schema(connection: sqlite3.Connection, name: str) -> bool:
    """Return whether the tables exist; raise `SchemaError` for another program's tables."""
    try:
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise SchemaError(name, "it is not an SQLite database") from error
        raise
    if application == _APPLICATION_ID:
        require_version(name, version, _SCHEMA_VERSION)
        return True
    if application or version or tables:
        raise SchemaError(name, "it is the database of another program")
    return False
