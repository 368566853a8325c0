"""The file beside the jobs: SQLite's write-ahead log."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024


async def test_the_log_shrinks_after_a_long_read_has_ended(tmp_path: Path) -> None:
    path, log = tmp_path / "jobs.db", tmp_path / "jobs.db-wal"
    wide = b'"' + b"x" * MEBIBYTE + b'"'
    async with SqliteStore(path) as store:
        await store.insert([sample_job()])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        for _ in range(8):
            await store.insert([sample_job(payload_json=wide)])
        assert log.stat().st_size > 8 * MEBIBYTE
        reader.execute("ROLLBACK")
        reader.close()
        for _ in "12":  # the first write empties the log, the second restarts it
            await store.insert([sample_job()])
        assert log.stat().st_size <= 4 * MEBIBYTE
