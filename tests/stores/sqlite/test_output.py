"""Output in SQLite: large writes leave the event loop free, and deleted jobs leave nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from asyncjobs.core.output import Appended
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.output_conformance import contents, text
from asyncjobs.testing.samples import begun

pytestmark = pytest.mark.anyio

SIZE = 4 * 1024 * 1024


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
    """Make a store that writes on the event loop, as on a fast disk."""
    monkeypatch.setattr("asyncjobs.stores.sqlite.store.MAX_COMMIT_SECONDS_IN_LOOP", 1e9)
    return SqliteStore(tmp_path / "jobs.db")


async def turns_during(call: Callable[[], Awaitable[object]]) -> int:
    """Return how many turns another task gets during a call."""
    turns = found = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await anyio.lowlevel.checkpoint()
        turns = 0
        await call()
        found = turns
        tasks.cancel_scope.cancel()
    return found


async def test_large_output_is_written_and_deleted_outside_the_event_loop(
    store: SqliteStore,
) -> None:
    job = begun(sample_job())
    async with store:
        await store.insert([job])
        small, large = text(job, b"x"), text(job, b"y" * SIZE)
        assert await turns_during(lambda: store.append([small])) == 0
        assert await turns_during(lambda: store.append([large])) > 0
        assert await contents(store, job) == b"x" + b"y" * SIZE
        assert await turns_during(lambda: store.delete([job.id])) > 0


async def test_a_deleted_job_leaves_no_row(store: SqliteStore) -> None:
    jobs = [begun(sample_job()) for _ in range(3)]
    async with store:
        await store.insert(jobs)
        await store.append([text(job, b"x") for job in jobs[:2]])
        await store.begin_epoch(jobs[2].id, 2)
        await store.delete([job.id for job in jobs])
        # A number may be used again, by a job without output.
        await store.insert([jobs[0]])
        assert list(await store.append([text(jobs[0], b"y")])) == [Appended(1)]
        await store.delete([jobs[0].id])
    with closing(sqlite3.connect(store.path)) as db:
        for table in ("outputs", "output_streams", "output_chunks"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
