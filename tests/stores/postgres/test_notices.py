"""Processes notify each other, and queues in two of them work as one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.core.job import JobId
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change
from asyncjobs.settings import Settings
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import TcpProxy, sample_job
from asyncjobs.testing.samples import LATER, NOW, begun

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

# Without a notice the queue waits for minutes, which fails the test.
PATIENT = Settings(poll_interval=timedelta(minutes=5), sweep_interval=timedelta(minutes=5))


Notified = Callable[[JobId], Awaitable[None]]


async def heard(
    listener: PostgresStore, writer: PostgresStore, notified: Notified
) -> list[Sequence[JobId]]:
    """Make all kinds of writes in a store and in the listener; return the listener's notices."""
    job, own = sample_job(), sample_job()
    batches: list[Sequence[JobId]] = []
    async with aclosing(listener.changes()) as changes:
        batches.append(await anext(changes))
        await listener.insert([own])
        await notified(own.id)
        await writer.insert([job])
        batches.append(await anext(changes))
        await writer.replace([Change(begun(job), job.revision)])
        batches.append(await anext(changes))
        await writer.take(["default"], now=NOW, until=LATER, limit=9)
        await writer.replace([Change(begun(job), job.revision)])  # refused
        await writer.delete([job.id])
        batches.append(await anext(changes))
    assert all(set(batch) <= {job.id} for batch in batches)
    return batches


async def test_notices_name_jobs_of_other_processes_but_not_own_writes(
    store: PostgresStore, other: PostgresStore, notified: Notified
) -> None:
    async with store, other:
        with anyio.fail_after(60):
            assert [len(batch) for batch in await heard(store, other, notified)] == [0, 1, 1, 1]


