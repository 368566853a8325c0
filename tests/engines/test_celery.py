"""Celery's workers pass the shared tests, and Celery's own features do not affect jobs."""

from __future__ import annotations

import base64
import json
import re
import signal
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
from anyio import to_thread
from celery import Celery
from kombu import Queue

from asyncjobs import AsyncJobs, JobStatus
from asyncjobs.dispatchers.celery import CeleryDispatcher, CeleryOptions
from asyncjobs.dispatchers.engines.push import TEN_YEARS_IN_SECONDS
from asyncjobs.errors import NotDispatched
from asyncjobs.testing import PriorityConformance, sample_job
from asyncjobs.testing.dispatcher_handlers import began
from tests.conftest import ask
from tests.engines.conftest import Launch
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls, WorkerProcesses
from tests.engines.suite import EngineConformance, TimeLimitConformance
from tests.waiting import until, until_sync


class CeleryEngine(Engine):
    worker = (
        *("celery", "-A", "celery_worker:app", "worker", "--loglevel", "INFO"),
        *("--concurrency", "2", "--without-mingle", "--without-gossip", "--without-heartbeat"),
    )
    kinds: ClassVar = {"prefork": ("--pool", "prefork"), "threads": ("--pool", "threads")}
    stopping = "Warm shutdown"
    default_queue = "celery"
    options = CeleryOptions
    # With Redis as the broker a lower number is more urgent; a message without one has 0.
    options_by_type: ClassVar[Mapping[str, object]] = {
        "urgent": CeleryOptions(priority=0),
        "patient": CeleryOptions(priority=9),
    }
    settings: ClassVar[Mapping[str, object]] = {
        "args": [],
        "ignore_result": True,
        "timelimit": [TEN_YEARS_IN_SECONDS] * 2,
    }

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self._apps: list[Celery] = []

    def app(self, broker: str) -> Celery:
        self._apps.append(Celery("tests", broker=broker, backend=broker))
        return self._apps[-1]

    def close(self) -> None:
        for app in self._apps:
            app.close()

    def dispatcher(self, broker: str, **arguments: Any) -> CeleryDispatcher:
        return CeleryDispatcher(self.app(broker), **arguments)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        found: list[Sent] = []
        for text in ask(broker, "LRANGE", queue, 0, -1):
            message = json.loads(text)
            args, kwargs, _callbacks = json.loads(base64.b64decode(message["body"]))
            headers = message["headers"]
            settings = {name: headers[name] for name in ("ignore_result", "timelimit")}
            found.append(Sent(headers["task"], kwargs, {"args": args, **settings}))
        return found

    async def results(self, broker: str) -> set[str]:
        return set(ask(broker, "KEYS", "celery-task-meta-*"))

    async def run_own_task(self, broker: str) -> str:
        return f"celery-task-meta-{self.app(broker).send_task('plain').id}"


ENGINE = CeleryEngine


class TestCelery(EngineConformance, TimeLimitConformance): ...


class TestPrioritiesInRedis(PriorityConformance):
    kinds = ("prefork",)

    @pytest.fixture
    def workers(self, engine: Engine, own_urls: Urls, launch: Launch) -> Iterator[EngineWorkers]:
        # The shared workers prefetch more messages than they run.
        with launch(own_urls, "--disable-prefetch") as processes:
            yield EngineWorkers(engine, own_urls, processes)


@pytest.mark.anyio
async def test_a_type_without_a_priority_has_the_default_of_the_app(
    engine: CeleryEngine, own_urls: Urls
) -> None:
    """On Redis a message without a priority comes before all others."""
    app = engine.app(own_urls.broker)
    app.conf.task_default_priority = 6
    options = {"urgent": CeleryOptions(priority=0)}
    jobs = [sample_job(), sample_job(type="urgent")]
    await CeleryDispatcher(app, options=options).dispatch(jobs)
    queues = {"celery\x06\x166": jobs[0], "celery": jobs[1]}
    for queue, job in queues.items():
        [sent] = await engine.sent(own_urls.broker, queue)
        assert sent.message["id"] == job.id


def test_the_queues_that_running_workers_serve_are_known(
    engine: CeleryEngine, own_urls: Urls, launch: Launch
) -> None:
    dispatcher = engine.dispatcher(own_urls.broker)
    assert dispatcher.served_queues() == frozenset(
        {"celery"}
    )  # the queue that a worker without -Q would serve
    assert "with -Q images" in dispatcher.how_to_serve("thumbnail", "images")
    with launch(own_urls, "-Q", "celery,images") as processes:
        processes.start()
        until_sync(lambda: dispatcher.served_queues() == frozenset({"celery", "images"}))


