"""A full disk: the error is reported, no write is partial, and writes succeed when there is room.

If a table's file is `/dev/full`, the kernel refuses its first page, on any machine and without
privileges.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.core import lifecycle
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LANE, LATER, NOW, begun
from tests.conftest import OwnServer

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

FULL = Path("/dev/full")

# Processes that have the file open keep writing to it, unlike on a full disk.
LET_GO = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE application_name = 'asyncjobs'"
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full"),
]

NoRoom = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def no_room(postgres: PostgresServer, schema: str) -> NoRoom:
    """Inside a block, leave an empty table no room on the disk."""
    if not isinstance(postgres, OwnServer):
        pytest.skip("the files of a server that is not ours are not ours")

    @contextmanager
    def for_table(table: str) -> Generator[None]:
        [(folder,)] = postgres.execute("SHOW data_directory")
        [(name,)] = postgres.execute(f"SELECT pg_relation_filepath('{schema}.{table}')")
        path = Path(str(folder), str(name))
        assert path.stat().st_size == 0
        kept = path.rename(path.with_name(f"{path.name}.kept"))
        path.symlink_to(FULL)
        try:
            yield
        finally:
            kept.replace(path)
            postgres.execute(LET_GO)

    return for_table


@pytest.fixture
async def store(postgres: PostgresServer, schema: str) -> PostgresStore:
    """Make a store whose tables exist; no process has their files open."""
    async with PostgresStore(postgres.url, schema=schema):
        pass
    return PostgresStore(postgres.url, schema=schema)


async def test_a_job_without_room_on_the_disk_is_refused_as_a_whole(
    postgres: PostgresServer, schema: str, store: PostgresStore, no_room: NoRoom
) -> None:
    jobs = [sample_job(idempotency_key=key) for key in ("k", None)]
    async with store:
        with no_room("submissions"):
            for _ in "12":
                await told(store.insert(jobs))
            assert list(await store.get([job.id for job in jobs])) == [None, None]
            assert list((await store.list(Selection(), limit=9)).jobs) == []
            assert list(await store.take([LANE], now=NOW, until=LATER, limit=9)) == []
        assert postgres.execute(f"SELECT count(*) FROM {schema}.jobs") == [(0,)]
        assert list(await store.insert(jobs)) == jobs
        assert list(await store.get([job.id for job in jobs])) == jobs


async def test_a_result_without_room_on_the_disk_leaves_its_job_running(
    store: PostgresStore, no_room: NoRoom
) -> None:
    job, other = sample_job(), sample_job()
    started = begun(job)
    done = lifecycle.complete(started, LATER, token="t", result=b'"wide"')
    changes = [Change(done, started.revision), Change(begun(other), other.revision)]
    async with store:
        await store.insert([job, other])
        await store.replace([Change(started, job.revision)])
        with no_room("results"):
            await told(store.replace(changes))
            assert list(await store.get([job.id, other.id])) == [started, other]
            assert list(await store.replace(changes[1:])) == [True]
        assert list(await store.replace(changes[:1])) == [True]
        assert list(await store.get([job.id, other.id])) == [done, begun(other)]


async def test_a_queue_continues_when_there_is_room_again(
    postgres: PostgresServer, schema: str, store: PostgresStore, no_room: NoRoom
) -> None:
    async with AsyncJobs(store) as jobs:
        jobs.handler("double")(double)
        with no_room("submissions"), pytest.raises(StoreUnavailable):
            await jobs.enqueue("double", 1)
        job = await jobs.enqueue("double", 2)
        assert (await jobs.wait(job.id)).result == 4
    assert postgres.execute(f"SELECT count(*) FROM {schema}.jobs") == [(1,)]


async def told(call: Awaitable[object]) -> None:
    with pytest.raises(StoreUnavailable, match="No space left") as caught:
        await call
    assert isinstance(caught.value.__cause__, psycopg.errors.DiskFull)
    assert caught.value.__cause__.sqlstate == "53100"


async def double(number: int, _job: JobContext) -> int:
    return 2 * number
