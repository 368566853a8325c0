"""Procrastinate's workers keep the rules of dispatchers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import psycopg
import pytest
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.exceptions import AppNotOpen, ConnectorException
from procrastinate.schema import SchemaManager
from psycopg.rows import dict_row
from starlette.testclient import TestClient

from asyncjobs import AsyncJobs, Job, JobStatus, Settings
from asyncjobs.dispatchers.procrastinate import ProcrastinateDispatcher, ProcrastinateOptions
from asyncjobs.errors import ConfigurationError
from asyncjobs.portal import portal_for
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import (
    DispatcherConformance,
    PriorityConformance,
    WorkerLossConformance,
    sample_job,
)
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, register, release
from tests.engines.conftest import Launch
from tests.engines.fleets import APPS, Fleet, FleetWorkers

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

EXAMPLES = str(Path(__file__).parents[2] / "examples")
WORKER = ("-m", "procrastinate", "--app", "procrastinate_worker.app", "worker")
# The seconds that a middleware of the workers' app gives each task.
LIMIT = 0.2

OPTIONS = {
    "urgent": ProcrastinateOptions(priority=5),
    "patient": ProcrastinateOptions(priority=-5),
    "elsewhere": ProcrastinateOptions(queue="reports"),
    "refused": ProcrastinateOptions(priority=2**40),
}


@contextmanager
def database_of(server: PostgresServer, name: str) -> Generator[str]:
    """Make a database for both, the jobs and Procrastinate."""
    name = f"{name}_{uuid.uuid4().hex[:8]}"
    url = urlsplit(server.url)._replace(path=f"/{name}").geturl()
    server.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SchemaManager.get_schema())
    yield url
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[str]:
    with database_of(postgres, "procrastinate") as url:
        yield url


@pytest.fixture
def quiet(postgres: PostgresServer) -> Iterator[str]:
    """Name a database that no worker looks at."""
    with database_of(postgres, "quiet") as url:
        yield url


@pytest.fixture(scope="module")
def fleet(launch: Launch, database: str) -> Iterator[Fleet]:
    patience = ("--concurrency", "2", "--shutdown-graceful-timeout", "0.2")
    with launch(*WORKER, *patience, **environment(database)) as started:
        yield started


def environment(url: str) -> dict[str, str]:
    return {"BROKER": url, "STORE": url, "LIMIT": str(LIMIT)}


def make_app(url: str) -> App:
    return App(connector=PsycopgConnector(conninfo=url))


def rows(url: str, job: Job | None = None) -> list[dict[str, Any]]:
    """Read what Procrastinate has of a job, or of all."""
    with psycopg.connect(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT *, xmin FROM procrastinate_jobs WHERE %(id)s::text IS NULL"
            " OR args->>'id' = %(id)s ORDER BY id",
            {"id": job and job.id},
        ).fetchall()


class TestProcrastinate(DispatcherConformance, WorkerLossConformance, PriorityConformance):
    @pytest.fixture
    def workers(self, fleet: Fleet, database: str) -> FleetWorkers:
        dispatcher = ProcrastinateDispatcher(make_app(database), options=OPTIONS)
        return FleetWorkers(database, dispatcher, fleet)

    async def test_for_procrastinate_every_job_ends_well_at_its_first_attempt(
        self, workers: FleetWorkers, database: str, tmp_path: Path
    ) -> None:
        async with workers.opened() as jobs:
            for kind in ("refuse", "second_time"):
                job = await ended(jobs, (await jobs.enqueue(kind, tmp_path / kind)).job, workers)
                await until(lambda: settled(rows(database, job)), workers.patience)  # noqa: B023
                assert {row["status"] for row in rows(database, job)} == {"succeeded"}
                assert {row["attempts"] for row in rows(database, job)} == {1}

    async def test_a_time_limit_of_the_application_s_middlewares_does_not_end_a_job(
        self, workers: FleetWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) > 0, workers.patience)
            enough = time.monotonic() + 3 * LIMIT
            await until(lambda: time.monotonic() > enough, workers.patience)
            assert (await jobs.find(job.id)).status is JobStatus.PROCESSING
            release(path)
            done = await ended(jobs, job, workers)
        assert (done.status, done.attempt, began(path)) == (JobStatus.COMPLETED, 1, 1)

    async def test_a_worker_that_is_told_to_stop_gives_its_jobs_back_at_no_cost(
        self, workers: FleetWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            assert await anyio.to_thread.run_sync(workers.fleet.stop) == 0
            assert (await jobs.find(job.id)).status is JobStatus.PENDING
            workers.fleet.start()
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            done = await ended(jobs, job, workers)
        assert (done.status, done.losses) == (JobStatus.COMPLETED, 0)

    async def test_a_job_that_procrastinate_aborts_is_given_back(
        self, workers: FleetWorkers, database: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            async with make_app(database).open_async() as app:
                for row in rows(database, job):
                    await app.job_manager.cancel_job_by_id_async(row["id"], abort=True)
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            done = await ended(jobs, job, workers)
        assert (done.status, done.losses) == (JobStatus.COMPLETED, 0)


def settled(found: list[dict[str, Any]]) -> bool:
    return not any(row["status"] in ("todo", "doing") for row in found)


# what is written into Procrastinate's table


async def test_nothing_but_the_message_is_carried(quiet: str) -> None:
    job = sample_job(payload_json=b'"wide"')
    async with ProcrastinateDispatcher(make_app(quiet), namespace="mine") as dispatcher:
        await dispatcher.dispatch([job])
    [row] = rows(quiet)
    assert row["task_name"] == "mine.run"
    assert row["args"] == {"namespace": "mine", "id": job.id, "trace": job.trace_id}
    assert [row[name] for name in ("lock", "queueing_lock", "scheduled_at")] == [None] * 3


async def test_queue_and_priority_reach_procrastinate(quiet: str) -> None:
    plain, own = sample_job(type="plain"), sample_job(type="plain", queue="slow")
    urgent, elsewhere = sample_job(type="urgent"), sample_job(type="elsewhere", queue="slow")
    async with ProcrastinateDispatcher(make_app(quiet), options=OPTIONS) as dispatcher:
        await dispatcher.dispatch([plain, own, urgent, elsewhere])
    told = {row["args"]["id"]: (row["queue_name"], row["priority"]) for row in rows(quiet)}
    assert told == {
        plain.id: ("default", 0),
        own.id: ("slow", 0),
        urgent.id: ("default", 5),
        elsewhere.id: ("reports", 0),
    }


async def test_jobs_with_the_same_options_are_told_by_one_statement(quiet: str) -> None:
    jobs = [sample_job(type=kind) for kind in ("plain", "urgent", "other") * 20]
    async with ProcrastinateDispatcher(make_app(quiet), options=OPTIONS) as dispatcher:
        await dispatcher.dispatch(jobs)
    found = rows(quiet)
    assert {row["args"]["id"] for row in found} == {job.id for job in jobs}
    assert len({row["xmin"] for row in found}) == 2


async def test_options_that_are_refused_keep_no_others_from_being_told(quiet: str) -> None:
    refused, other = sample_job(type="refused"), sample_job()
    async with ProcrastinateDispatcher(make_app(quiet), options=OPTIONS) as dispatcher:
        with pytest.raises(ConnectorException):
            await dispatcher.dispatch([refused, other])
    assert [row["args"]["id"] for row in rows(quiet)] == [other.id]


# whose connections


async def test_an_app_that_is_open_is_used_and_stays_open(quiet: str) -> None:
    async with make_app(quiet).open_async() as app:
        before = connections(quiet)
        async with ProcrastinateDispatcher(app) as dispatcher:
            await dispatcher.dispatch([sample_job()])
            assert connections(quiet) == before
        assert await app.check_connection_async()


async def test_connections_of_its_own_are_closed_and_opened_again(quiet: str) -> None:
    dispatcher: Any = ProcrastinateDispatcher(make_app(quiet))
    for _ in range(2):
        async with dispatcher:
            await dispatcher.dispatch([sample_job()])
            pool = dispatcher._own.manager.connector.pool
        assert pool.closed
    assert len(rows(quiet)) == 2


def test_an_app_that_is_open_for_threads_is_used_from_a_portal(quiet: str) -> None:
    app = make_app(quiet)
    jobs = AsyncJobs(MemoryStore(), dispatcher=ProcrastinateDispatcher(app))
    register(jobs)
    with app.open():
        portal_for(jobs).call(partial(jobs.enqueue, "steps", 1))
        assert app.check_connection()
        portal_for(jobs).close()
    assert len(rows(quiet)) == 1


async def test_an_app_for_threads_has_to_be_opened_by_the_application(quiet: str) -> None:
    app = App(connector=SyncPsycopgConnector(conninfo=quiet))
    async with ProcrastinateDispatcher(app) as dispatcher:
        with pytest.raises(AppNotOpen):
            await dispatcher.dispatch([sample_job()])
        with app.open():
            await dispatcher.dispatch([sample_job()])
    assert len(rows(quiet)) == 1


def test_a_forked_child_has_connections_of_its_own(quiet: str) -> None:
    done = subprocess.run(
        [sys.executable, str(APPS / "procrastinate_forks.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment(quiet)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    # A slow one may be told of twice.
    assert len({row["args"]["id"] for row in rows(quiet)}) == 3


async def test_a_database_that_is_away_keeps_no_job_from_being_accepted(unused: str) -> None:
    jobs = AsyncJobs(
        MemoryStore(),
        dispatcher=ProcrastinateDispatcher(make_app(unused)),
        settings=Settings(dispatch_timeout=timedelta(seconds=0.1)),
    )
    register(jobs)
    async with jobs:
        job = (await jobs.enqueue("steps", 1)).job
        assert (await jobs.find(job.id)).status is JobStatus.PENDING


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_says_that_it_needs_asyncio() -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        async with ProcrastinateDispatcher(make_app("")):
            ...


@pytest.fixture
def unused() -> str:
    """Name a database where no server is."""
    return "postgresql://postgres@127.0.0.1:1/postgres"


def connections(url: str) -> int:
    """Count the connections of other programs than this one."""
    with psycopg.connect(url) as connection:
        counted = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert counted is not None
    return int(counted[0])


# the example


def test_the_example_runs_its_report_in_a_worker(
    launch: Launch, quiet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", quiet)
    monkeypatch.delitem(sys.modules, "procrastinate_app", raising=False)
    example = importlib.import_module("procrastinate_app")
    worker = ("-m", "procrastinate", "--app=procrastinate_app.engine", "worker")
    found_in = os.pathsep.join([EXAMPLES, os.environ.get("PYTHONPATH", "")])
    with launch(*worker, DATABASE_URL=quiet, PYTHONPATH=found_in) as fleet:
        fleet.start()
        with TestClient(example.app) as client:
            accepted = client.post("/api/reports", json={"pages": 3}).json()
            assert client.portal is not None
            client.portal.call(partial(example.jobs.wait, accepted["jobId"], timeout=60))
            job = client.get(accepted["statusUrl"]).json()
    assert (job["status"], job["progress"], job["result"]) == ("completed", 100, {"pages": 3})
