"""The SQLite file of `stores.sqlite`: how it is opened, checked and laid out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Literal

from asyncjobs.errors import SchemaError, StoreUnavailable

#: Marks the file as ours (SQLite's application_id): the letters "asyn".
APPLICATION_ID = 0x6173796E

_BUSY_MILLISECONDS = 10_000

# One list of statements per schema version, applied in order; never edited once released.
#
# The hot row stays narrow: a change of state rewrites it and two index entries, while submission,
# payload and result lie elsewhere. Rows of all tables share `seq`, which grows, so that wide rows
# are appended and the jobs of one moment are due in the order they came.
MIGRATIONS = (
    (
        """CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, lane TEXT NOT NULL, due_at INTEGER,
            revision INTEGER NOT NULL, state BLOB NOT NULL)""",
        "CREATE INDEX jobs_due ON jobs (lane, due_at) WHERE due_at IS NOT NULL",
        """CREATE TABLE submissions (
            seq INTEGER PRIMARY KEY, submission BLOB NOT NULL, payload BLOB NOT NULL)""",
        "CREATE TABLE results (seq INTEGER PRIMARY KEY, result BLOB NOT NULL)",
        """CREATE TABLE idempotency_keys (
            owner TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL,
            seq INTEGER NOT NULL UNIQUE, PRIMARY KEY (owner, type, key)) WITHOUT ROWID""",
    ),
    # Lists of an owner's jobs, and of a type's finished ones. Jobs without an owner, and those that
    # are not completed, have no entry: they cost nothing.
    (
        "ALTER TABLE jobs ADD COLUMN owner TEXT",
        "ALTER TABLE jobs ADD COLUMN type TEXT",
        "ALTER TABLE jobs ADD COLUMN status TEXT",
        """UPDATE jobs SET status = json_extract(CAST(state AS TEXT), '$.status'),
            (owner, type) = (SELECT json_extract(CAST(submission AS TEXT), '$.user_id'),
                json_extract(CAST(submission AS TEXT), '$.type')
                FROM submissions WHERE submissions.seq = jobs.seq)""",
        "CREATE INDEX jobs_owned ON jobs (owner, seq) WHERE owner IS NOT NULL",
        "CREATE INDEX jobs_completed ON jobs (type, seq) WHERE status = 'completed'",
    ),
)


# The files that are open, by device and inode, with the process that opened them.
_open_files: dict[tuple[int, int], int] = {}


class File:
    """A path and the identity of the file that was opened there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] = (0, 0)
        self._log_identity: tuple[int, int] = (0, 0)

    def open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Open the file to write and to read, making or migrating its tables where needed."""
        self.path = self.path.absolute()
        if not self.path.parent.is_dir():
            raise StoreUnavailable(str(self.path), "its folder does not exist")
        self._refuse_after_fork()
        with self.errors(), ExitStack() as on_failure:
            writer = self._connect()
            on_failure.callback(writer.close)
            with waiting_for_locks(writer):
                _prepare(writer, str(self.path))
            reader = self._connect()
            on_failure.callback(reader.close)
            reader.execute("PRAGMA query_only = ON")
            on_failure.pop_all()
        self._identity, self._log_identity = map(_identity_of, self._files())
        _open_files[self._identity] = os.getpid()
        return writer, reader

    def closed(self) -> None:
        """Note that both connections are closed."""
        _open_files.pop(self._identity, None)

    def check_in_place(self) -> None:
        """Refuse to write to a deleted or replaced file: the next start would not see it."""
        try:
            found = tuple(map(_identity_of, self._files()))
        except OSError as error:
            raise StoreUnavailable(str(self.path), "the file was removed") from error
        if found != (self._identity, self._log_identity):
            raise StoreUnavailable(str(self.path), "the file was replaced by another one")

    def _files(self) -> tuple[Path, Path]:
        """Name the database and the log into which SQLite writes first."""
        return self.path, self.path.with_name(f"{self.path.name}-wal")

    def _refuse_after_fork(self) -> None:
        """Refuse a file that the parent had open when it forked this process.

        SQLite keeps account of its locks by process and inode. A fork copies the account but not
        the locks, so connections made here would write without any, and lose what they write.
        """
        if self.path.exists():
            opener = _open_files.get(_identity_of(self.path))
            if opener is not None and opener != os.getpid():
                reason = "it was open when this process was forked; open it after the fork only"
                raise StoreUnavailable(str(self.path), reason)

    @contextmanager
    def errors(self) -> Generator[None]:
        """Turn what the driver raises into what a store raises."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreUnavailable(str(self.path), str(error)) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)


@contextmanager
def waiting_for_locks(connection: sqlite3.Connection) -> Generator[None]:
    """Let statements inside the block wait for another process's write, for a bounded time."""
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    try:
        yield
    finally:
        connection.execute("PRAGMA busy_timeout = 0")


@contextmanager
def transaction(
    connection: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Generator[sqlite3.Connection]:
    """Do all or nothing. An immediate one can write, and has the lock for it from the start."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another process is in the way; the higher bits only say in which."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _use_log(connection: sqlite3.Connection) -> str:
    """Switch to WAL mode; SQLite does not wait by itself while others do the same."""
    give_up = monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or monotonic() > give_up:
                raise
            sleep(0.01)
        else:
            return str(mode)


def _prepare(connection: sqlite3.Connection, name: str) -> None:
    # Look before any pragma that writes: the file may be somebody else's. In one transaction, since
    # another process may be making the tables at this moment.
    with transaction(connection, "DEFERRED"):
        _version(connection, name)
    if _use_log(connection) != "wal":
        raise StoreUnavailable(name, "its file system does not allow SQLite's WAL mode")
    connection.execute("PRAGMA synchronous = FULL")
    with transaction(connection):
        for number in range(_version(connection, name), len(MIGRATIONS)):
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(connection: sqlite3.Connection, name: str) -> int:
    try:
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise SchemaError(name, "it is not an SQLite database") from error
        raise
    if application != APPLICATION_ID and (application or version or tables):
        raise SchemaError(name, "it is the database of another program")
    if version > len(MIGRATIONS):
        raise SchemaError(
            name, f"it has schema version {version}, this asyncjobs knows {len(MIGRATIONS)}"
        )
    return int(version)
