"""RQ's workers pass the shared tests."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job as RQJob

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.rq import RQDispatcher, RQOptions
from asyncjobs.errors import ConfigurationError, NotDispatched
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import PriorityConformance, sample_job
from tests.conftest import ask
from tests.engines.apps.handlers import register_more
from tests.engines.conftest import Launch
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls, WorkerProcesses
from tests.engines.suite import EngineConformance, GiveBackConformance, OnWorkers
from tests.waiting import until, until_sync

pytestmark = pytest.mark.anyio

TASK = "rq_worker.run_job"
# With `--config` the worker imports the app once, instead of each process that it forks.
APP = ("--config", "rq_worker", "urgent", "default")


def connect(url: str) -> Any:
    return cast("Any", Redis).from_url(url)


def queue_of(url: str, name: str) -> Any:
    return Queue(name, connect(url))


def failed_as_duplicate(broker: str, key: str) -> bool:
    """Return whether RQ failed a message that was sent twice and ended in two workers at once."""
    [job] = cast("Any", RQJob).fetch_many([key.removeprefix("rq:job:")], connect(broker))
    result = job and job.latest_result()
    return bool(result) and "InvalidJobOperation" in (result.exc_string or "")


class RQEngine(Engine):
    worker = ("rq.cli",)
    kinds: ClassVar = {
        "simple": ("worker", *APP, "--worker-class", "rq.worker.SimpleWorker"),
        "pool": ("worker-pool", *APP, "--num-workers", "2"),
    }
    more_kinds: ClassVar = {
        "forking": ("worker", *APP),
        "spawning": ("worker", *APP, "--worker-class", "rq.worker.SpawnWorker"),
    }
    stopping = "warm shut down requested"
    options = RQOptions
    options_by_type: ClassVar[Mapping[str, object]] = {"urgent": RQOptions(queue="urgent")}
    settings: ClassVar[Mapping[str, object]] = {
        "args": (),
        "timeout": -1,
        "result_ttl": 1,
        "ttl": None,
        "retries_left": None,
    }

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        if kind == "pool":
            self.many, self.some = 10, 3
        else:
            self.slots = 1

    def dispatcher(self, broker: str, **arguments: Any) -> RQDispatcher:
        return RQDispatcher(connect(broker), TASK, **arguments)

    def task_name(self, namespace: str) -> str:
        del namespace
        return TASK

    def stop(self, processes: WorkerProcesses) -> None:
        processes.signal_all(signal.SIGTERM)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        found = cast("list[Any]", queue_of(broker, queue).get_jobs())
        return [
            Sent(one.func_name, one.kwargs, {name: getattr(one, name) for name in self.settings})
            for one in found
        ]

    async def results(self, broker: str) -> set[str]:
        """Return the keys of all messages; RQ deletes those that did not fail."""
        keys: set[str] = set(ask(broker, "KEYS", "rq:job:*"))
        return {key for key in keys if not failed_as_duplicate(broker, key)}

    async def run_own_task(self, broker: str) -> str:
        return f"rq:job:{queue_of(broker, 'default').enqueue('rq_worker.plain').id}"


ENGINE = RQEngine


class TestRQ(EngineConformance):
    async def test_a_simple_worker_keeps_the_queue_open(
        self, workers: EngineWorkers, kind: str
    ) -> None:
        async with workers.opened() as jobs:
            register_more(jobs)
            places = {
                str(await (await jobs.enqueue("process_and_loop", None)).result()) for _ in range(3)
            }
        assert len(places) == (1 if kind == "simple" else 3)

    async def test_a_message_of_another_namespace_is_dropped(
        self, workers: EngineWorkers, urls: Urls
    ) -> None:
        message = {"namespace": "another", "id": "job_1"}
        default = queue_of(urls.broker, "default")
        async with workers.opened():
            default.enqueue(TASK, kwargs=message, job_id="another", result_ttl=0)
            await until(lambda: not RQJob.exists("another", default.connection))


class TestPriorities(OnWorkers, PriorityConformance): ...


class TestProcessesPerJob(OnWorkers):
    kinds = ("pool", "spawning")

    async def test_hooks_end_before_the_process_of_their_job(
        self, workers: EngineWorkers, tmp_path: Path
    ) -> None:
        path = tmp_path / "path"
        async with workers.opened() as jobs:
            register_more(jobs)
            await jobs.enqueue("touched_by_hook", str(path))
            await until(path.exists)


class TestGiveBack(GiveBackConformance):
    kinds = ("forking",)


# sent messages


async def test_a_serializer_may_be_chosen(own_urls: Urls) -> None:
    job, name = sample_job(), "rq.serializers.JSONSerializer"
    connection = connect(own_urls.broker)
    await RQDispatcher(connection, TASK, serializer=name).dispatch([job])
    message = cast("Any", RQJob).fetch(f"{job.id}-0", connection, name)
    assert message.kwargs["id"] == job.id


async def test_a_batch_is_sent_in_order_except_for_jobs_at_the_front(
    engine: Engine, own_urls: Urls
) -> None:
    options = {"first": RQOptions(at_front=True)}
    batch = [sample_job(type=name) for name in ("plain", "first", "plain")]
    dispatcher = engine.dispatcher(own_urls.broker, options=options)
    await dispatcher.dispatch([*batch, batch[0]])
    assert queue_of(own_urls.broker, "default").get_job_ids() == [
        f"{batch[number].id}-0" for number in (1, 0, 2)
    ]


async def test_an_error_of_one_queue_does_not_affect_another(
    engine: Engine, own_urls: Urls
) -> None:
    ask(own_urls.broker, "SET", "rq:queue:broken", "not a list")
    job = sample_job()
    broken = sample_job(queue="broken")
    with pytest.raises(NotDispatched, match="WRONGTYPE") as caught:
        await engine.dispatcher(own_urls.broker).dispatch([broken, job])
    assert caught.value.refused == {broken.id}
    assert queue_of(own_urls.broker, "default").get_job_ids() == [f"{job.id}-0"]


def test_the_queues_that_running_workers_serve_are_known(
    engine: Engine, own_urls: Urls, launch: Launch
) -> None:
    dispatcher = engine.dispatcher(own_urls.broker)
    assert dispatcher.served_queues() is None
    with launch(own_urls) as processes:
        processes.start()
        until_sync(lambda: dispatcher.served_queues() is not None)
        assert "default" in (dispatcher.served_queues() or ())
    assert engine.dispatcher("redis://127.0.0.1:1/0").served_queues() is None


# the name of the task


def queue_with_task(name: str, *, registered: bool = True) -> AsyncJobs:
    dispatcher = RQDispatcher(Redis(), name)
    jobs = AsyncJobs(MemoryStore(), dispatcher=dispatcher)
    if registered:
        module = types.ModuleType("module_of_a_task")
        vars(module)["run_job"] = dispatcher.register_task(jobs)
        vars(module)["other"] = print
        sys.modules[module.__name__] = module
    return jobs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("run_job", "app.jobs.run_job"),
        ("__main__.run_job", "app.jobs.run_job"),
        ("module_of_a_task.missing", "missing in module_of_a_task"),
        ("module_of_a_task.other", "missing in module_of_a_task"),
        ("no_such_module.run_job", "no module no_such_module"),
        ("no_such_package.module.run_job", "no module no_such_package.module"),
    ],
)
async def test_a_task_that_workers_cannot_import_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        async with queue_with_task(name):
            pass


@pytest.mark.parametrize("registered", [True, False])
async def test_a_task_that_workers_can_import_is_accepted(*, registered: bool) -> None:
    async with queue_with_task("module_of_a_task.run_job", registered=registered):
        pass


async def test_a_process_without_the_task_does_not_check_its_module() -> None:
    async with queue_with_task("no_such_module.run_job", registered=False):
        pass