async def test_through_a_pooler_only_changes_of_others_are_noticed(
    postgres: PostgresServer,
    schema: str,
    other: PostgresStore,
    notified: Notified,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncjobs.stores.postgres.store.POLL_SECONDS", 0.001)
    noticed: list[Sequence[JobId]] = []

    async def listen(changes: AsyncIterator[Sequence[JobId]]) -> None:
        noticed.append(await anext(changes))

    async with (
        PostgresStore(postgres.url, schema=schema, pgbouncer=True) as store,
        other,
        aclosing(store.changes()) as changes,
        anyio.create_task_group() as tasks,
    ):
        assert list(await anext(changes)) == []
        tasks.start_soon(listen, changes)
        for _ in range(3):
            own = sample_job()
            await store.insert([own])
            await notified(own.id)
            await store.get([own.id for _ in range(20)])
        assert noticed == []
        await other.insert([sample_job()])
    assert [*map(list, noticed)] == [[]]


async def test_a_cancellation_while_starting_to_listen_aborts_no_statement(
    far: PostgresStore, wire: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver would log a warning each time, at the end of every short process."""
    async with far:
        wire.delay = 0.02
        for steps in range(12):
            with anyio.move_on_after(wire.delay * (steps + 0.5)):
                async with aclosing(far.changes()) as changes:
                    async for _ in changes:
                        pass
    assert [one for one in caplog.records if one.name == "psycopg"] == []


async def test_concurrent_writes_share_notices(store: PostgresStore, other: PostgresStore) -> None:
    jobs = [sample_job() for _ in range(20)]
    async with store, other, aclosing(store.changes()) as changes:
        await anext(changes)
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(other.insert, [job])
        told: list[set[JobId]] = []
        with anyio.fail_after(60):
            while set().union(*told) != {job.id for job in jobs}:
                told.append(set(await anext(changes)))
    assert len(told) < 10


async def test_a_notice_with_too_many_ids_means_any_job(
    store: PostgresStore, other: PostgresStore
) -> None:
    async with store, other, aclosing(store.changes()) as changes:
        await anext(changes)
        await other.insert([sample_job() for _ in range(300)])
        with anyio.fail_after(60):
            assert list(await anext(changes)) == []


@pytest.mark.parametrize("payload", ["", "hello", "[]", "7", json.dumps(["me"])])
async def test_a_foreign_notice_means_any_job(
    postgres: PostgresServer, store: PostgresStore, schema: str, payload: str
) -> None:
    async with store, aclosing(store.changes()) as changes:
        await anext(changes)
        postgres.execute(f"NOTIFY {schema}, '{payload}'")
        with anyio.fail_after(60):
            assert list(await anext(changes)) == []


async def test_a_listener_with_a_broken_connection_raises_and_can_restart(
    postgres: PostgresServer, store: PostgresStore, other: PostgresStore, notified: Notified
) -> None:
    ending = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query ~ 'LISTEN'"
    async with store, other:
        with anyio.fail_after(60):
            async with aclosing(store.changes()) as changes:
                await anext(changes)
                postgres.execute(f"{ending} AND application_name = 'asyncjobs'")
                with pytest.raises(StoreUnavailable):
                    await anext(changes)
            assert len(await heard(store, other, notified)) == 4


async def test_notices_during_an_outage_do_not_block_closing(
    far: PostgresStore, wire: TcpProxy
) -> None:
    job, other = sample_job(), sample_job()
    async with far:
        await far.insert([job])
        wire.refuse()
        wire.cut()
    wire.accept()
    async with far:
        assert await far.insert([other]) == [other]


async def test_closing_sends_pending_notices_first(
    store: PostgresStore, other: PostgresStore
) -> None:
    job = sample_job()
    async with store, aclosing(store.changes()) as changes:
        await anext(changes)
        async with other:
            await other.insert([job])
        with anyio.fail_after(60):
            assert list(await anext(changes)) == [job.id]


# queues


ELSEWHERE = """
import asyncio, sys
from asyncjobs import AsyncJobs
from asyncjobs.stores.postgres import PostgresStore

async def main() -> None:
    jobs = AsyncJobs(PostgresStore(sys.argv[1], schema=sys.argv[2]))
    jobs.external("render", payload=str, result=int)
    async with jobs:
        print("open", flush=True)
        job_id = (await asyncio.to_thread(sys.stdin.readline)).strip()
        await jobs.update_progress(job_id, 50, "half")
        await asyncio.to_thread(sys.stdin.readline)
        await jobs.complete(job_id, 42)

asyncio.run(main())
"""


async def test_progress_of_another_process_is_visible_at_once(
    postgres: PostgresServer, schema: str
) -> None:
    jobs = AsyncJobs(PostgresStore(postgres.url, schema=schema), settings=PATIENT)
    kind = jobs.external("render", payload=str, result=int)
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, postgres.url, schema]
    async with jobs, await anyio.open_process(command, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert (await process.stdout.receive()).startswith(b"open")
        job = await jobs.enqueue(kind, "a film")
        updates = jobs.subscribe(job.id)
        with anyio.fail_after(30):
            assert (await anext(updates)).status is JobStatus.PENDING
            await process.stdin.send(f"{job.id}\n".encode())
            while (await anext(updates)).progress != 50:
                pass
            await process.stdin.send(b"\n")
            assert (await jobs.wait(job.id)).result == 42
            assert await process.wait() == 0


async def test_a_job_without_room_in_one_process_starts_at_once_in_another(
    postgres: PostgresServer, schema: str
) -> None:
    full, free = (
        AsyncJobs(
            PostgresStore(postgres.url, schema=schema),
            dispatcher=LocalDispatcher(concurrency=1),
            settings=PATIENT,
        )
        for _ in "12"
    )
    release = anyio.Event()

    @full.handler("where")
    async def here(_: int, job: JobContext) -> str:
        await release.wait()
        return f"here at attempt {job.attempt}"

    @free.handler("where")
    async def there(_: int, job: JobContext) -> str:
        return f"there at attempt {job.attempt}"

    async with full, free:
        # One runs, one has the next place, one is too many.
        jobs = [await full.enqueue(here, number) for number in range(3)]
        with anyio.fail_after(30):
            assert (await full.wait(jobs[2].id)).result == "there at attempt 1"
            release.set()
            for job in jobs[:2]:
                assert (await free.wait(job.id)).result == "here at attempt 1"
