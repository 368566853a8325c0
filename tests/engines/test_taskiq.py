"""taskiq's workers keep the rules of dispatchers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from asyncjobs import JobStatus
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher, TaskiqOptions
from asyncjobs.testing import DispatcherConformance, WorkerLossConformance
from asyncjobs.testing.dispatcher_conformance import ended, until
from asyncjobs.testing.dispatcher_handlers import began, release
from asyncjobs.testing.samples import sample_job
from tests.conftest import ask
from tests.engines.conftest import Launch
from tests.engines.examples import EXAMPLES, follow_report
from tests.engines.fleets import Fleet, FleetWorkers

WORKER = ("-m", "taskiq", "worker", "taskiq_worker:broker", "--workers", "1")
SLOTS = ("--max-async-tasks", "2")
BROKERS: Mapping[str, Callable[[str], AsyncBroker]] = {
    "list": ListQueueBroker,
    "stream": RedisStreamBroker,
}


@pytest.fixture(scope="module", params=BROKERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def fleet(launch: Launch, kind: str, broker: str) -> Iterator[Fleet]:
    ask(broker, "DEL", "taskiq")  # a list or a stream, of the other kind before
    with launch(*WORKER, *SLOTS, KIND=kind) as started:
        yield started


@pytest.fixture
def client(kind: str, broker: str) -> AsyncBroker:
    return BROKERS[kind](broker)


@pytest.fixture
def workers(fleet: Fleet, shared_store: str, client: AsyncBroker) -> FleetWorkers:
    return FleetWorkers(shared_store, TaskiqDispatcher(client), fleet)


class TestTaskiq(DispatcherConformance, WorkerLossConformance):
    @pytest.fixture
    def workers(self, fleet: Fleet, shared_store: str, client: AsyncBroker) -> FleetWorkers:
        return FleetWorkers(shared_store, TaskiqDispatcher(client), fleet)


@pytest.mark.anyio
async def test_no_results_of_jobs_are_kept(
    workers: FleetWorkers, client: AsyncBroker, broker: str
) -> None:
    async with workers.opened() as jobs:
        for number in range(10):
            await ended(jobs, (await jobs.enqueue("echo", number)).job, workers)
        plain: AsyncKicker[[], str] = AsyncKicker("plain", client, labels={})
        task = await plain.kiq()
        await until(lambda: bool(ask(broker, "KEYS", "result:*")), workers.patience)
        assert ask(broker, "KEYS", "result:*") == [f"result:{task.task_id}"]
    ask(broker, "DEL", f"result:{task.task_id}")


@pytest.mark.anyio
async def test_a_time_limit_of_all_tasks_does_not_end_a_job(
    workers: FleetWorkers, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    async with workers.opened() as jobs:
        job = (await jobs.enqueue("hold", path)).job
        await until(lambda: began(path) == 1, workers.patience)
        later = EnqueueOptions(run_at=timedelta(seconds=0.4))
        await ended(jobs, (await jobs.enqueue("echo", 1, options=later)).job, workers)
        release(path)
        done = await ended(jobs, job, workers)
    assert (done.status, done.attempt, began(path)) == (JobStatus.COMPLETED, 1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["stream"], indirect=True, scope="module")
async def test_a_message_is_acknowledged_when_its_job_begins(
    workers: FleetWorkers, tmp_path: Path, broker: str
) -> None:
    path = tmp_path / "job"
    async with workers.opened() as jobs:
        job = (await jobs.enqueue("hold", path)).job
        await until(lambda: began(path) == 1, workers.patience)
        assert ask(broker, "XPENDING", "taskiq", "taskiq")["pending"] == 0
        release(path)
        await ended(jobs, job, workers)


# what is sent


class Sent:
    """Reads what was sent to queues that no worker serves."""

    def __init__(self, broker: str) -> None:
        self._broker = broker

    def to(self, queue: str) -> dict[str, Any]:
        [message] = ask(self._broker, "LRANGE", queue, 0, -1)
        ask(self._broker, "DEL", queue)
        read: dict[str, Any] = json.loads(message)
        return read


@pytest.fixture
def sent(broker: str) -> Sent:
    return Sent(broker)


@pytest.mark.anyio
async def test_a_message_carries_namespace_id_and_trace_only(broker: str, sent: Sent) -> None:
    dispatcher = TaskiqDispatcher(ListQueueBroker(broker, queue_name="unserved"), namespace="shop")
    job = sample_job(payload_json=b'"secret"')
    async with dispatcher:
        await dispatcher.dispatch([job])
    message = sent.to("unserved")
    assert message["kwargs"] == {"namespace": "shop", "id": job.id, "trace": job.trace_id}
    assert (message["task_name"], message["args"]) == ("shop.run", [])
    labels = {"retry_on_error": "False", "timeout": "315360000", "ack_type": "when_received"}
    assert message["labels"] == labels


@pytest.mark.anyio
async def test_a_type_names_its_queue_and_its_priority(broker: str, sent: Sent) -> None:
    options = {"mail": TaskiqOptions(queue="mails", priority=7)}
    dispatcher = TaskiqDispatcher(ListQueueBroker(broker), options=options)
    by_option = sample_job(type="mail", queue="urgent")
    by_policy = sample_job(type="report", queue="reports")
    async with dispatcher:
        await dispatcher.dispatch([by_option, by_policy])
    assert sent.to("mails")["labels"]["priority"] == "7"
    assert "priority" not in sent.to("reports")["labels"]


# stopping


@pytest.mark.anyio
@pytest.mark.parametrize("patience", [(), ("--wait-tasks-timeout", "0.1")], ids=["waits", "leaves"])
async def test_a_worker_that_is_told_to_stop_loses_no_job(
    patience: tuple[str, ...], launch: Launch, redis_url: str, tmp_path: Path
) -> None:
    """It waits for those that run, and gives back those for which it does not wait."""
    path = tmp_path / "job"
    # Its own: the other workers of this module may be there still.
    own = {"BROKER": f"{redis_url}/3", "STORE": f"{redis_url}/2?namespace=stopping"}
    with launch(*WORKER, *patience, KIND="list", **own) as fleet:
        workers = FleetWorkers(
            own["STORE"], TaskiqDispatcher(ListQueueBroker(own["BROKER"])), fleet
        )
        async with workers.opened() as jobs:
            job = (await jobs.enqueue("hold", path)).job
            await until(lambda: began(path) == 1, workers.patience)
            stopping = asyncio.create_task(asyncio.to_thread(fleet.stop))
            await until(lambda: "running tasks to complete" in fleet.log.read_text(), 20)
            if not patience:
                release(path)
            await stopping
            left = await jobs.find(job.id)
            await jobs.cancel(job.id)
    expected = JobStatus.PENDING if patience else JobStatus.COMPLETED
    assert (left.status, left.losses) == (expected, 0)


def test_the_example_works(launch: Launch, redis_url: str) -> None:
    worker = (
        "-m",
        "taskiq",
        "worker",
        "--workers",
        "1",
        "--app-dir",
        EXAMPLES,
        "taskiq_app:broker",
    )
    own = {"BROKER": f"{redis_url}/3", "STORE": f"{redis_url}/2?namespace=reports"}
    follow_report("taskiq_app", worker, launch, own)
