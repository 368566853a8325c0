"""The SQLite file of `stores.sqlite`: how it is opened, checked and laid out."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
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
)


class File:
    """A path and the identity of the file that was opened there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    def open_writer(self) -> sqlite3.Connection:
        """Open the file for writing, making or migrating its tables where needed."""
        if not self.path.absolute().parent.is_dir():
            raise StoreUnavailable(str(self.path), "its folder does not exist")
        with self.errors():
            connection = self._connect()
            try:
                with waiting_for_locks(connection):
                    _prepare(connection, str(self.path))
            except BaseException:
                connection.close()
                raise
        status = self.path.stat()
        self._identity = (status.st_dev, status.st_ino)
        return connection

    def open_reader(self) -> sqlite3.Connection:
        """Open the file a second time, for short reads that wait for nobody."""
        with self.errors():
            connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
        return connection

    def check_in_place(self) -> None:
        """Refuse to write to a deleted or replaced file: the next start would not see it."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise StoreUnavailable(str(self.path), "the file was removed") from error
        if (status.st_dev, status.st_ino) != self._identity:
            raise StoreUnavailable(str(self.path), "the file was replaced by another one")

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


def _prepare(connection: sqlite3.Connection, name: str) -> None:
    # Look before any pragma that writes: the file may be somebody else's. In one transaction, since
    # another process may be making the tables at this moment.
    with transaction(connection, "DEFERRED"):
        _version(connection, name)
    [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
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
