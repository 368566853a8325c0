"""Jobs inserted in an application's own transaction, on psycopg's connections."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, JobStatus
from asyncjobs.core.handlers import Handler
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import IdempotencyConflict, StoreUnavailable, UnusableConnection
from asyncjobs.http.problems import problem_of
from asyncjobs.protocols import Change
from asyncjobs.settings import Settings
from asyncjobs.stores.postgres import PostgresStore
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

Connection = psycopg.AsyncConnection[Any]

# Polling and sweeps find nothing, so every discovery is due to a notice.
BLIND = Settings(poll_interval=timedelta(hours=1), sweep_interval=timedelta(hours=1))


WAITS = """
SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE NOT granted AND locktype = 'transactionid' AND query LIKE '%{schema}%'
"""


ASKED = """
SELECT query_start FROM pg_stat_activity
WHERE query LIKE '%txid_status%' AND application_name = 'asyncjobs'
"""


class App:
    """A queue with one handler, and the payloads that the handler got."""

    def __init__(self, store: PostgresStore, settings: Settings | None = None) -> None:
        self.dispatcher = LocalDispatcher(4)
        self.jobs = AsyncJobs(store, settings=settings, dispatcher=self.dispatcher)
        self.seen: list[str] = []
        self.export: Handler[str, str] = self.jobs.handler("export")(self._export)

    async def _export(self, given: str, job: JobContext) -> str:
        self.seen.append(given)
        return job.id


@pytest.fixture
async def app(store: PostgresStore) -> AsyncIterator[App]:
    app = App(store)
    async with app.jobs:
        yield app


@pytest.fixture
def thread_conn(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.url) as connection:
        yield connection


def rows_of(postgres: PostgresServer, schema: str) -> list[object]:
    counts = (f"(SELECT count(*) FROM {schema}.{name})" for name in ("jobs", "submissions"))
    return list(postgres.execute(f"SELECT {', '.join(counts)}")[0])


# after a commit


async def test_a_job_exists_and_runs_once_its_transaction_has_committed(
    app: App, conn: Connection
) -> None:
    job = (await app.jobs.enqueue(app.export, "one", connection=conn)).job
    assert (job.status, await app.jobs.get(job.id)) == (JobStatus.PENDING, None)
    await conn.commit()
    with anyio.fail_after(30):
        done = await app.jobs.wait(job.id)
    assert (done.status, done.result, app.seen) == (JobStatus.COMPLETED, job.id, ["one"])


async def test_a_job_whose_transaction_is_rolled_back_does_not_exist(
    app: App, conn: Connection, postgres: PostgresServer, schema: str
) -> None:
    job = (await app.jobs.enqueue(app.export, "one", idempotency_key="k", connection=conn)).job
    await conn.rollback()
    assert await app.jobs.get(job.id) is None
    assert rows_of(postgres, schema) == [0, 0]
    # Its key is free.
    again = (await app.jobs.enqueue(app.export, "two", idempotency_key="k")).job
    assert again.id != job.id


async def test_a_batch_exists_with_all_of_its_jobs_once_its_transaction_has_committed(
    app: App, conn: Connection
) -> None:
    batch = await app.jobs.enqueue_batch(
        app.export, ["one", "two"], idempotency_key="k", connection=conn
    )
    empty = await app.jobs.enqueue_batch(app.export, [], connection=conn)
    again = await app.jobs.enqueue_batch(
        app.export, ["one", "two"], idempotency_key="k", connection=conn
    )
    assert again.id == batch.id
    assert await app.jobs.get(batch.id) is None
    await conn.commit()
    with anyio.fail_after(60):
        done = await batch.wait()
        assert (await empty.wait()).status is JobStatus.COMPLETED
    assert done.counts is not None
    assert (done.status, done.counts.completed) == (JobStatus.COMPLETED, 2)


async def test_a_batch_is_rolled_back_whole(app: App, conn: Connection) -> None:
    batch = await app.jobs.enqueue_batch(app.export, ["one", "two"], connection=conn)
    await conn.rollback()
    assert await app.jobs.get(batch.id) is None
    assert [job async for job in batch.jobs()] == []


async def test_a_job_is_rolled_back_with_the_callers_savepoint(
    app: App, conn: Connection, schema: str
) -> None:
    await conn.execute(f"CREATE TABLE {schema}.orders (job text)".encode())
    kept = (await app.jobs.enqueue(app.export, "kept", connection=conn)).job
    async with conn.transaction(force_rollback=True):
        undone = (await app.jobs.enqueue(app.export, "undone", connection=conn)).job
        await conn.execute(f"INSERT INTO {schema}.orders VALUES ('x')".encode())
    await conn.commit()
    assert await app.jobs.get(kept.id) is not None
    assert await app.jobs.get(undone.id) is None


async def test_a_transaction_that_dies_with_its_process_leaves_nothing(
    app: App, postgres: PostgresServer, schema: str
) -> None:
    script = f"""
