"""Celery's workers keep the rules of dispatchers, and Celery keeps out of the jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from celery import Celery

from asyncjobs import AsyncJobs, JobStatus
from asyncjobs.dispatchers.celery import CeleryDispatcher, CeleryOptions
from asyncjobs.testing import (
    BRISK,
    DispatcherConformance,
    PriorityConformance,
    WorkerLossConformance,
)
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, register, release
from asyncjobs.testing.samples import sample_job
from tests.conftest import ask
from tests.engines.conftest import Launch
from tests.engines.fleets import Fleet, FleetWorkers

WORKER = ("-m", "celery", "-A", "celery_worker:app", "worker", "--loglevel", "INFO")
LONELY = ("--without-mingle", "--without-gossip", "--without-heartbeat")

Start = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture(scope="module")
def start(launch: Launch) -> Start:
    def started(pool: str = "prefork", **environment: str) -> AbstractContextManager[Fleet]:
        return launch(*WORKER, "--pool", pool, "--concurrency", "2", *LONELY, **environment)

    return started


@pytest.fixture
def app(broker: str) -> Iterator[Celery]:
    """Make the app of a process that only submits."""
    with Celery("tests", broker=broker) as made:
        yield made


@pytest.fixture(scope="class", params=["prefork", "threads"])
def fleet(start: Start, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with start(request.param) as started:
        yield started


class TestCelery(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(self, fleet: Fleet, shared_store: str, app: Celery) -> FleetWorkers:
        return FleetWorkers(shared_store, CeleryDispatcher(app), fleet)


# With Redis as the broker a lower number is more urgent, and a message without one has 0.
OPTIONS = {"urgent": CeleryOptions(priority=0), "patient": CeleryOptions(priority=9)}


class TestPrioritiesInRedis(PriorityConformance):
    @pytest.fixture
    def workers(self, launch: Launch, redis_url: str) -> Iterator[FleetWorkers]:
        # Not those of the other workers, which fetch more than they run, to have it at hand.
        store, broker = f"{redis_url}/5", f"{redis_url}/6"
        orderly = (*WORKER, "--concurrency", "2", *LONELY, "--disable-prefetch")
        with (
            launch(*orderly, BROKER=broker, STORE=store) as fleet,
            Celery("tests", broker=broker) as app,
        ):
            yield FleetWorkers(store, CeleryDispatcher(app, options=OPTIONS), fleet)


# what is carried


def messages(broker: str, queue: str) -> list[dict[str, Any]]:
    """Read what waits in one of Celery's queues."""
    return [json.loads(one) for one in ask(broker, "LRANGE", queue, 0, -1)]


@pytest.mark.anyio
async def test_a_message_carries_a_job_id_and_nothing_else_of_the_job(
    app: Celery, broker: str
) -> None:
    job = sample_job(queue="nobody's", payload_json=b'"secret"', user_id="ada")
    await CeleryDispatcher(app).dispatch([job])
    [message] = messages(broker, "nobody's")
    args, kwargs, _callbacks = json.loads(base64.b64decode(message["body"]))
    assert args == []
    assert kwargs == {"namespace": "asyncjobs", "id": job.id, "trace": job.trace_id}
    assert message["headers"]["task"] == "asyncjobs.run"
    assert message["headers"]["ignore_result"] is True


@pytest.mark.anyio
async def test_options_name_queue_and_priority_of_a_type(app: Celery, broker: str) -> None:
    options = {"urgent": CeleryOptions(queue="of the options", priority=3)}
    dispatcher = CeleryDispatcher(app, namespace="shop", options=options)
    await dispatcher.dispatch([sample_job(type="urgent"), sample_job(queue="of the type")])
    # The broker's emulation of priorities keeps a list for each of its steps.
    [chosen] = messages(broker, "of the options\x06\x163")
    [other] = messages(broker, "of the type")
    assert chosen["properties"]["priority"] == 3
    assert {chosen["headers"]["task"], other["headers"]["task"]} == {"shop.run"}


# what of Celery is off


@pytest.mark.anyio
async def test_limits_and_results_of_the_app_do_not_touch_jobs(
    start: Start, app: Celery, broker: str, shared_store: str, tmp_path: Path
) -> None:
    with start() as fleet:
        workers = FleetWorkers(shared_store, CeleryDispatcher(app), fleet)
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) > 0, workers.patience)
            # A task of Celery's own that begins after the job is stopped by the app's limit.
            await to_thread.run_sync(app.send_task, "tests.too_long")
            await until(lambda: "Hard time limit (1s) exceeded" in fleet.log.read_text(), 60)
            release(path)
            assert (await ended(jobs, job, workers)).attempt == 1
            refused = await ended(
                jobs, (await jobs.enqueue("refuse", tmp_path / "no")).job, workers
            )
            assert refused.status is JobStatus.FAILED
        [kept] = ask(broker, "KEYS", "celery-task-meta-*")  # that of the task which was stopped
        assert "TimeLimitExceeded" in ask(broker, "GET", kept)


# ends


@pytest.mark.anyio
@pytest.mark.parametrize("pool", ["prefork", "threads"])
async def test_a_worker_that_is_told_to_stop_finishes_the_job_it_has_begun(
    start: Start, redis_url: str, shared_store: str, tmp_path: Path, pool: str
) -> None:
    own, path = f"{redis_url}/3", tmp_path / "job"
    with start(pool, BROKER=own) as fleet, Celery("tests", broker=own) as app:
        workers = FleetWorkers(shared_store, CeleryDispatcher(app), fleet)
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) > 0, workers.patience)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, partial(fleet.stop, 60))
                await until(lambda: "Warm shutdown" in fleet.log.read_text(), 60)
                release(path)
            done = await jobs.find(job.id)
            assert (done.status, done.attempt, done.losses) == (JobStatus.COMPLETED, 1, 0)


# a broker that is away


@pytest.mark.anyio
async def test_jobs_that_are_submitted_while_the_broker_is_away_run_when_it_is_back(
    start: Start, serve: Callable[[], Any], shared_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broker = await to_thread.run_sync(serve)
    await to_thread.run_sync(broker.kill)
    with Celery("tests", broker=broker.url) as app:
        jobs = AsyncJobs(shared_store, dispatcher=CeleryDispatcher(app), settings=BRISK)
        register(jobs)
        async with jobs:
            made = [(await jobs.enqueue("echo", number)).job for number in range(5)]
            assert caplog.text.count("could not be dispatched") == 1
            await to_thread.run_sync(broker.start)
            with start(BROKER=broker.url) as fleet:
                fleet.start()
                wait = partial(jobs.wait, timeout=60)
                assert [(await wait(job.id)).result for job in made] == list(range(5))
    assert caplog.text.count("can be dispatched again") == 1
