"""The SQLite store: one file, no server."""

from asyncjobs.stores.sqlite.store import SqliteStore, from_url

__all__ = ["SqliteStore", "from_url"]