import asyncio, os, psycopg
from asyncjobs import AsyncJobs
from asyncjobs.stores.postgres import PostgresStore
async def main():
    jobs = AsyncJobs(PostgresStore({postgres.url!r}, schema={schema!r}))
    kind = jobs.external("export", payload=int, result=int)
    async with jobs:
        conn = await psycopg.AsyncConnection.connect({postgres.url!r})
        print((await jobs.enqueue(kind, 1, idempotency_key="k", connection=conn)).id, flush=True)
        os._exit(9)
asyncio.run(main())
"""
    done = await anyio.run_process([sys.executable, "-c", script], check=False)
    assert done.returncode == 9, done.stderr
    # A key held by a dead process is not waited for: the server has rolled back.
    with anyio.fail_after(30):
        job = (await app.jobs.enqueue(app.export, "next", idempotency_key="k")).job
        assert job.id != done.stdout.decode().strip()
        await app.jobs.wait(job.id)
    assert rows_of(postgres, schema) == [1, 1]


async def test_many_jobs_of_one_transaction_start_together(app: App, conn: Connection) -> None:
    async with conn.transaction():
        jobs = [
            (await app.jobs.enqueue(app.export, f"{n}", connection=conn)).job for n in range(20)
        ]
        assert app.seen == []
    with anyio.fail_after(30):
        for job in jobs:
            await app.jobs.wait(job.id)
    assert sorted(app.seen) == sorted(map(str, range(20)))


@pytest.mark.parametrize("pgbouncer", [False, True])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_commit_notifies_all_processes(
    postgres: PostgresServer, schema: str, conn: Connection, where: str, *, pgbouncer: bool
) -> None:
    stores = [PostgresStore(postgres.url, schema=schema, pgbouncer=pgbouncer) for _ in "12"]
    here, there = (App(store, BLIND) for store in stores)
    runs, idles = (here, there) if where == "here" else (there, here)
    async with here.jobs, there.jobs:
        idles.dispatcher.close()  # it has no room from now on
        await listening(postgres, schema, 2)
        job = (await here.jobs.enqueue(here.export, "told", connection=conn)).job
        await conn.commit()
        await until(lambda: runs.seen)
        await runs.jobs.wait(job.id, timeout=30)


async def listening(postgres: PostgresServer, schema: str, stores: int) -> None:
    """Return when this many stores of the schema listen for changes, by notices or by polling."""
    follow = f"""
        SELECT count(*) FROM pg_stat_activity WHERE application_name = 'asyncjobs'
        AND query LIKE ANY (ARRAY['LISTEN "{schema}"', '%last_value%"{schema}".changes'])
    """
    await until(lambda: postgres.execute(follow) == [(stores,)])


async def test_a_long_transaction_is_still_noticed_at_its_commit(
    store: PostgresStore, postgres: PostgresServer, schema: str, conn: Connection
) -> None:
    app = App(store, BLIND)
    questions: set[object] = set()

    def times_asked() -> int:
        questions.update(postgres.execute(ASKED))
        return len(questions)

    async with app.jobs, await psycopg.AsyncConnection.connect(postgres.url) as other:
        await listening(postgres, schema, 1)
        late = (await app.jobs.enqueue(app.export, "late", connection=conn)).job
        never = (await app.jobs.enqueue(app.export, "never", connection=other)).job
        await until(lambda: times_asked() > 5)
        await other.rollback()
        await conn.commit()
        assert (await app.jobs.wait(late.id, timeout=60)).status.terminal
        assert await app.jobs.get(never.id) is None


async def test_a_queue_that_closes_before_the_commit_leaves_the_job_to_the_next(
    postgres: PostgresServer, schema: str, conn: Connection
) -> None:
    app = App(PostgresStore(postgres.url, schema=schema))
    async with app.jobs:
        job = (await app.jobs.enqueue(app.export, "later", connection=conn)).job
    await conn.commit()
    async with app.jobs:
        with anyio.fail_after(30):
            await app.jobs.wait(job.id)
    assert app.seen == ["later"]


async def test_a_job_of_a_transaction_can_be_delayed(app: App, conn: Connection) -> None:
    options = EnqueueOptions(run_at=timedelta(hours=1))
    job = (await app.jobs.enqueue(app.export, "x", options=options, connection=conn)).job
    await conn.commit()
    stored = await app.jobs.find(job.id)
    assert (stored.run_at, stored.due_at) == (job.run_at, job.run_at)


async def test_synchronous_connections_can_commit_a_job(
    app: App, thread_conn: psycopg.Connection[Any]
) -> None:
    job = (await app.jobs.enqueue(app.export, "one", connection=thread_conn)).job
    assert await app.jobs.get(job.id) is None
    thread_conn.commit()
    with anyio.fail_after(30):
        await app.jobs.wait(job.id)
    assert app.seen == ["one"]


# idempotency keys


async def test_a_used_key_returns_its_job(app: App, conn: Connection) -> None:
    first = (await app.jobs.enqueue(app.export, "x", idempotency_key="k")).job
    again = (await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=conn)).job
    assert again.id == first.id
    with pytest.raises(IdempotencyConflict):
        await app.jobs.enqueue(app.export, "y", idempotency_key="k", connection=conn)
    # The transaction goes on all the same.
    mine = (await app.jobs.enqueue(app.export, "y", idempotency_key="mine", connection=conn)).job
    twice = (await app.jobs.enqueue(app.export, "y", idempotency_key="mine", connection=conn)).job
    assert twice.id == mine.id
    await conn.commit()
    assert (await app.jobs.find(mine.id)).idempotency_key == "mine"


@pytest.mark.parametrize("commits", [True, False])
async def test_a_second_submission_waits_for_the_first_transaction(
    app: App, conn: Connection, postgres: PostgresServer, schema: str, *, commits: bool
) -> None:
    first = (await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=conn)).job
    found: list[Job] = []

    async def ask() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.url) as other:
            found.append(
                (await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=other)).job
            )

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: postgres.execute(WAITS.format(schema=schema)))
            assert found == []
            await (conn.commit() if commits else conn.rollback())
    [twin] = found
    assert (twin.id == first.id) == commits


async def test_a_cancelled_enqueue_leaves_its_transaction_usable(
    app: App, conn: Connection, postgres: PostgresServer, schema: str
) -> None:
    await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=conn)
    async with await psycopg.AsyncConnection.connect(postgres.url) as other:
        asked = app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=other)
        task = asyncio.create_task(asked)
        await until(lambda: postgres.execute(WAITS.format(schema=schema)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        job = (await app.jobs.enqueue(app.export, "y", connection=other)).job
        await other.commit()
    assert await app.jobs.get(job.id) is not None


async def test_the_key_of_a_job_past_its_retention_is_free(
    app: App, conn: Connection, store: PostgresStore
) -> None:
    first = (await app.jobs.enqueue(app.export, "x", idempotency_key="k")).job
    done = await app.jobs.wait(first.id, timeout=30)
    past = done.model_copy(update={"expires_at": done.created_at, "revision": done.revision + 1})
    assert list(await store.replace([Change(past, done.revision)])) == [True]
    job = (await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=conn)).job
    await conn.commit()
    assert job.id != first.id
    assert await app.jobs.get(first.id) is None
    assert (await app.jobs.wait(job.id, timeout=30)).status is JobStatus.COMPLETED


# the caller's connection is unchanged


async def test_settings_of_the_callers_connection_are_unchanged(
    app: App, postgres: PostgresServer
) -> None:
    conn: Connection = await psycopg.AsyncConnection.connect(
        postgres.url, cursor_factory=psycopg.AsyncRawCursor, prepare_threshold=0
    )
    async with conn:
        conn.row_factory = dict_row
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await conn.execute("SET search_path = nowhere")
        await conn.execute("SET DateStyle = 'German'")
        before = await settings_of(conn)
        job = (await app.jobs.enqueue(app.export, "x", connection=conn)).job
        assert await settings_of(conn) == before
        assert before["isolation"] == "serializable"
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        await conn.commit()
        assert (conn.row_factory, conn.prepare_threshold) == (dict_row, 0)
    assert await app.jobs.get(job.id) is not None


async def settings_of(conn: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
    cursor = await conn.execute(
        "SELECT current_setting('transaction_isolation') AS isolation,"
        " current_setting('search_path') AS path, current_setting('DateStyle') AS dates,"
        " current_setting('statement_timeout') AS timeout, (SELECT count(*) FROM"
        " pg_prepared_statements WHERE statement LIKE '%txid%' OR statement LIKE '%SAVEPOINT%')"
    )
    found: dict[str, Any] | None = await cursor.fetchone()
    assert found is not None
    return found


# invalid connections


async def refused(app: App, connection: object) -> str:
    with pytest.raises(UnusableConnection) as caught:
        await app.jobs.enqueue(app.export, "x", connection=connection)
    assert problem_of(caught.value) is None  # the application's fault, not its client's
    return caught.value.reason


async def test_a_connection_in_autocommit_is_refused(app: App, conn: Connection) -> None:
    await conn.set_autocommit(True)
    assert "autocommit" in await refused(app, conn)
    async with conn.transaction():
        await app.jobs.enqueue(app.export, "x", connection=conn)


async def test_a_failed_transaction_is_refused(app: App, conn: Connection) -> None:
    with suppress(psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1 / 0")
    assert "has failed" in await refused(app, conn)


async def test_a_closed_connection_is_refused(
    app: App, conn: Connection, thread_conn: psycopg.Connection[Any]
) -> None:
    await conn.close()
    thread_conn.close()
    assert await refused(app, conn) == await refused(app, thread_conn) == "it is closed"


async def test_a_connection_to_another_database_is_refused(
    app: App, postgres: PostgresServer, schema: str
) -> None:
    postgres.execute(f"CREATE DATABASE {schema}")
    try:
        url = make_conninfo(postgres.url, dbname=schema)
        # If it had tables of the same name, the jobs would be stored there and never run.
        async with PostgresStore(url, schema=schema):
            pass
        async with await psycopg.AsyncConnection.connect(url) as other:
            assert "does not use the tables" in await refused(app, other)
            cursor = await other.execute(f"SELECT count(*) FROM {schema}.jobs".encode())
            assert await cursor.fetchone() == (0,)
    finally:
        postgres.execute(f"DROP DATABASE {schema}")


async def test_a_read_only_transaction_is_refused_and_continues(app: App, conn: Connection) -> None:
    await conn.set_read_only(True)
    assert "read-only" in await refused(app, conn)
    cursor = await conn.execute("SELECT 1")
    assert await cursor.fetchone() == (1,)


async def test_a_role_without_rights_is_refused_and_its_transaction_continues(
    app: App, humble: PostgresStore
) -> None:
    async with await psycopg.AsyncConnection.connect(humble.server.conninfo) as conn:
        assert "role" in await refused(app, conn)
        cursor = await conn.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)


async def test_an_object_that_is_no_connection_is_named_in_the_error(app: App) -> None:
    assert "builtins.str" in await refused(app, "postgresql://localhost")


async def test_other_stores_do_not_support_transactions(conn: Connection) -> None:
    jobs = AsyncJobs("memory://")
    kind = jobs.external("export", payload=int, result=int)
    async with jobs:
        with pytest.raises(UnusableConnection, match="only supports its own transactions"):
            await jobs.enqueue(kind, 1, connection=conn)


async def test_a_lost_connection_raises_store_unavailable(
    app: App, conn: Connection, postgres: PostgresServer
) -> None:
    postgres.execute(f"SELECT pg_terminate_backend({conn.info.backend_pid})")
    with pytest.raises(StoreUnavailable) as caught:
        await app.jobs.enqueue(app.export, "x", connection=conn)
    assert isinstance(caught.value.__cause__, psycopg.Error)


async def test_a_transaction_can_continue_after_a_serialization_failure(
    app: App, conn: Connection
) -> None:
    await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await conn.execute("SELECT 1")
    await app.jobs.enqueue(app.export, "x", idempotency_key="k")
    with pytest.raises(StoreUnavailable) as caught:
        await app.jobs.enqueue(app.export, "x", idempotency_key="k", connection=conn)
    assert isinstance(caught.value.__cause__, psycopg.errors.SerializationFailure)
    job = (await app.jobs.enqueue(app.export, "x", connection=conn)).job
    await conn.commit()
    assert await app.jobs.get(job.id) is not None


async def test_a_restarted_server_is_recognised_as_the_same(
    app: App, postgres: PostgresServer
) -> None:
    for _ in "12":
        async with await psycopg.AsyncConnection.connect(postgres.url) as conn:
            job = (await app.jobs.enqueue(app.export, "x", connection=conn)).job
        assert await app.jobs.get(job.id) is not None
        with postgres.away():
            pass
