"""Dramatiq's workers keep the rules of dispatchers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import pytest
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from asyncjobs import AsyncJobs
from asyncjobs.core.job import Job
from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import DispatcherConformance, WorkerLossConformance
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, release
from asyncjobs.testing.samples import sample_job
from tests.conftest import connected
from tests.engines.apps.chores import add_chores
from tests.engines.apps.dramatiq_options import OPTIONS
from tests.engines.conftest import Launch
from tests.engines.examples import EXAMPLES, follow_report
from tests.engines.fleets import Fleet, FleetWorkers

pytestmark = pytest.mark.anyio

WORKER = ("-m", "dramatiq", "dramatiq_worker")
# By itself a process fetches more than it can run, and an idle one looks each second only.
KINDS = {
    "processes": (("--processes", "2", "--threads", "1"), {"dramatiq_queue_prefetch": "1"}),
    "threads": (("--processes", "1", "--threads", "2"), {"dramatiq_queue_prefetch": "2"}),
}
EAGER = {"dramatiq_worker_timeout": "20", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module", params=KINDS)
def fleet(launch: Launch, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    options, environment = KINDS[request.param]
    with launch(*WORKER, *options, **environment, **EAGER) as started:
        yield started


def redis_broker(url: str) -> Broker:
    return cast("Broker", cast("Any", RedisBroker)(url=url))


@pytest.fixture
def dispatcher(broker: str) -> DramatiqDispatcher:
    return DramatiqDispatcher(redis_broker(broker), options=OPTIONS)


class TestDramatiq(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(
        self, fleet: Fleet, shared_store: str, dispatcher: DramatiqDispatcher
    ) -> FleetWorkers:
        return FleetWorkers(shared_store, dispatcher, fleet)

    async def test_limits_of_dramatiq_end_no_job(self, workers: FleetWorkers, broker: str) -> None:
        async with workers.opened() as jobs:
            add_chores(jobs)
            done = await ended(jobs, (await jobs.enqueue("last", 0.5)).job, workers)
            with connected(broker) as client:
                await until(partial(gone, client, done), workers.patience)
                assert not client.exists("dramatiq:default.XQ.msgs")
        assert (done.error, done.attempt) == (None, 1)

    async def test_a_queue_that_options_name_is_served(self, workers: FleetWorkers) -> None:
        async with workers.opened() as jobs:
            add_chores(jobs)
            assert (await ended(jobs, (await jobs.enqueue("where", None)).job, workers)).result

    async def test_dramatiq_keeps_nothing_of_a_job_that_has_ended(
        self, workers: FleetWorkers, broker: str, tmp_path: Path
    ) -> None:
        async with workers.opened() as jobs:
            pairs = (("echo", 1), ("refuse", tmp_path / "job"))
            done = [await ended(jobs, (await jobs.enqueue(*pair)).job, workers) for pair in pairs]
            with connected(broker) as client:
                for job in done:
                    await until(partial(gone, client, job), workers.patience)
                # A result is kept by a digest of whose it is.
                assert not [key for key in client.keys("*") if re.fullmatch("[0-9a-f]{32}", key)]
                assert not client.exists("dramatiq:default.XQ.msgs")


# a process that the other tests do not see


async def test_a_worker_that_is_told_to_stop_lets_a_job_end(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with launch(*WORKER, "--processes", "1", **EAGER, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            stopped = in_new_thread(fleet.stop, "stop")
            await until(lambda: "Shutting down" in fleet.log.read_text(), workers.patience)
            release(path)
            assert await stopped.result() == 0
            done = await ended(jobs, job, workers)
        with connected(apart["BROKER"]) as client:
            assert not client.exists("dramatiq:default.XQ.msgs")
    assert (done.result, done.losses) == (1, 0)


async def test_a_job_that_outlasts_its_worker_is_given_back(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    short = ("--processes", "1", "--worker-shutdown-timeout", "100")
    with launch(*WORKER, *short, **EAGER, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            await in_new_thread(fleet.stop, "stop").result()
            fleet.start()
            await until(lambda: began(path) == 2, workers.patience)
            release(path)
            done = await ended(jobs, job, workers)
    assert (done.result, done.losses) == (2, 0)


async def test_what_is_more_urgent_runs_first(
    launch: Launch, apart: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "job"
    alone = ("--processes", "1", "--threads", "1")
    with launch(*WORKER, *alone, dramatiq_queue_prefetch="9", **EAGER, **apart) as fleet:
        workers = workers_apart(apart, fleet)
        async with workers.opened() as jobs:
            held = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            waiting: list[Job] = []
            # One that is fetched after others finds them where the next one is chosen.
            for name in ("echo", "steps", "echo"):
                waiting.append((await jobs.enqueue(name, 1)).job)
                await until(partial(fetched, apart["BROKER"], waiting[-1]), workers.patience)
            release(path)
            late, early, _, _ = [await ended(jobs, job, workers) for job in (*waiting, held)]
    assert str(early.started_at) < str(late.started_at)


def gone(client: Any, job: Job) -> bool:
    return not any(job.id in message for message in client.hvals("dramatiq:default.msgs"))


def workers_apart(apart: Mapping[str, str], fleet: Fleet) -> FleetWorkers:
    dispatcher = DramatiqDispatcher(redis_broker(apart["BROKER"]), options=OPTIONS)
    return FleetWorkers(apart["STORE"], dispatcher, fleet)


def fetched(url: str, job: Job) -> bool:
    with connected(url) as client:
        ids = client.sunion("nothing", *client.keys("dramatiq:__acks__.*.default"))
        messages = client.hgetall("dramatiq:default.msgs")
        return any(job.id in message for number, message in messages.items() if number in ids)


# what is carried


async def test_the_message_is_an_id(dispatcher: DramatiqDispatcher, broker: str) -> None:
    job = sample_job(type="kept")
    await dispatcher.dispatch([job])
    with connected(broker) as client:
        [message] = map(json.loads, client.hvals("dramatiq:kept.msgs"))
    assert (message["actor_name"], message["queue_name"]) == ("asyncjobs.run.5", "kept")
    assert message["kwargs"] == {"namespace": "asyncjobs", "id": job.id, "trace": job.trace_id}
    assert (message["args"], message["options"].keys()) == ([], {"redis_message_id"})


async def test_the_queue_is_that_of_the_policy_unless_options_name_one() -> None:
    broker = StubBroker()
    for queue in ("default", "night", "others"):
        broker.declare_queue(queue)
    dispatcher = DramatiqDispatcher(broker, options=OPTIONS)
    await dispatcher.dispatch(
        [
            sample_job(type="echo"),
            sample_job(type="echo", queue="night"),
            sample_job(type="where", queue="night"),
        ]
    )
    assert [broker.queues[name].qsize() for name in ("default", "night", "others")] == [1, 1, 1]


def test_a_carrier_is_never_tried_again() -> None:
    broker = StubBroker()
    DramatiqDispatcher(broker, options=OPTIONS).carrier(AsyncJobs(MemoryStore()))
    options = [actor.options for actor in cast("Any", broker).actors.values()]
    assert [(one["max_retries"], one["retry_when"]) for one in options] == [(0, None)] * 3


class ThreadsBroker(StubBroker):
    """Keeps something for each thread, as the broker for RabbitMQ keeps its connections."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: set[int] = set()

    @property
    def connection(self) -> int:
        self.kept.add(get_ident())
        return get_ident()

    @connection.deleter
    def connection(self) -> None:
        self.kept.discard(get_ident())

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        assert self.connection
        return cast("Any", super()).enqueue(message, delay=delay)


async def test_no_connection_is_kept_of_a_thread_that_has_ended() -> None:
    broker = ThreadsBroker()
    broker.declare_queue("default")
    await DramatiqDispatcher(broker).dispatch([sample_job(type="echo")])
    assert broker.queues["default"].qsize() == 1
    assert not broker.kept


# the example


def test_the_example_works(launch: Launch, apart: Mapping[str, str]) -> None:
    worker = ("-m", "dramatiq", "--path", EXAMPLES, "--", "dramatiq_app")
    follow_report("dramatiq_app", worker, launch, {**EAGER, **apart})
