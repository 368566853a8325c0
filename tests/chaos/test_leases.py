"""A worker that has lost its lease writes no outcome, whatever the cause of the loss."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus, Settings
from asyncjobs.core.job import JobId
from asyncjobs.records.clock import SharedClock
from asyncjobs.stores import store_from_url
from asyncjobs.testing import TcpProxy
from tests.chaos import application
from tests.chaos.application import LEASE, Errand
from tests.chaos.checker import violations
from tests.chaos.crowd import PATIENCE, Workers
from tests.chaos.recording import Event, Notes, Recorded, read_notes, state_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

#: An attempt that outlasts any lease, with room for its successor to end.
LONG = Errand(seconds=2 * LEASE.total_seconds())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return of_server(request, request.param)


@pytest.fixture(params=["postgresql", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    return of_server(request, request.param)


def of_server(request: pytest.FixtureRequest, kind: str) -> str:
    """Return the URL of a new store on a server."""
    if kind == "redis":
        namespace = request.getfixturevalue("namespace")
        return f"{request.getfixturevalue('redis_url')}?namespace={namespace}"
    schema = request.getfixturevalue("schema")
    return f"{request.getfixturevalue('postgres').url}?asyncjobs_schema={schema}"


class Scene:
    """A job that a worker process has started, and the queue that submitted it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.notes = Notes(folder)
        self.jobs = application.queue_on(Recorded(store_from_url(url), self.notes))
        self.first = Workers(folder, url, 1)
        self.second = Workers(folder, url, 1)

    async def begun(self, kind: str, errand: Errand) -> Job:
        """Submit a job to the first worker; return when its handler has started."""
        job = (await self.jobs.enqueue(kind, errand)).job
        self.notes.write("accepted", job=job.id, key=job.id)
        self.first.fill_up()
        await until(lambda: self.traces("begin", job.id))
        return job

    def traces(self, what: str, job: JobId) -> list[Event]:
        noted = read_notes(self.folder)
        return [event for event in noted if event["what"] == what and event["job"] == job]

    async def ended(self, job: Job) -> Job:
        with anyio.fail_after(PATIENCE):
            return await self.jobs.wait(job.id)

    async def check(self, job: Job) -> None:
        """Let the first worker end, and find the outcome of the second."""
        done = await self.ended(job)
        assert (done.status, done.attempt, done.losses) == (JobStatus.COMPLETED, 2, 1)
        await anyio.to_thread.run_sync(self.first.end)
        await anyio.to_thread.run_sync(self.second.end)
        [found] = await self.jobs.store.get([job.id])
        assert found == done
        assert found is not None
        assert isinstance(found.result, dict)
        assert found.result["attempt"] == 2
        self.notes.write("final", **state_of(found))
        assert violations(read_notes(self.folder)) == []


@contextmanager
def scene_on(folder: Path, url: str) -> Generator[Scene]:
    made = Scene(folder, url)
    try:
        yield made
    finally:
        made.first.close()
        made.second.close()


async def test_a_worker_that_was_suspended_past_its_lease_writes_no_outcome(
    url: str, tmp_path: Path
) -> None:
    with scene_on(tmp_path, url) as scene:
        async with scene.jobs:
            job = await scene.begun("errand", LONG)
            scene.first.signal(signal.SIGSTOP)
            scene.second.fill_up()
            await until(lambda: len(scene.traces("begin", job.id)) == 2)
            scene.first.signal(signal.SIGCONT)
            # It first notices either the lost lease or the refused write.
            texts = ("lease was lost", "outcome was refused")
            await until(lambda: any(text in scene.first.log.read_text() for text in texts))
            await scene.check(job)


async def test_a_worker_whose_handler_blocks_past_its_lease_writes_no_outcome(
    url: str, tmp_path: Path
) -> None:
    with scene_on(tmp_path, url) as scene:
        async with scene.jobs:
            job = await scene.begun("deaf", Errand(seconds=3 * LEASE.total_seconds()))
            scene.second.fill_up()
            # The first handler returns, and its worker tries to complete the job.
            await until(lambda: len(scene.traces("end", job.id)) == 2)
            await scene.check(job)
    log = scene.first.log.read_text()
    assert "The handler of 'deaf' has blocked the event loop" in log
    assert "time.sleep(what.seconds)" in log


async def test_a_worker_that_is_cut_off_from_its_store_writes_no_outcome(
    server_url: str, tmp_path: Path
) -> None:
    parts = urlsplit(server_url)
    assert parts.hostname is not None
    assert parts.port is not None
    with TcpProxy(parts.hostname, parts.port) as proxy, scene_on(tmp_path, server_url) as scene:
        scene.first = Workers(tmp_path, proxy.through(server_url), 1)
        async with scene.jobs:
            job = await scene.begun("errand", LONG)
            proxy.stall()
            scene.second.fill_up()
            await until(lambda: len(scene.traces("begin", job.id)) == 2)
            done = await scene.ended(job)
            # The writes sent in the meantime arrive now.
            proxy.flow()
            assert done == await scene.jobs.find(job.id)
            await scene.check(job)


class ShiftedClock:
    """A machine's clock with a constant error."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self._by


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_off_by_an_hour_neither_steals_nor_delays_jobs(
    server_url: str, hours: int
) -> None:
    quick = Settings(
        lease=LEASE,
        poll_interval=timedelta(seconds=0.05),
        sweep_interval=timedelta(seconds=0.05),
        redelivery=LEASE,
    )
    right = AsyncJobs(server_url, settings=quick)
    wrong = AsyncJobs(
        server_url, settings=quick, clock=SharedClock(ShiftedClock(timedelta(hours=hours)))
    )
    began = anyio.Event()

    @right.handler("here")
    async def here(_none: None, job: JobContext) -> int:
        began.set()
        await anyio.sleep(LEASE.total_seconds() * 1.2)
        return job.attempt

    @wrong.handler("there")
    async def there(_none: None, job: JobContext) -> int:
        return job.attempt

    async with right, wrong:
        long = (await right.enqueue(here, None)).job
        await began.wait()
        with anyio.fail_after(PATIENCE):
            for queue in (wrong, right):
                short = (await wrong.enqueue(there, None)).job
                assert (await queue.wait(short.id)).result == 1
            done = await wrong.wait(long.id)
    assert (done.result, done.attempt, done.losses) == (1, 1, 0)
