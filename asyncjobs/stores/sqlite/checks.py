"""What an SQLite file and its settings are found to be, and the script that makes its tables."""

from __future__ import annotations

import sqlite3

from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Finding
from asyncjobs.stores.sqlite.file import APPLICATION_ID, MIGRATIONS

_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")


def inspect(db: sqlite3.Connection) -> list[Finding]:
    """Look at the file by the connection that writes to it; reads all of it."""
    version, level = _told(db, "user_version"), int(_told(db, "synchronous"))
    mode, integrity = _told(db, "journal_mode"), _told(db, "quick_check(1)")
    synced = "" if level >= _SYNCHRONOUS.index("FULL") else "set it to FULL"
    whole = "" if integrity == "ok" else "restore the file from a backup"
    return [
        Finding("SQLite", sqlite3.sqlite_version),
        Finding("schema version", f"{version} of {len(MIGRATIONS)}"),
        Finding("journal_mode", mode, "" if mode == "wal" else "set it to WAL"),
        Finding("synchronous", _SYNCHRONOUS[level], synced),
        Finding("quick_check", integrity, whole),
    ]


def _told(db: sqlite3.Connection, pragma: str) -> str:
    [value] = db.execute(f"PRAGMA {pragma}").fetchone()
    return str(value)


def migration_sql(*, since: int = 0) -> str:
    """Return the script that brings a file of version `since` up to date; 0 is an empty one."""
    if since > len(MIGRATIONS):
        raise ConfigurationError(f"There is no version {since} yet; the last is {len(MIGRATIONS)}.")
    steps = [statement for version in MIGRATIONS[since:] for statement in version]
    marks = f"application_id = {APPLICATION_ID}", f"user_version = {len(MIGRATIONS)}"
    inside = [*steps, *(f"PRAGMA {mark}" for mark in marks)]
    return ";\n".join(["PRAGMA journal_mode = WAL", "BEGIN IMMEDIATE", *inside, "COMMIT;\n"])
