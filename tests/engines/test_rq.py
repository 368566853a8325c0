"""RQ's workers keep the rules of dispatchers."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.job import Job as RQJob

from asyncjobs import AsyncJobs
from asyncjobs.core.job import Job
from asyncjobs.dispatchers.rq import RQDispatcher, RQOptions
from asyncjobs.errors import ConfigurationError
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import DispatcherConformance, WorkerLossConformance
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, release
from asyncjobs.testing.samples import sample_job
from tests.engines.apps.chores import TOLD, add_chores
from tests.engines.conftest import Launch
from tests.engines.examples import EXAMPLES, follow_report
from tests.engines.fleets import Fleet, FleetWorkers

pytestmark = pytest.mark.anyio

ROOT = str(Path(__file__).parents[2])
CARRIER = "rq_worker.run_job"
KINDS = {
    "simple": ("worker", "--worker-class", "rq.worker.SimpleWorker"),
    "forking": ("worker-pool", "--num-workers", "2"),
    "alone": ("worker",),
    "spawning": ("worker", "--worker-class", "rq.worker.SpawnWorker"),
}
OPTIONS = {
    "steps": RQOptions(queue="urgent"),
    "where": RQOptions(at_front=True),
    "kept": RQOptions(queue="kept"),
    "kept in front": RQOptions(queue="kept", at_front=True),
    "refused": RQOptions(queue="refused"),
}


def command(kind: str, broker: str) -> tuple[str, ...]:
    # The app is imported once by the worker, not by each process that it forks.
    app = ("--config", "rq_worker")
    return ("-m", "rq.cli", *KINDS[kind], *app, "--url", broker, "urgent", "default")


@pytest.fixture(scope="module", params=["simple", "forking"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def fleet(launch: Launch, broker: str, kind: str) -> Iterator[Fleet]:
    with launch(*command(kind, broker), PYTHONPATH=ROOT) as started:
        yield started


def client(url: str) -> Any:
    return cast("Any", Redis).from_url(url)


def queue(connection: Redis, name: str = "default") -> Any:
    return Queue(name, connection)


def carried(connection: Redis, job: Job, serializer: str | None = None) -> Any:
    return cast("Any", RQJob).fetch(f"{job.id}-0", connection, serializer)


def gone(connection: Redis, id: str) -> bool:
    return not RQJob.exists(id, connection)


@pytest.fixture
def connection(broker: str) -> Iterator[Redis]:
    with client(broker) as connection:
        yield connection


@pytest.fixture
def dispatcher(connection: Redis) -> RQDispatcher:
    return RQDispatcher(connection, CARRIER, options=OPTIONS)


class RQWorkers(FleetWorkers):
    """Has one worker, or two that fork a process for each job."""

    def __init__(self, store: str, dispatcher: RQDispatcher, fleet: Fleet, kind: str) -> None:
        super().__init__(store, dispatcher, fleet)
        if kind == "forking":
            self.many, self.some = 10, 3
        else:
            self.slots = 1


class TestRQ(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(
        self, fleet: Fleet, shared_store: str, dispatcher: RQDispatcher, kind: str
    ) -> RQWorkers:
        return RQWorkers(shared_store, dispatcher, fleet, kind)

    async def test_the_queue_stays_open_in_a_worker_that_forks_none(
        self, workers: RQWorkers, kind: str
    ) -> None:
        async with workers.opened() as jobs:
            add_chores(jobs)
            done = [
                await ended(jobs, (await jobs.enqueue("where", None)).job, workers)
                for _ in range(3)
            ]
        places = {str(job.result) for job in done}
        assert len(places) == (1 if kind == "simple" else 3)

    async def test_hooks_are_told_before_a_process_is_left(
        self, workers: RQWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "path"
        async with workers.opened() as jobs:
            add_chores(jobs)
            await jobs.enqueue(TOLD, str(path))
            await until(path.exists, workers.patience)

    async def test_rq_keeps_nothing_of_a_job_that_has_ended(
        self, workers: RQWorkers, connection: Redis, tmp_path: Path
    ) -> None:
        default = queue(connection)
        listed = (default.finished_job_registry, default.failed_job_registry)
        async with workers.opened() as jobs:
            for name, payload in (("echo", 1), ("refuse", tmp_path / "job")):
                job = await ended(jobs, (await jobs.enqueue(name, payload)).job, workers)
                await until(partial(gone, connection, f"{job.id}-0"), workers.patience)
                assert not any(f"{job.id}-0" in registry for registry in listed)

    async def test_what_is_none_of_ours_is_dropped(
        self, workers: RQWorkers, connection: Redis
    ) -> None:
        message = {"namespace": "another", "id": "job_1", "trace": ""}
        async with workers.opened():
            queue(connection).enqueue(CARRIER, kwargs=message, job_id="another", result_ttl=0)
            await until(partial(gone, connection, "another"), workers.patience)

    async def test_a_worker_that_is_told_to_stop_lets_a_job_end(
        self, workers: RQWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            stopped = in_new_thread(workers.fleet.stop, "stop")
            release(path)
            assert await stopped.result() == 0
            done = await ended(jobs, job, workers)
        assert (done.result, done.losses) == (1, 0)


# workers that make a process for each job


def workers_apart(apart: Mapping[str, str], fleet: Fleet) -> RQWorkers:
    dispatcher = RQDispatcher(client(apart["BROKER"]), CARRIER, options=OPTIONS)
    return RQWorkers(apart["STORE"], dispatcher, fleet, "forking")


async def test_a_job_is_given_back_when_its_process_is_told_to_stop(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with launch(*command("alone", apart["BROKER"]), PYTHONPATH=ROOT, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            await anyio.to_thread.run_sync(fleet.tell_all, signal.SIGTERM)
            fleet.start()
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            done = await ended(jobs, job, workers)
    assert (done.result, done.losses) == (2, 0)


async def test_a_process_that_is_not_a_copy_of_its_worker_runs_a_job(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with launch(*command("spawning", apart["BROKER"]), PYTHONPATH=ROOT, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            add_chores(jobs)
            await jobs.enqueue(TOLD, str(path))
            await until(path.exists, workers.patience)


# what is carried, and when


async def test_what_is_more_urgent_runs_first(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with launch(*command("simple", apart["BROKER"]), PYTHONPATH=ROOT, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            add_chores(jobs)
            waiting = [(await jobs.enqueue("hold", path)).job]
            await until(lambda: began(path) == 1, workers.patience)
            waiting += [
                (await jobs.enqueue("echo", 1)).job,
                (await jobs.enqueue("where", None)).job,
                (await jobs.enqueue("steps", 1)).job,
            ]
            release(path)
            done = [await ended(jobs, job, workers) for job in waiting]
    begun = [job.type for job in sorted(done, key=lambda job: str(job.started_at))]
    assert begun == ["hold", "steps", "where", "echo"]


async def test_the_message_is_an_id_and_rq_is_left_no_say(
    dispatcher: RQDispatcher, connection: Redis
) -> None:
    job = sample_job(type="kept")
    await dispatcher.dispatch([job])
    task = carried(connection, job)
    assert (task.func_name, task.args) == (CARRIER, ())
    assert task.kwargs == {"namespace": "asyncjobs", "id": job.id, "trace": job.trace_id}
    assert (task.timeout, task.result_ttl, task.ttl, task.retries_left) == (-1, 0, None, None)


async def test_a_serializer_may_be_chosen(connection: Redis) -> None:
    job = sample_job(type="kept")
    name = "rq.serializers.JSONSerializer"
    await RQDispatcher(connection, CARRIER, options=OPTIONS, serializer=name).dispatch([job])
    assert carried(connection, job, name).kwargs["id"] == job.id


async def test_a_batch_is_told_in_its_order_but_for_what_goes_in_front(
    dispatcher: RQDispatcher, connection: Redis
) -> None:
    queue(connection, "kept").empty()
    batch = [sample_job(type=name) for name in ("kept", "kept in front", "kept")]
    await dispatcher.dispatch([*batch, batch[0]])
    assert queue(connection, "kept").get_job_ids() == [
        f"{batch[number].id}-0" for number in (1, 0, 2)
    ]


async def test_a_queue_that_cannot_be_told_keeps_no_other_from_it(
    dispatcher: RQDispatcher, connection: Redis
) -> None:
    connection.set(queue(connection, "refused").key, "no list")
    job = sample_job(type="kept")
    with pytest.raises(ResponseError):
        await dispatcher.dispatch([sample_job(type="refused"), job])
    assert not gone(connection, f"{job.id}-0")


# the carrier's name


def opened(name: str, *, made_here: bool = True) -> AsyncJobs:
    dispatcher = RQDispatcher(Redis(), name)
    jobs = AsyncJobs(MemoryStore(), dispatcher=dispatcher)
    if made_here:
        module = types.ModuleType("module_of_a_carrier")
        vars(module)["carry"] = dispatcher.register_task(jobs)
        vars(module)["other"] = print
        sys.modules[module.__name__] = module
    return jobs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("carry", "app.jobs.carry"),
        ("__main__.carry", "app.jobs.carry"),
        ("module_of_a_carrier.missing", "missing in module_of_a_carrier"),
        ("module_of_a_carrier.other", "missing in module_of_a_carrier"),
        ("no_such_module.carry", "no module no_such_module"),
        ("no_such_package.module.carry", "no module no_such_package.module"),
    ],
)
async def test_a_carrier_that_workers_would_not_find_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        async with opened(name):
            pass


@pytest.mark.parametrize("made_here", [True, False])
async def test_a_carrier_that_workers_find_is_not(*, made_here: bool) -> None:
    async with opened("module_of_a_carrier.carry", made_here=made_here):
        pass


async def test_a_process_without_the_carrier_leaves_its_name_to_others() -> None:
    async with opened("no_such_module.carry", made_here=False):
        pass


# the example


def test_the_example_works(launch: Launch, apart: Mapping[str, str]) -> None:
    worker = ("--path", EXAMPLES, "--config", "rq_app", "--worker-class", "rq.worker.SimpleWorker")
    found = {**apart, "PYTHONPATH": os.pathsep.join([EXAMPLES, ROOT])}
    follow_report("rq_app", ("-m", "rq.cli", "worker", *worker), launch, found)
