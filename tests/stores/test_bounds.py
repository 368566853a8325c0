"""Every wait for a store is bounded from the call on: silent servers, and a locked file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from asyncjobs import AsyncJobs, Job, JobContext, JobStatus, Selection, Settings
from asyncjobs.errors import StoreUnavailable
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.mounts import Mount
from asyncjobs.stores import store_from_url
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import TcpProxy
from tests.everywhere import SERVERS
from tests.http.mounted import accept, submission
from tests.queues import running, settled

pytestmark = pytest.mark.anyio

STORE_TIMEOUT = 0.5

#: A store's own time-out. SQLite waits ten seconds for a lock, once for each write.
DRIVER_SECONDS = 30

GRACE = 0.2

#: The bounds, and the margin of a busy machine: less than a driver's time-out.
CALL_BOUND = STORE_TIMEOUT + 4
STOP_BOUND = GRACE + 5 + 4

CLIENTS = 20

SETTINGS = Settings(poll_interval=0.05, store_timeout=STORE_TIMEOUT, grace=GRACE)

on_servers = pytest.mark.parametrize("store_kind", SERVERS, indirect=True, scope="session")

Calls = dict[str, Callable[[], Any]]


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone


def far_store(url: str) -> Any:
    """Make a store with long time-outs."""
    if url.startswith("redis"):
        return RedisStore(url, timeout=DRIVER_SECONDS)
    return store_from_url(url)  # 30 seconds a statement


def queue_on(store: Any) -> AsyncJobs:
    """Make a queue whose store calls have half a second."""
    jobs = AsyncJobs(store, settings=SETTINGS)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    @jobs.handler("endless")
    async def endless(_none: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    return jobs


@pytest.fixture
def proxy(new_url: Callable[[], str]) -> Generator[tuple[TcpProxy, str]]:
    url = new_url()
    server = urlsplit(url)
    with TcpProxy(server.hostname or "127.0.0.1", server.port or 5432) as proxy:
        yield proxy, proxy.through(url)


def calls_of(jobs: AsyncJobs, job: Job) -> Calls:
    """Return the calls that clients make."""
    return {
        "enqueue": lambda: jobs.enqueue("double", 1),
        "get": lambda: jobs.get(job.id),
        "find": lambda: jobs.find(job.id),
        "list": lambda: jobs.list(Selection()),
        "cancel": lambda: jobs.cancel(job.id),
    }


@contextmanager
def within(seconds: float) -> Generator[None]:
    """Check that the block takes no longer, even if it shields itself from a cancellation."""
    began = anyio.current_time()
    with anyio.fail_after(seconds, shield=True):
        yield
    assert anyio.current_time() - began <= seconds


async def all_are_unavailable(calls: Calls) -> None:
    """Make this many calls at once; check that each times out."""
    answered: list[str] = []

    async def make_call(name: str) -> None:
        with within(CALL_BOUND), pytest.raises(StoreUnavailable):
            await calls[name]()
        answered.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(make_call, sorted(calls)[number % len(calls)])
    assert len(answered) == CLIENTS


async def all_get_503(jobs: AsyncJobs, job: Job) -> None:
    """Make requests at once; check that each gets 503 in time."""
    endpoints = Endpoints(jobs, Mount())
    answers: list[Response] = []
    requests: list[Callable[[], Any]] = [
        partial(accept, endpoints, submission()),
        partial(endpoints.handle, Request("GET", job.id)),
        partial(endpoints.handle, Request("GET", f"{job.id}/result")),
        partial(endpoints.handle, Request("DELETE", job.id)),
    ]

    async def ask(request: Callable[[], Any]) -> None:
        with within(CALL_BOUND):
            answers.append(await request())

    async with anyio.create_task_group() as tasks:
        for request in requests:
            tasks.start_soon(ask, request)
    assert [answer.status for answer in answers] == [503] * len(requests)


# a server that falls silent


@on_servers
async def test_calls_of_a_silent_server_time_out(proxy: tuple[TcpProxy, str]) -> None:
    wire, url = proxy
    async with queue_on(far_store(url)) as jobs:
        job = await running(jobs, "endless")
        wire.stall()
        await all_are_unavailable(calls_of(jobs, job))
        await all_get_503(jobs, job)
        wire.flow()
        assert (await jobs.cancel(job.id)).cancel_requested_at is not None
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


@on_servers
async def test_opening_times_out_if_the_server_is_silent(
    proxy: tuple[TcpProxy, str],
) -> None:
    """Uses the store's own time-out, since a queue must not give up a change of its tables."""
    wire, url = proxy
    wire.stall()
    store = RedisStore(url, timeout=1) if url.startswith("redis") else None
    jobs = queue_on(store or store_from_url(f"{url}&connect_timeout=2"))
    with within(CALL_BOUND), pytest.raises(StoreUnavailable):
        await jobs.open()
    assert not jobs.is_open
    wire.flow()
    async with jobs:
        job = await jobs.enqueue("double", 2)
        assert (await settled(jobs, job.id)).result == 4


@on_servers
@pytest.mark.thorough
async def test_a_queue_closes_in_time_although_its_server_is_silent(
    proxy: tuple[TcpProxy, str],
) -> None:
    wire, url = proxy
    jobs = queue_on(far_store(url))
    await jobs.open()
    job = await running(jobs, "endless")
    wire.stall()
    with within(STOP_BOUND):
        await jobs.close()
    assert not jobs.is_open
    wire.cut()
    wire.flow()
    async with queue_on(far_store(url)) as others:
        # The release may have been delivered after all, when the connection was cut.
        assert not (await others.find(job.id)).status.terminal


# a file that another program has locked


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock for writing, as another program does."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_writes_to_a_locked_file_time_out(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with queue_on(store_from_url(f"sqlite:///{path}")) as jobs:
        job = await running(jobs, "endless")
        calls = calls_of(jobs, job)
        with locked(path):
            await all_are_unavailable({name: calls[name] for name in ("enqueue", "cancel")})
            assert (await jobs.find(job.id)).status is JobStatus.PROCESSING  # readers do not wait
        await jobs.cancel(job.id)
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED


@pytest.mark.thorough
async def test_a_queue_closes_in_time_although_its_file_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    jobs = queue_on(store_from_url(f"sqlite:///{path}"))
    await jobs.open()
    job = await running(jobs, "endless")
    with locked(path), within(STOP_BOUND):
        await jobs.close()
    async with queue_on(store_from_url(f"sqlite:///{path}")) as others:
        assert (await others.find(job.id)).status in {JobStatus.PROCESSING, JobStatus.PENDING}
