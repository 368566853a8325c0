"""SAQ's workers pass the shared tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from saq import Queue, Status
from saq.job import TERMINAL_STATUSES

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.saq import SAQDispatcher, SAQOptions
from asyncjobs.errors import NotDispatched
from asyncjobs.testing import PriorityConformance, sample_job
from asyncjobs.testing.dispatcher_handlers import began, release
from tests.conftest import ask
from tests.engines.conftest import emptied
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls, postgres_database
from tests.engines.suite import (
    AsyncClientConformance,
    EngineConformance,
    GiveBackConformance,
    OnWorkers,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(url: str, name: str = "default") -> AsyncGenerator[Queue]:
    queue = Queue.from_url(url, name=name)
    await queue.connect()
    try:
        yield queue
    finally:
        await queue.disconnect()


class SAQ(Engine):
    worker = ("saq", "saq_worker.settings", "--verbose")
    kinds: ClassVar = {"redis": (), "postgres": ()}
    stopping = "shutting down"
    options = SAQOptions
    options_by_type: ClassVar[Mapping[str, object]] = {
        "urgent": SAQOptions(priority=1),
        "patient": SAQOptions(priority=2),
    }
    # Nothing runs past its deadline, except in a worker that was killed.
    settings: ClassVar[Mapping[str, object]] = {
        "retries": 0,
        "ttl": -1,
        "heartbeat": 0,
        "timeout": 25 * 3600,
    }

    def dispatcher(self, broker: str, **arguments: Any) -> SAQDispatcher:
        queues = [Queue.from_url(broker, name=name) for name in ("default", "policy", "options")]
        return SAQDispatcher(*queues, **arguments)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        async with connected(broker, queue) as connection:
            found = [one async for one in connection.iter_jobs([Status.QUEUED])]
        return [
            Sent(
                one.function,
                one.kwargs or {},
                {name: getattr(one, name) for name in self.settings},
            )
            for one in found
        ]

    async def results(self, broker: str) -> set[str]:
        async with connected(broker) as queue:
            return {one.key async for one in queue.iter_jobs(list(TERMINAL_STATUSES))}

    async def run_own_task(self, broker: str) -> str:
        async with connected(broker) as queue:
            task = await queue.enqueue("plain")
        assert task is not None
        return task.key


ENGINE = SAQ


@pytest.fixture(scope="module")
def urls(request: pytest.FixtureRequest, redis_url: str, kind: str) -> Iterator[Urls]:
    with ExitStack() as stack:
        yield urls_of(kind, redis_url, request, stack, 1)


@pytest.fixture
def own_urls(request: pytest.FixtureRequest, redis_url: str, kind: str) -> Iterator[Urls]:
    with ExitStack() as stack:
        yield urls_of(kind, redis_url, request, stack, 3)


def urls_of(
    kind: str, redis_url: str, request: pytest.FixtureRequest, stack: ExitStack, number: int
) -> Urls:
    urls = emptied(Urls(f"{redis_url}/{number}", f"{redis_url}/{number + 1}"))
    if kind == "redis":
        return urls
    database = postgres_database(request.getfixturevalue("postgres"))
    return Urls(stack.enter_context(database), urls.store)


class TestSAQ(EngineConformance, GiveBackConformance): ...


class TestPriorities(OnWorkers, PriorityConformance):
    kinds = ("postgres",)


class TestRedis(OnWorkers, AsyncClientConformance):
    kinds = ("redis",)

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # SAQ's own
    async def test_a_sweep_leaves_running_jobs_alone(
        self, workers: EngineWorkers, tmp_path: Path, urls: Urls
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs, connected(urls.broker) as queue:
            handle = await jobs.enqueue("hold", path)
            await until(lambda: began(path) == 1)
            ask(urls.broker, "DEL", "saq:default:sweep")
            active = {one.key async for one in queue.iter_jobs([Status.ACTIVE])}
            swept = {name.rpartition(":")[2] for name in await queue.sweep(abort=0.1)}
            assert active
            assert not active & swept
            release(path)
            done = await handle.wait()
        assert (done.result, began(path)) == (1, 1)

    async def test_an_unknown_queue_does_not_affect_other_jobs(
        self, engine: Engine, own_urls: Urls
    ) -> None:
        job = sample_job()
        async with engine.dispatcher(own_urls.broker) as dispatcher:
            with pytest.raises(NotDispatched, match="elsewhere"):
                await dispatcher.dispatch([sample_job(queue="elsewhere"), job])
        [sent] = await engine.sent(own_urls.broker, "default")
        assert sent.message["id"] == job.id


def test_worker_settings_keep_the_applications_own_settings() -> None:
    queue, own = Queue.from_url("redis://localhost"), Queue.from_url("redis://localhost")

    async def hook(_context: object) -> None: ...

    dispatcher = SAQDispatcher(queue)
    jobs = AsyncJobs("memory://", dispatcher=dispatcher)
    alone = dispatcher.register_task(jobs)
    assert alone["queue"] is queue
    assert [name for name, _ in alone["functions"]] == ["asyncjobs.run"]
    given = {"queue": own, "functions": [hook], "startup": hook, "shutdown": [hook], "burst": True}
    both = dispatcher.register_task(jobs, given)
    assert (both["queue"], both["burst"], both["functions"][0]) == (own, True, hook)
    # The application's own resources are open while the jobs are.
    assert both["startup"][0] is hook
    assert both["shutdown"][-1] is hook


async def test_the_queue_is_open_from_worker_startup_to_shutdown() -> None:
    dispatcher = SAQDispatcher(Queue.from_url("redis://localhost"))
    jobs = AsyncJobs("memory://", dispatcher=dispatcher)
    settings = dispatcher.register_task(jobs)
    [startup], [shutdown] = settings["startup"], settings["shutdown"]
    await startup({})
    assert jobs.is_open
    await shutdown({})
    assert not jobs.is_open
