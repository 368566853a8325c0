"""Procrastinate's workers pass the shared tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.schema import SchemaManager
from psycopg.rows import dict_row

from asyncjobs import AsyncJobs, JobStatus, Settings
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher, ProcrastinateOptions
from asyncjobs.errors import NotDispatched
from asyncjobs.portal import portal_for
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import PriorityConformance, sample_job
from asyncjobs.testing.dispatcher_handlers import began, register, release
from tests.conftest import PostgresServer, Serve
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls, postgres_database
from tests.engines.suite import (
    AsyncClientConformance,
    EngineConformance,
    GiveBackConformance,
    TimeLimitConformance,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


def make_app(url: str) -> App:
    return App(connector=PsycopgConnector(conninfo=url))


def rows(url: str) -> list[dict[str, Any]]:
    """Read Procrastinate's rows of its jobs."""
    with psycopg.connect(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT *, xmin FROM procrastinate_jobs ORDER BY id").fetchall()


class Procrastinate(Engine):
    worker = ("procrastinate", "--app=procrastinate_worker.app", "worker", "--concurrency=2")
    give_back = ("--shutdown-graceful-timeout", "0.2")
    stopping = "Stop requested"
    options = ProcrastinateOptions
    options_by_type: ClassVar[Mapping[str, object]] = {
        "urgent": ProcrastinateOptions(priority=5),
        "patient": ProcrastinateOptions(priority=-5),
        "refused": ProcrastinateOptions(priority=2**40),
    }
    settings: ClassVar[Mapping[str, object]] = {
        "lock": None,
        "queueing_lock": None,
        "scheduled_at": None,
    }

    def dispatcher(self, broker: str, **arguments: Any) -> ProcrastinateDispatcher:
        return ProcrastinateDispatcher(make_app(broker), **arguments)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        return [
            Sent(row["task_name"], row["args"], {name: row[name] for name in self.settings})
            for row in rows(broker)
            if row["queue_name"] == queue
        ]

    async def results(self, broker: str) -> set[str]:
        """Return the ids of all jobs that did not succeed at the first attempt."""
        return {
            str(row["id"])
            for row in rows(broker)
            if (row["status"], row["attempts"]) != ("succeeded", 1)
        }

    async def run_own_task(self, broker: str) -> str:
        async with make_app(broker).open_async() as app:
            return str(await app.configure_task("plain").defer_async())


ENGINE = Procrastinate


@pytest.fixture(scope="module")
def urls(postgres: PostgresServer) -> Iterator[Urls]:
    with postgres_database(postgres, SchemaManager.get_schema()) as url:
        yield Urls(url, url)


@pytest.fixture
def own_urls(postgres: PostgresServer) -> Iterator[Urls]:
    with postgres_database(postgres, SchemaManager.get_schema()) as url:
        yield Urls(url, url)


class TestProcrastinate(
    EngineConformance,
    GiveBackConformance,
    TimeLimitConformance,
    AsyncClientConformance,
    PriorityConformance,
):
    async def test_jobs_are_accepted_during_an_outage_of_the_broker_and_sent_after_it(
        self, engine: Engine, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without the second part: other tests use the database, so it is not stopped."""
        del serve, caplog
        jobs = AsyncJobs(
            MemoryStore(),
            dispatcher=engine.dispatcher("postgresql://postgres@127.0.0.1:1/postgres"),
            settings=Settings(dispatch_timeout=timedelta(seconds=0.1)),
        )
        register(jobs)
        async with jobs:
            handle = await jobs.enqueue("steps", 1)
            assert (await jobs.find(handle.id)).status is JobStatus.PENDING

    async def test_a_job_that_procrastinate_aborts_is_released(
        self, workers: EngineWorkers, urls: Urls, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            handle = await jobs.enqueue("hold", path)
            await until(lambda: began(path) == 1)
            async with make_app(urls.broker).open_async() as app:
                for row in rows(urls.broker):
                    if row["args"].get("id") == handle.id:
                        await app.job_manager.cancel_job_by_id_async(row["id"], abort=True)
            await until(lambda: began(path) == 2)
            release(path)
            done = await handle.wait()
        assert (done.status, done.losses) == (JobStatus.COMPLETED, 0)


# inserted rows


async def test_jobs_with_the_same_options_are_inserted_by_one_statement(
    engine: Engine, own_urls: Urls
) -> None:
    jobs = [sample_job(type=name) for name in ("plain", "urgent", "other") * 20]
    async with engine.dispatcher(own_urls.broker, options=engine.options_by_type) as dispatcher:
        await dispatcher.dispatch(jobs)
    found = rows(own_urls.broker)
    assert {row["args"]["id"] for row in found} == {job.id for job in jobs}
    assert len({row["xmin"] for row in found}) == 2


async def test_invalid_options_of_a_job_do_not_affect_other_jobs(
    engine: Engine, own_urls: Urls
) -> None:
    job = sample_job()
    async with engine.dispatcher(own_urls.broker, options=engine.options_by_type) as dispatcher:
        with pytest.raises(NotDispatched):
            await dispatcher.dispatch([sample_job(type="refused"), job])
    assert [row["args"]["id"] for row in rows(own_urls.broker)] == [job.id]


# connections


async def test_an_open_app_is_used_and_stays_open(own_urls: Urls) -> None:
    async with make_app(own_urls.broker).open_async() as app:
        before = connections(own_urls.broker)
        async with ProcrastinateDispatcher(app) as dispatcher:
            await dispatcher.dispatch([sample_job()])
            assert connections(own_urls.broker) == before
        assert await app.check_connection_async()


async def test_own_connections_are_closed_and_opened_again(own_urls: Urls) -> None:
    dispatcher = ProcrastinateDispatcher(make_app(own_urls.broker))
    for _ in range(2):
        async with dispatcher:
            await dispatcher.dispatch([sample_job()])
            assert connections(own_urls.broker) > 0
        await until(lambda: connections(own_urls.broker) == 0)
    assert len(rows(own_urls.broker)) == 2


def test_an_app_that_is_open_for_threads_is_used_from_a_portal(own_urls: Urls) -> None:
    app = make_app(own_urls.broker)
    jobs = AsyncJobs(MemoryStore(), dispatcher=ProcrastinateDispatcher(app))
    register(jobs)
    with app.open():
        portal_for(jobs).call(partial(jobs.enqueue, "steps", 1))
        assert app.check_connection()
        portal_for(jobs).close()
    assert len(rows(own_urls.broker)) == 1


async def test_an_app_for_threads_must_be_opened_by_the_application(own_urls: Urls) -> None:
    app = App(connector=SyncPsycopgConnector(conninfo=own_urls.broker))
    async with ProcrastinateDispatcher(app) as dispatcher:
        with pytest.raises(NotDispatched, match="App"):
            await dispatcher.dispatch([sample_job()])
        with app.open():
            await dispatcher.dispatch([sample_job()])
    assert len(rows(own_urls.broker)) == 1


def connections(url: str) -> int:
    """Count the connections of other programs than this one."""
    with psycopg.connect(url) as connection:
        counted = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchone()
    assert counted is not None
    return int(counted[0])