def test_the_queues_of_the_app_s_configuration_are_served_by_any_worker(
    engine: CeleryEngine, own_urls: Urls
) -> None:
    app = engine.app(own_urls.broker)
    app.conf.task_queues = [Queue("celery"), Queue("images")]
    assert CeleryDispatcher(app).served_queues() == frozenset({"celery", "images"})


def test_the_queues_are_known_while_the_broker_is_unavailable(engine: CeleryEngine) -> None:
    away = CeleryDispatcher(engine.app("redis://127.0.0.1:1/0"))
    assert away.served_queues() == frozenset({"celery"})


def test_a_rate_limit_for_all_tasks_can_be_lifted_for_jobs(
    engine: CeleryEngine, own_urls: Urls
) -> None:
    app = engine.app(own_urls.broker)
    app.conf.task_annotations = {"*": {"rate_limit": "1/h"}}
    dispatcher = CeleryDispatcher(app)
    task = dispatcher.register_task(AsyncJobs("memory://", dispatcher=dispatcher))
    assert app.tasks[dispatcher.task_name].rate_limit == "1/h"
    task.rate_limit = None
    assert app.tasks[dispatcher.task_name].rate_limit is None


@pytest.mark.anyio
class TestPrefork:
    kinds = ("prefork",)

    async def test_a_job_is_released_if_all_processes_get_sigterm(
        self, engine: Engine, own_urls: Urls, launch: Launch, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        with launch(own_urls) as processes:
            workers = EngineWorkers(engine, own_urls, processes)
            async with workers.opened() as jobs:
                handle = await jobs.enqueue("hold", path)
                await until(lambda: began(path) == 1)
                await to_thread.run_sync(processes.signal_all, signal.SIGTERM)
                found = await jobs.find(handle.id)
                assert (found.status, found.losses, found.releases) == (JobStatus.PENDING, 0, 1)

    @pytest.mark.parametrize("arguments", [(), ("--max-tasks-per-child", "1")])
    async def test_each_process_exports_its_metrics_and_spans(
        self, engine: Engine, own_urls: Urls, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        spans = tmp_path / "spans"
        command = ["celery", "-A", "celery_traced:app", "worker", "--concurrency", "1", *arguments]
        with WorkerProcesses(
            command,
            tmp_path / "log",
            BROKER=own_urls.broker,
            STORE=own_urls.store,
            SPANS=str(spans),
        ) as processes:
            workers = EngineWorkers(engine, own_urls, processes)
            async with workers.opened() as jobs:
                made = [await jobs.enqueue("echo", number) for number in range(3)]
                for job in made:
                    await job.wait()
            if not arguments:
                await until(lambda: completed(tmp_path / "port-0") == 3)
            await to_thread.run_sync(processes.stop)
        assert spans.read_text().count('"name": "process echo"') == 3


def completed(port: Path) -> float:
    """Return how many jobs have completed, by the metrics page of a process."""
    with urlopen(f"http://127.0.0.1:{port.read_text()}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    ended = [line for line in lines if re.match(r"asyncjobs_jobs_ended_total\{.*completed", line)]
    return sum(float(line.rpartition(" ")[2]) for line in ended)


@pytest.mark.anyio
async def test_options_set_the_priority_of_a_type(engine: CeleryEngine, own_urls: Urls) -> None:
    options = {"urgent": CeleryOptions(queue="mails", priority=3)}
    await engine.dispatcher(own_urls.broker, options=options).dispatch([sample_job(type="urgent")])
    # The Redis transport has one list for each of its priority steps.
    [message] = ask(own_urls.broker, "LRANGE", "mails\x06\x163", 0, -1)
    assert json.loads(message)["properties"]["priority"] == 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    "broker",
    [
        "redis://:Zq7x/xXyYz@127.0.0.1:1/0",
        "redis://:8246/xXyYz@127.0.0.1:1/0",
        "redis://:Zq7x#xXyYz@127.0.0.1:1/0",
        "amqp://ann:Zq7x?xXyYz@127.0.0.1:1//",
    ],
)
async def test_no_part_of_the_brokers_password_is_shown(engine: CeleryEngine, broker: str) -> None:
    with pytest.raises(NotDispatched) as caught:
        await engine.dispatcher(broker).dispatch([sample_job()])
    shown = "".join(traceback.format_exception(caught.value, limit=0))
    assert "Celery's broker cannot be parsed" in shown
    assert not any(part in shown for part in ("Zq7x", "xXyYz", "8246"))
