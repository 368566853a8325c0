"""Shared resources: opened once per process before the first handler, closed after the last."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobStatus
from asyncjobs.core.job import Delivery, JobId
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError, ResourcesUnavailable
from asyncjobs.testing import sample_job
from tests.queues import Make, finished, running

from . import shared_resources
from .shared_resources import NOTES, kinds, lifespan

pytestmark = pytest.mark.anyio

Opened = Callable[[], Any]


class NoNetwork(AbstractAsyncContextManager[None]):
    async def __aenter__(self) -> None:
        raise OSError("no network")

    async def __aexit__(self, *_error: object) -> None:
        return None


class Delivered(WorkerDispatcher):
    """An engine whose deliveries the test triggers."""

    delivery = Delivery.PUSH


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def pool(notes: list[str]) -> Opened:
    @asynccontextmanager
    async def pool() -> AsyncGenerator[list[str]]:
        notes.append("opened")
        yield notes
        notes.append("closed")

    return pool


def with_handlers(jobs: AsyncJobs) -> AsyncJobs:
    @jobs.handler("async")
    async def in_loop(_none: None, job: JobContext[list[str]]) -> None:
        job.resources.append("async")

    @jobs.handler("thread")
    def in_thread(_none: None, job: JobContext[list[str]]) -> None:
        job.resources.append("thread")

    @jobs.handler("slow")
    async def slow(_none: None, job: JobContext[list[str]]) -> None:
        await anyio.sleep(0.05)
        job.resources.append("slow")

    return jobs


def test_a_lifespan_that_returns_no_context_manager_is_refused() -> None:
    async def generator() -> AsyncGenerator[None]:
        yield

    @asynccontextmanager
    async def of_an_app(app: object) -> AsyncGenerator[object]:
        yield app

    bare: Any = generator
    needy: Any = of_an_app
    with pytest.raises(ConfigurationError, match="decorate it with @asynccontextmanager"):
        AsyncJobs("memory://", lifespan=bare)
    with pytest.raises(ConfigurationError, match="it requires 'app'"):
        AsyncJobs("memory://", lifespan=needy)
    AsyncJobs("memory://", lifespan=partial(needy, 1))


async def test_a_handler_can_submit_jobs_to_the_queue_that_runs_it(make: Make) -> None:
    jobs = make()

    @jobs.handler("last")
    async def last(text: str) -> str:
        return text

    @jobs.handler("async")
    async def in_loop(text: str, job: JobContext) -> str:
        return (await job.queue.enqueue(last, text)).id

    @jobs.handler("thread")
    def in_thread(text: str, job: JobContext) -> str:
        return job.queue.sync.enqueue(last, text).id

    async with jobs:
        for name in ("async", "thread"):
            first = await finished(jobs, name, name)
            second = JobId(str(first.result))
            assert (await jobs.wait(second, timeout=60)).result == name
    with pytest.raises(ConfigurationError, match="use its `sync`"):
        _ = JobContext(sample_job()).queue


@pytest.mark.every_store
async def test_a_lifespan_is_open_from_the_first_to_the_last_handler(
    make: Make, pool: Opened, notes: list[str]
) -> None:
    jobs = with_handlers(make(lifespan=pool))
    for _ in range(2):
        notes.clear()
        async with jobs:
            await finished(jobs, "async")
            await finished(jobs, "thread")
            await running(jobs, "slow")
        assert notes == ["opened", "async", "thread", "slow", "closed"]


async def test_a_queue_without_a_lifespan_has_none(make: Make) -> None:
    jobs = make()

    @jobs.handler("look")
    async def look(_none: None, job: JobContext) -> bool:
        return job.resources is None

    async with jobs:
        assert (await finished(jobs, look)).result is True


async def test_a_queue_whose_lifespan_fails_is_not_open(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = with_handlers(make(lifespan=NoNetwork))
    with pytest.raises(ResourcesUnavailable, match="no network") as raised:
        await jobs.open()
    assert isinstance(raised.value.__cause__, OSError)
    assert not jobs.is_open
    assert "could not be opened; this process runs no jobs" in caplog.text
    async with jobs.open(run_handlers=False):
        assert jobs.is_open


@pytest.mark.parametrize("how", ["cancels", "exits"])
async def test_an_exit_or_cancellation_in_a_lifespan_is_contained(make: Make, how: str) -> None:
    class Harmful(NoNetwork):
        async def __aenter__(self) -> None:
            if how == "exits":
                raise SystemExit(3)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.sleep(1)
            raise KeyboardInterrupt

    jobs = with_handlers(make(lifespan=Harmful))
    with pytest.raises(ResourcesUnavailable):
        await jobs.open()
    assert not jobs.is_open


async def test_a_process_that_runs_no_handlers_opens_nothing(
    make: Make, pool: Opened, notes: list[str]
) -> None:
    for jobs in (make(lifespan=pool), make(lifespan=pool, dispatcher="worker")):
        async with with_handlers(jobs).open(run_handlers=False):
            job = await jobs.enqueue("async", None)
            assert (await jobs.find(job.id)).status is JobStatus.PENDING
    async with jobs:  # its handlers run in workers
        pass
    assert notes == []


async def test_handlers_can_be_started_and_drained_while_the_queue_is_open(
    make: Make, pool: Opened, notes: list[str]
) -> None:
    jobs = with_handlers(make(lifespan=pool))
    async with jobs.open(run_handlers="later"):
        job = await jobs.enqueue("async", None)
        assert notes == []
        await jobs.start_handlers()
        await jobs.start_handlers()
        assert (await jobs.wait(job.id)).status is JobStatus.COMPLETED
        await running(jobs, "slow")
        await jobs.drain()
        assert notes == ["opened", "async", "slow", "closed"]
        await jobs.until_drained()
        late = await jobs.enqueue("async", None)
        await jobs.drain()
        assert (await jobs.find(late.id)).status is JobStatus.PENDING


async def test_no_jobs_start_after_the_lifespan_ends_by_itself(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    lose = anyio.Event()

    @asynccontextmanager
    async def connection() -> AsyncGenerator[list[str]]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            yield []

    async def die() -> None:
        await lose.wait()
        raise OSError("connection lost")

    jobs = with_handlers(make(lifespan=connection))
    with caplog.at_level(logging.CRITICAL):
        async with jobs:
            await finished(jobs, "async")
            lose.set()
            await jobs.until_drained()
            job = await jobs.enqueue("async", None)
            assert (await jobs.find(job.id)).status is JobStatus.PENDING
    assert "This process starts no more jobs" in caplog.text


async def test_a_lifespan_that_never_ends_does_not_keep_the_queue_open(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def endless() -> AsyncGenerator[None]:
        yield
        await anyio.sleep_forever()

    jobs = make(lifespan=endless)
    with anyio.fail_after(30):
        async with jobs:
            pass
    assert not jobs.is_open
    assert "did not end within" in caplog.text


async def test_the_first_delivery_of_an_engine_opens_the_lifespan(
    make: Make, pool: Opened, notes: list[str]
) -> None:
    jobs = with_handlers(make(lifespan=pool, dispatcher=Delivered()))
    async with jobs:
        job = await jobs.enqueue("async", None)
        assert notes == []
        await jobs.run(job.id)
        await jobs.run((await jobs.enqueue("thread", None)).id)
    assert notes == ["opened", "async", "thread", "closed"]


async def test_a_delivered_job_waits_while_the_lifespan_cannot_be_opened(make: Make) -> None:
    jobs = with_handlers(make(lifespan=NoNetwork, dispatcher=Delivered()))
    async with jobs:
        job = await jobs.enqueue("async", None)
        for _ in range(2):
            with pytest.raises(ResourcesUnavailable):
                await jobs.run(job.id)
        assert (await jobs.find(job.id)).status is JobStatus.PENDING


class TestProcesses:
    """Handlers with `run_in="process"`: each child process opens the resources itself."""

    pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])

    @pytest.fixture(autouse=True)
    def _notes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(NOTES, str(tmp_path / "notes"))

    async def test_each_child_process_opens_the_lifespan_once_and_closes_it(
        self, make: Make, tmp_path: Path
    ) -> None:
        jobs = make(lifespan=lifespan)
        for kind in kinds.registry:
            jobs.registry.add(kind)
        async with jobs:
            turns = [await finished(jobs, "turn") for _ in range(3)]
            counts = [await finished(jobs, "count") for _ in range(2)]
        results: list[Any] = [job.result for job in [*turns, *counts]]
        [child] = {pid for pid, _ in results}
        assert [number for _, number in results] == [0, 1, 2, 1, 2]
        lines = (tmp_path / "notes").read_text().splitlines()
        here = os.getpid()
        assert sorted(lines) == sorted(
            [f"opened {here}", f"closed {here}", f"opened {child}", f"closed {child}"]
        )

    async def test_a_lifespan_that_children_cannot_import_is_refused(
        self, make: Make, pool: Opened
    ) -> None:
        jobs = make(lifespan=pool)
        jobs.registry.add(kinds.registry.find("count"))
        with pytest.raises(ConfigurationError, match="'count' runs in its own"):
            await jobs.open()

    async def test_a_job_fails_if_its_child_process_cannot_open_the_lifespan(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        jobs = make(lifespan=shared_resources.fails_elsewhere)
        jobs.registry.add(kinds.registry.find("count"))
        monkeypatch.setenv("ASYNCJOBS_TEST_PID", str(os.getpid()))
        async with jobs:
            job = await finished(jobs, "count")
        assert job.error is not None
        assert job.error.code == "internal_error"
        assert "no network there" in caplog.text
