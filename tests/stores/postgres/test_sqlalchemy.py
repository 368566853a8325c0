"""Jobs inserted in a transaction of SQLAlchemy, with any driver."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import anyio
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.adapters.sqlalchemy import transaction_of
from asyncjobs.errors import IdempotencyConflict, StoreUnavailable, UnusableConnection
from asyncjobs.portal import portal_for
from asyncjobs.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

# Text, bytes and NULLs, which drivers encode differently.
PAYLOAD = {"text": "ä % :p0 \\ '", "list": [1, None]}


@pytest.fixture
def queue(store: PostgresStore) -> AsyncJobs:
    queue = AsyncJobs(store)

    @queue.handler("export")
    async def export(given: dict[str, object], _: JobContext) -> object:
        return given

    return queue


@pytest.fixture
async def jobs(queue: AsyncJobs) -> AsyncIterator[AsyncJobs]:
    async with queue:
        yield queue


@pytest.fixture(params=["psycopg", "asyncpg"])
async def engine(
    request: pytest.FixtureRequest, postgres: PostgresServer
) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(address(postgres, request.param))
    yield engine
    await engine.dispose()


@pytest.fixture(params=["psycopg", "psycopg2"])
def thread_engine(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Engine]:
    engine = create_engine(address(postgres, request.param))
    yield engine
    engine.dispose()


def address(postgres: PostgresServer, driver: str) -> str:
    url = make_url(postgres.url).set(drivername=f"postgresql+{driver}")
    return url.render_as_string(hide_password=False)


async def runs(jobs: AsyncJobs, job_id: str) -> None:
    with anyio.fail_after(30):
        job = await jobs.wait(job_id)  # type: ignore[arg-type]
    assert (job.status, job.result) == (JobStatus.COMPLETED, PAYLOAD)


async def test_a_session_commits_a_job_with_its_own_rows(
    jobs: AsyncJobs, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session:
        job = (
            await jobs.enqueue(
                "export", PAYLOAD, user_id="ännä", connection=transaction_of(session)
            )
        ).job
        assert await jobs.get(job.id) is None
        await session.commit()
    await runs(jobs, job.id)


async def test_a_session_that_is_rolled_back_leaves_no_job(
    jobs: AsyncJobs, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session:
        job = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(session))).job
        async with session.begin_nested() as nested:
            inner = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(session))).job
            await nested.rollback()
        kept = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(session))).job
        await session.commit()
        undone = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(session))).job
        await session.rollback()
    found = [await jobs.get(one.id) for one in (job, inner, kept, undone)]
    assert [one is not None for one in found] == [True, False, True, False]


async def test_a_used_key_returns_its_job_and_the_session_continues(
    jobs: AsyncJobs, engine: AsyncEngine
) -> None:
    first = (await jobs.enqueue("export", PAYLOAD, idempotency_key="k")).job
    async with AsyncSession(engine) as session, session.begin():
        within = transaction_of(session)
        again = (await jobs.enqueue("export", PAYLOAD, idempotency_key="k", connection=within)).job
        assert again.id == first.id
        assert again.payload == PAYLOAD
        with pytest.raises(IdempotencyConflict):
            await jobs.enqueue("export", {"other": 1}, idempotency_key="k", connection=within)
        other = (await jobs.enqueue("export", PAYLOAD, connection=within)).job
    await runs(jobs, other.id)


async def test_a_connection_can_commit_a_job(jobs: AsyncJobs, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        job = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(connection))).job
    await runs(jobs, job.id)


async def test_a_scoped_session_resolves_to_the_callers_session(
    jobs: AsyncJobs, engine: AsyncEngine
) -> None:
    scopes = [1]
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: scopes[0])
    within = transaction_of(scoped)
    mine = scoped()
    scopes[0] = 2
    job = (await jobs.enqueue("export", PAYLOAD, connection=within)).job
    await mine.commit()
    await runs(jobs, job.id)
    await mine.close()


async def test_synchronous_sessions_can_commit_a_job(
    jobs: AsyncJobs, thread_engine: Engine
) -> None:
    with Session(thread_engine) as session:
        job = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(session))).job
        assert await jobs.get(job.id) is None
        session.commit()
        first = (await jobs.enqueue("export", PAYLOAD, idempotency_key="k")).job
        within = transaction_of(session)
        again = (await jobs.enqueue("export", PAYLOAD, idempotency_key="k", connection=within)).job
        assert again.id == first.id
        assert again.payload == PAYLOAD
    with thread_engine.begin() as connection:
        other = (await jobs.enqueue("export", PAYLOAD, connection=transaction_of(connection))).job
    await runs(jobs, job.id)
    await runs(jobs, other.id)


def test_a_thread_with_its_own_session_can_enqueue_through_a_portal(
    queue: AsyncJobs, thread_engine: Engine
) -> None:
    scoped = scoped_session(sessionmaker(thread_engine))
    portal = portal_for(queue)
    ids: list[str] = []

    def view() -> None:
        within = transaction_of(scoped)

        async def enqueue() -> str:
            return (await queue.enqueue("export", PAYLOAD, connection=within)).id

        ids.append(portal.call(enqueue))
        scoped.commit()
        scoped.remove()

    try:
        thread = threading.Thread(target=view)
        thread.start()
        thread.join()
        portal.call(runs, queue, ids[0])
    finally:
        portal.close()


async def refused(jobs: AsyncJobs, session: object) -> str:
    with pytest.raises(UnusableConnection) as caught:
        await jobs.enqueue("export", PAYLOAD, connection=session)
    return caught.value.reason


async def test_unusable_connections_and_sessions_are_refused(
    jobs: AsyncJobs, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        own = await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert "autocommit" in await refused(jobs, transaction_of(own))
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1 / 0"))
        assert "has failed" in await refused(jobs, transaction_of(connection))
    assert "closed" in await refused(jobs, transaction_of(connection))
    async with AsyncSession(engine) as session:
        assert "transaction_of" in await refused(jobs, session)


async def test_unusable_synchronous_connections_are_refused(
    jobs: AsyncJobs, thread_engine: Engine
) -> None:
    with thread_engine.connect() as connection:
        own = connection.execution_options(isolation_level="AUTOCOMMIT")
        assert "autocommit" in await refused(jobs, transaction_of(own))
    assert "closed" in await refused(jobs, transaction_of(connection))


def test_another_database_is_refused_before_any_statement() -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(UnusableConnection, match="it uses sqlite"):
        transaction_of(session)
    engine.dispose()


async def test_a_lost_connection_raises_store_unavailable(
    jobs: AsyncJobs, engine: AsyncEngine, postgres: PostgresServer
) -> None:
    async with engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
        postgres.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(StoreUnavailable) as caught:
            await jobs.enqueue("export", PAYLOAD, connection=transaction_of(connection))
        assert isinstance(caught.value.__cause__, DBAPIError)
