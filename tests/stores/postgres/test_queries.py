"""Writes, reads and takes, also by two concurrent processes."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, JobId, new_job_id
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LATER, NOW, begun, ids
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

Connection = psycopg.AsyncConnection[Any]

LIMIT = "asyncjobs.stores.postgres.values.MAX_STATEMENT_BYTES"
CONNECTIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'asyncjobs'"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND application_name = 'asyncjobs'"
)


ODD = ["", "\0", "a\0b", "\\0", "a\\0b", "\\", "\\\\", "Grüße 世界 🌍", "'; --", "{s}", "%s"]


# texts


async def test_every_text_is_stored_exactly_and_compared_exactly(store: PostgresStore) -> None:
    jobs = [
        sample_job(user_id=text, idempotency_key=text, type=text, queue=text or "default")
        for text in ODD
    ]
    async with store:
        assert await store.insert(jobs) == jobs
        assert await store.get([job.id for job in jobs]) == jobs
        again = [job.model_copy(update={"id": new_job_id()}) for job in jobs]
        assert await store.insert(again) == jobs
        for job in jobs:
            page = await store.list(Selection(job.user_id, job.type), limit=9)
            assert ids(page.jobs) == [job.id]
            [taken] = await store.take([job.lane], now=NOW, until=LATER, limit=9)
            assert (taken.id, taken.lane) == (job.id, job.lane)


async def test_an_id_that_no_job_can_have_is_unknown(store: PostgresStore) -> None:
    odd = [JobId(text) for text in ("\0", "\ud800", "x" * 100_000)]
    async with store:
        assert await store.get(odd) == [None] * 3
        await store.delete(odd)


async def test_client_texts_may_be_longer_than_an_index_entry(store: PostgresStore) -> None:
    # Incompressible, so that it does not fit.
    digests = (hashlib.sha256(bytes([number])).hexdigest() for number in range(200))
    noise = "".join(chr(0x1F300 + int(pair, 16)) for digest in digests for pair in digest)
    longs = [noise, noise + "x", noise[:200]]
    jobs = [sample_job(user_id=long, idempotency_key=long) for long in longs]
    async with store:
        assert await store.insert(jobs) == jobs
        for job in jobs:
            again = job.model_copy(update={"id": new_job_id()})
            assert await store.insert([again]) == [job]
            assert ids((await store.list(Selection(job.user_id), limit=9)).jobs) == [job.id]


async def test_times_keep_their_microseconds(store: PostgresStore) -> None:
    moments = [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    jobs = [sample_job().model_copy(update={"due_at": moment}) for moment in moments]
    async with store:
        await store.insert(jobs)
        found = await store.get([job.id for job in jobs])
    assert [job and job.due_at for job in found] == moments


async def test_the_store_uses_the_servers_clock(
    postgres: PostgresServer, store: PostgresStore
) -> None:
    async with store:
        now = await store.now()
    [(theirs,)] = postgres.execute("SELECT now()")
    assert isinstance(theirs, datetime)
    assert timedelta(0) <= theirs - now < timedelta(minutes=1)


# unreadable jobs


async def test_an_unreadable_job_does_not_block_others(
    postgres: PostgresServer, store: PostgresStore, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = sample_job(), sample_job()
    async with store:
        await store.insert([bad, good])
        connected = postgres.execute(CONNECTIONS)
        postgres.execute(f"UPDATE {schema}.jobs SET state = '{{}}' WHERE id = '{bad.id}'")
        with caplog.at_level(logging.ERROR, "asyncjobs"):
            assert ids(await store.take(["default"], now=NOW, until=LATER, limit=9)) == [good.id]
            assert ids((await store.list(Selection(), limit=9)).jobs) == [good.id]
        with pytest.raises(UnreadableJob, match=bad.id):
            await store.get([bad.id])
        assert set(connected) <= set(postgres.execute(CONNECTIONS))
    assert caplog.text.count(bad.id) == 2


# one call


async def test_conflicting_jobs_of_one_call_are_inserted_one_by_one(
    store: PostgresStore,
) -> None:
    first = sample_job(idempotency_key="k")
    same_key = sample_job(idempotency_key="k")
    same_id = first.model_copy(update={"idempotency_key": "other", "payload_json": b"2"})
    free = sample_job(idempotency_key="other")
    async with store:
        stored = await store.insert([first, same_key, same_id, free, first])
        assert stored == [first, first, first, free, first]


async def test_jobs_with_and_without_keys_are_due_in_the_order_of_the_call(
    store: PostgresStore,
) -> None:
    keys = ["z", None, "a", None, "m", "b", None]
    jobs = [sample_job(idempotency_key=key) for key in keys]
    async with store:
        await store.insert(jobs)
        assert ids(await store.take(["default"], now=NOW, until=LATER, limit=9)) == ids(jobs)


async def test_jobs_too_large_for_one_statement_are_inserted_by_several(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LIMIT, 10)
    texts = [b'"%s"' % (b"x" * size) for size in (1, 2, 9, 20, 1, 1, 3)]
    jobs = [begun(sample_job(payload_json=text)) for text in texts]
    async with store:
        assert await store.insert(jobs) == jobs
        ended = [
            lifecycle.complete(job, NOW, token="t", result=text)
            for job, text in zip(jobs, texts, strict=True)
        ]
        changes = [Change(done, done.revision - 1) for done in ended]
        changes[3] = Change(ended[3], 77)
        expected = [number != 3 for number in range(len(jobs))]
        assert list(await store.replace(changes)) == expected
        found = await store.get([job.id for job in jobs])
        assert found == [*ended[:3], jobs[3], *ended[4:]]


async def test_a_call_of_several_statements_is_repeated_after_a_deadlock(
    postgres: PostgresServer,
    schema: str,
    store: PostgresStore,
    conn: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LIMIT, 10)
    jobs = sorted((begun(sample_job()) for _ in range(3)), key=lambda job: job.id)
    # The first in a statement of its own, the others in a second one.
    changes = [
        Change(lifecycle.complete(job, NOW, token="t", result=result), job.revision)
        for job, result in zip(jobs, [b"1234567890", b"12345", b"12345"], strict=True)
    ]
    written: list[bool] = []

    async def replace(where: PostgresStore) -> None:
        written.extend(await where.replace(changes))

    # This side, and not the other one, detects the deadlock, and is ended.
    victim = f"{postgres.url}?options=-c%20deadlock_timeout%3D1s"
    async with store, PostgresStore(victim, schema=schema) as other:
        await store.insert(jobs)
        async with anyio.create_task_group() as tasks:
            await conn.execute("SET deadlock_timeout = '1min'")
            await lock(conn, schema, jobs[2])
            tasks.start_soon(replace, other)
            await until(lambda: postgres.execute(WAITING) == [(1,)])
            await lock(conn, schema, jobs[1])
            await conn.commit()
        assert await store.get([job.id for job in jobs]) == [change.job for change in changes]
    assert written == [True, True, True]


async def test_a_result_may_be_replaced(store: PostgresStore) -> None:
    job = begun(sample_job())
    done = lifecycle.complete(job, NOW, token="t", result=b"1")
    redone = done.model_copy(update={"revision": done.revision + 1, "result_json": b"2"})
    async with store:
        await store.insert([job])
        changes = [Change(done, job.revision), Change(redone, done.revision)]
        assert list(await store.replace(changes)) == [True, True]
        assert await store.get([job.id]) == [redone]


# several processes


async def test_concurrent_inserts_of_the_same_keys_do_not_deadlock(
    postgres: PostgresServer, schema: str, store: PostgresStore, conn: Connection
) -> None:
    answers: list[dict[str | None, Job]] = []

    async def submit(where: PostgresStore, order: str) -> None:
        found = await where.insert([sample_job(idempotency_key=key) for key in order])
        answers.append({job.idempotency_key: job for job in found})

    one, two = (undetected(postgres, schema) for _ in "12")
    with anyio.fail_after(60):
        async with store, one, two:
            await store.insert_within(conn, [sample_job(idempotency_key="b")])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(submit, one, "abc")
                tasks.start_soon(submit, two, "cba")
                await until(lambda: postgres.execute(WAITING) == [(2,)])
                await conn.rollback()
    assert answers[0] == answers[1]


async def test_concurrent_changes_in_any_order_do_not_deadlock(
    postgres: PostgresServer, schema: str, store: PostgresStore, conn: Connection
) -> None:
    jobs = sorted((sample_job() for _ in range(3)), key=lambda job: job.id)
    won: list[dict[JobId, bool]] = []

    async def change(where: PostgresStore, order: list[Job]) -> None:
        written = await where.replace([Change(begun(job), job.revision) for job in order])
        won.append(dict(zip((job.id for job in order), written, strict=True)))

    one, two = (undetected(postgres, schema) for _ in "12")
    with anyio.fail_after(60):
        async with store, one, two:
            await store.insert(jobs)
            await lock(conn, schema, jobs[1])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(change, one, jobs)
                tasks.start_soon(change, two, jobs[::-1])
                await until(lambda: postgres.execute(WAITING) == [(2,)])
                await conn.rollback()
    assert [won[0][job.id] + won[1][job.id] for job in jobs] == [1, 1, 1]


def undetected(postgres: PostgresServer, schema: str) -> PostgresStore:
    """Make a store whose deadlocks last for minutes, and so fail a test.

    It finds rows as in a large table: one by one, in the order of the call.
    """
    settings = {
        "deadlock_timeout": "5min",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return PostgresStore(make_conninfo(postgres.url, options=options), schema=schema)


async def test_an_insert_waits_for_a_concurrent_one_of_the_same_key(
    postgres: PostgresServer, store: PostgresStore, conn: Connection
) -> None:
    first, second = (sample_job(idempotency_key="k") for _ in range(2))
    stored: list[Job] = []

    async def insert_second() -> None:
        stored.extend(await store.insert([second]))

    async with store, anyio.create_task_group() as tasks:
        await store.insert_within(conn, [first])
        tasks.start_soon(insert_second)
        await until(lambda: postgres.execute(WAITING) == [(1,)])
        await conn.commit()
        await until(lambda: stored)
    assert stored == [first]


async def test_jobs_that_another_process_is_taking_are_skipped(
    schema: str, store: PostgresStore, conn: Connection
) -> None:
    jobs = [sample_job() for _ in range(4)]
    async with store:
        await store.insert(jobs)
        await lock(conn, schema, *jobs[:2])
        taken = await store.take(["default"], now=NOW, until=LATER, limit=3)
    assert ids(taken) == ids(jobs[2:])


async def lock(conn: Connection, schema: str, *jobs: Job) -> None:
    """Lock jobs as a transaction that is about to change them does."""
    query = f"SELECT 1 FROM {schema}.jobs WHERE id = ANY (%s) FOR UPDATE"
    await conn.execute(query.encode(), [ids(jobs)])
