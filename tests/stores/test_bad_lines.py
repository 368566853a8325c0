"""A queue whose server connection breaks, stalls and recovers: no duplicates, no restart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus, Selection
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Store
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import BRISK, TcpProxy

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

TIMEOUT = 1.0
PATIENCE = 60.0

Reach = Callable[[str], Store]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["postgres", "redis"])
def reach(request: pytest.FixtureRequest) -> tuple[str, Reach]:
    """Return a server's URL, and a function that makes stores for another URL of it."""
    if request.param == "redis":
        namespace: str = request.getfixturevalue("namespace")
        url: str = request.getfixturevalue("redis_url")
        return url, lambda near: RedisStore(near, namespace=namespace, timeout=TIMEOUT)
    postgres: PostgresServer = request.getfixturevalue("postgres")
    schema: str = request.getfixturevalue("schema")
    return postgres.url, lambda near: PostgresStore(near, schema=schema, timeout=TIMEOUT)


@pytest.fixture
def proxy(reach: tuple[str, Reach]) -> Iterator[TcpProxy]:
    server = urlsplit(reach[0])
    with TcpProxy(server.hostname or "127.0.0.1", server.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def opened(reach: tuple[str, Reach], proxy: TcpProxy) -> Any:
    """Open a queue behind the proxy."""
    url, make = reach

    @asynccontextmanager
    async def open_() -> AsyncGenerator[AsyncJobs]:
        jobs = AsyncJobs(make(proxy.through(url)), settings=BRISK)

        @jobs.handler("double")
        async def double(number: int, _job: JobContext) -> int:
            return 2 * number

        async with jobs:
            yield jobs

    return open_


async def test_an_enqueue_with_a_lost_answer_makes_no_duplicate(
    opened: Any, proxy: TcpProxy
) -> None:
    async with opened() as jobs:
        first = await jobs.enqueue("double", 1)
        with anyio.fail_after(PATIENCE):
            proxy.lose(1)
            job = await answered(lambda: jobs.enqueue("double", 21, idempotency_key="k"))
            done = await answered(lambda: jobs.wait(job.id))
            page = await answered(lambda: jobs.list(Selection()))
    assert proxy.to_lose == 0
    assert (done.result, done.attempt) == (42, 1)
    assert [one.id for one in page.jobs] == [job.id, first.id]


async def test_a_stalled_connection_times_out_and_is_used_again(
    opened: Any, proxy: TcpProxy
) -> None:
    async with opened() as jobs:
        job = await jobs.enqueue("double", 21)
        await jobs.wait(job.id)
        proxy.stall()
        began = anyio.current_time()
        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailable):
            await jobs.get(job.id)
        assert anyio.current_time() - began >= TIMEOUT / 2
        proxy.flow()
        with anyio.fail_after(PATIENCE):
            again = await answered(lambda: jobs.enqueue("double", 4))
            assert (await answered(lambda: jobs.wait(again.id))).result == 8


async def test_a_server_is_used_again_after_an_outage(opened: Any, proxy: TcpProxy) -> None:
    async with opened() as jobs:
        job = await jobs.enqueue("double", 21)
        await jobs.wait(job.id)
        proxy.refuse()
        proxy.cut()
        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailable):
            await jobs.enqueue("double", 4)
        proxy.accept()
        with anyio.fail_after(PATIENCE):
            again = await answered(lambda: jobs.enqueue("double", 4))
            done = await answered(lambda: jobs.wait(again.id))
    assert (done.status, done.result) == (JobStatus.COMPLETED, 8)


async def answered(call: Callable[[], Any]) -> Any:
    """Repeat calls that raise what 503 answers, as clients do."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await anyio.sleep(0.01)
