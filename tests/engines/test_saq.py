"""SAQ's workers keep the rules of dispatchers."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from saq import Job as SaqJob
from saq import Queue, Status
from saq.job import TERMINAL_STATUSES

from asyncjobs import AsyncJobs, JobStatus
from asyncjobs.dispatchers.saq import SAQDispatcher, SAQOptions
from asyncjobs.errors import ConfigurationError
from asyncjobs.testing import DispatcherConformance, WorkerLossConformance
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, release
from asyncjobs.testing.samples import sample_job
from tests.conftest import PostgresServer, ask
from tests.engines.conftest import Launch
from tests.engines.examples import EXAMPLES, follow_report
from tests.engines.fleets import Fleet, FleetWorkers

WORKER = ("-m", "saq", "saq_worker.settings", "--verbose")


@pytest.fixture(scope="module", params=["redis", "postgres"])
def queue_url(request: pytest.FixtureRequest, broker: str) -> Iterator[str]:
    if request.param == "redis":
        yield broker
        forget(broker)
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = f"saq_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield urlsplit(postgres.url)._replace(path=f"/{name}").geturl()
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def forget(url: str) -> None:
    """Delete what SAQ has written."""
    for key in ask(url, "KEYS", "saq:*"):
        ask(url, "DEL", key)


@pytest.fixture(scope="module")
def fleet(launch: Launch, queue_url: str) -> Iterator[Fleet]:
    with launch(*WORKER, QUEUE=queue_url) as started:
        yield started


class SaqWorkers(FleetWorkers):
    """One whose queue the tests may look into."""

    def __init__(self, store: str, url: str, fleet: Fleet, **options: SAQOptions) -> None:
        self.queue = Queue.from_url(url)
        super().__init__(store, SAQDispatcher(self.queue, options=options), fleet)

    @asynccontextmanager
    async def looking(self) -> AsyncGenerator[AsyncJobs]:
        """Let the application connect the queue, as for work of its own."""
        await self.queue.connect()
        try:
            async with self.opened() as jobs:
                yield jobs
        finally:
            await self.queue.disconnect()


@pytest.fixture
def workers(fleet: Fleet, shared_store: str, queue_url: str) -> SaqWorkers:
    urgent, patient = SAQOptions(priority=1), SAQOptions(priority=2)
    return SaqWorkers(shared_store, queue_url, fleet, steps=urgent, echo=patient)


class TestSaq(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(self, fleet: Fleet, shared_store: str, queue_url: str) -> SaqWorkers:
        return SaqWorkers(shared_store, queue_url, fleet)


@pytest.mark.anyio
async def test_no_results_of_jobs_are_kept(workers: SaqWorkers) -> None:
    async with workers.looking() as jobs:
        for number in range(10):
            await ended(jobs, (await jobs.enqueue("echo", number)).job, workers)
        plain = await workers.queue.enqueue("plain")
        assert plain is not None
        with anyio.fail_after(workers.patience):
            while not plain.completed:  # `until_complete` may miss the end
                await anyio.sleep(0.01)
                await plain.refresh()
        kept = [one.key async for one in workers.queue.iter_jobs(list(TERMINAL_STATUSES))]
        assert kept == [plain.key]


@pytest.mark.anyio
@pytest.mark.parametrize("queue_url", ["redis"], indirect=True, scope="module")
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # SAQ's own
async def test_a_sweep_leaves_running_jobs_alone(
    workers: SaqWorkers, tmp_path: Path, broker: str
) -> None:
    path = tmp_path / "job"
    async with workers.looking() as jobs:
        job = (await jobs.enqueue("hold", path)).job
        await until(lambda: began(path) == 1, workers.patience)
        ask(broker, "DEL", "saq:default:sweep")
        active = {one.key async for one in workers.queue.iter_jobs([Status.ACTIVE])}
        swept = {name.rpartition(":")[2] for name in await workers.queue.sweep(abort=0.1)}
        assert active
        assert not active & swept
        release(path)
        done = await ended(jobs, job, workers)
    assert (done.result, began(path)) == (1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("queue_url", ["postgres"], indirect=True, scope="module")
async def test_what_is_more_urgent_runs_first(workers: SaqWorkers, tmp_path: Path) -> None:
    held = [tmp_path / "one", tmp_path / "other"]
    async with workers.opened() as jobs:
        holding = [(await jobs.enqueue("hold", path)).job for path in held]
        await until(lambda: all(began(path) for path in held), workers.patience)
        patient = (await jobs.enqueue("echo", 1)).job
        urgent = (await jobs.enqueue("steps", 1)).job
        release(held[0])
        later, sooner = [await ended(jobs, job, workers) for job in (patient, urgent)]
        release(held[1])
        for job in holding:
            await ended(jobs, job, workers)
    assert later.started_at is not None
    assert sooner.completed_at is not None
    assert later.started_at >= sooner.completed_at


# what is sent


@pytest.fixture
def unserved(redis_url: str) -> Iterator[str]:
    """Name a database that no worker looks into."""
    url = f"{redis_url}/3"
    yield url
    forget(url)


async def sent_to(queue: Queue) -> list[SaqJob]:
    return [one async for one in queue.iter_jobs([Status.QUEUED])]


@pytest.mark.anyio
async def test_a_message_carries_namespace_id_and_trace_only(unserved: str) -> None:
    queue = Queue.from_url(unserved)
    job = sample_job(payload_json=b'"secret"')
    async with SAQDispatcher(queue, namespace="shop") as dispatcher:
        await dispatcher.dispatch([job])
        [message] = await sent_to(queue)
    assert message.kwargs == {"namespace": "shop", "id": job.id, "trace": job.trace_id}
    assert message.function == "shop.run"
    assert (message.retries, message.ttl, message.heartbeat) == (0, -1, 0)
    # Nothing runs longer than to its deadline; what does is of a worker that was killed.
    assert message.timeout == 25 * 3600


@pytest.mark.anyio
async def test_a_type_names_its_queue(unserved: str) -> None:
    usual, urgent, mails = (
        Queue.from_url(unserved, name=name) for name in ("usual", "urgent", "mails")
    )
    options = {"mail": SAQOptions(queue="mails")}
    jobs = {
        "usual": sample_job(),
        "urgent": sample_job(queue="urgent"),
        "mails": sample_job(type="mail", queue="urgent"),
    }
    async with SAQDispatcher(usual, urgent, mails, options=options) as dispatcher:
        unknown = sample_job(queue="elsewhere")
        with pytest.raises(ConfigurationError, match="elsewhere"):
            await dispatcher.dispatch([unknown, *jobs.values()])
        for queue in (usual, urgent, mails):
            [message] = await sent_to(queue)
            assert message.kwargs is not None
            assert message.kwargs["id"] == jobs[queue.name].id


# the worker


def test_the_settings_of_a_worker_keep_what_the_application_has_in_them() -> None:
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
    # What the application opens is open as long as the jobs are.
    assert both["startup"][0] is hook
    assert both["shutdown"][-1] is hook


@pytest.mark.anyio
async def test_the_queue_is_open_from_a_workers_startup_to_its_shutdown() -> None:
    dispatcher = SAQDispatcher(Queue.from_url("redis://localhost"))
    jobs = AsyncJobs("memory://", dispatcher=dispatcher)
    settings = dispatcher.register_task(jobs)
    [startup], [shutdown] = settings["startup"], settings["shutdown"]
    await startup({})
    assert jobs.is_open
    await shutdown({})
    assert not jobs.is_open


@pytest.mark.anyio
@pytest.mark.parametrize("grace", [None, 2])  # SAQ waits for all of it, whatever runs
async def test_a_worker_that_is_told_to_stop_loses_no_job(
    grace: int | None, launch: Launch, redis_url: str, tmp_path: Path
) -> None:
    """It gives back those that run at once, or what has not ended in its period of grace."""
    path = tmp_path / "job"
    # Its own: the other workers of this module may be there still.
    own = {"QUEUE": f"{redis_url}/3", "STORE": f"{redis_url}/2?namespace=stopping"}
    with launch(*WORKER, **own, **({} if grace is None else {"GRACE": str(grace)})) as fleet:
        workers = SaqWorkers(own["STORE"], own["QUEUE"], fleet)
        async with workers.looking() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            stopping = asyncio.create_task(asyncio.to_thread(fleet.stop))
            await until(lambda: "shutting down" in fleet.log.read_text(), workers.patience)
            if grace is not None:
                release(path)
            await stopping
            left = await jobs.find(job.id)
            await jobs.cancel(job.id)
    expected = JobStatus.PENDING if grace is None else JobStatus.COMPLETED
    assert (left.status, left.losses) == (expected, 0)


def test_the_example_works(launch: Launch, redis_url: str) -> None:
    own = {"BROKER": f"{redis_url}/3", "STORE": f"{redis_url}/2?namespace=reports"}
    found = {**own, "PYTHONPATH": os.pathsep.join([EXAMPLES, os.environ.get("PYTHONPATH", "")])}
    follow_report("saq_app", ("-m", "saq", "saq_app.settings"), launch, found)
