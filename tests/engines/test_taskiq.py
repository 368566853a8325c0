"""taskiq's workers pass the shared tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
from taskiq import AsyncBroker, TaskiqEvents, TaskiqState
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher, TaskiqOptions
from asyncjobs.testing import sample_job
from asyncjobs.testing.dispatcher_handlers import began, register, release
from tests.conftest import Serve, ask
from tests.engines.conftest import Launch
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls
from tests.engines.suite import (
    AsyncClientConformance,
    EngineConformance,
    GiveBackConformance,
    TimeLimitConformance,
)
from tests.waiting import until

BROKERS: Mapping[str, Callable[[str], AsyncBroker]] = {
    "list": ListQueueBroker,
    "stream": RedisStreamBroker,
}


class Taskiq(Engine):
    worker = (
        *("taskiq", "worker", "taskiq_worker:broker"),
        *("--workers", "1", "--max-async-tasks", "2"),
    )
    kinds: ClassVar = {"list": (), "stream": ()}
    give_back = ("--wait-tasks-timeout", "0.1")
    stopping = "running tasks to complete"
    default_queue = "taskiq"
    options = TaskiqOptions
    settings: ClassVar[Mapping[str, object]] = {
        "args": [],
        "retry_on_error": "False",
        "timeout": "315360000",
        "ack_type": "when_received",
    }

    def dispatcher(self, broker: str, **arguments: Any) -> TaskiqDispatcher:
        return TaskiqDispatcher(BROKERS[self.kind](broker), **arguments)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        if self.kind == "list":
            texts = ask(broker, "LRANGE", queue, 0, -1)
        else:
            texts = [fields["data"] for _id, fields in ask(broker, "XRANGE", queue, "-", "+")]
        messages = [json.loads(text) for text in texts]
        return [
            Sent(
                message["task_name"],
                message["kwargs"],
                {
                    "args": message["args"],
                    **{k: v for k, v in message["labels"].items() if k != "queue_name"},
                },
            )
            for message in messages
        ]

    async def results(self, broker: str) -> set[str]:
        return set(ask(broker, "KEYS", "result:*"))

    async def run_own_task(self, broker: str) -> str:
        client = BROKERS[self.kind](broker)
        await client.startup()
        task = await AsyncKicker[[], str]("plain", client, labels={}).kiq()
        await client.shutdown()
        return f"result:{task.task_id}"


ENGINE = Taskiq


class TestTaskiq(
    EngineConformance, GiveBackConformance, TimeLimitConformance, AsyncClientConformance
): ...


class TestStreams:
    kinds = ("stream",)

    @pytest.mark.anyio
    async def test_a_message_is_acknowledged_when_its_job_starts(
        self, engine: Engine, own_urls: Urls, launch: Launch, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        with launch(own_urls) as processes:
            async with EngineWorkers(engine, own_urls, processes).opened() as jobs:
                handle = await jobs.enqueue("hold", path)
                await until(lambda: began(path) == 1)
                # Other messages are those of a job that was sent twice while the worker started.
                await until(lambda: self.unacknowledged(own_urls.broker) == 0)
                release(path)
                await handle.wait()

    def unacknowledged(self, broker: str) -> int:
        return int(ask(broker, "XPENDING", "taskiq", "taskiq")["pending"])


@pytest.mark.anyio
async def test_options_set_the_priority_of_a_type(engine: Engine, own_urls: Urls) -> None:
    options = {"mail": TaskiqOptions(priority=7)}
    async with engine.dispatcher(own_urls.broker, options=options) as dispatcher:
        await dispatcher.dispatch([sample_job(type="mail")])
    [sent] = await engine.sent(own_urls.broker, "taskiq")
    assert sent.settings["priority"] == "7"


@pytest.mark.anyio
async def test_a_broker_that_could_not_be_started_is_started_by_the_next_job(serve: Serve) -> None:
    server = serve()
    async with TaskiqDispatcher(RedisStreamBroker(server.url)) as dispatcher:
        server.kill()
        with pytest.raises(redis.ConnectionError):
            await dispatcher.dispatch([sample_job()])
        server.start()
        await dispatcher.dispatch([sample_job()])
    assert len(server.ask("XINFO", "GROUPS", "taskiq")) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("by_the_application", [True, False])
async def test_a_broker_is_started_once_and_shut_down_by_its_starter(
    own_urls: Urls, *, by_the_application: bool
) -> None:
    events: list[TaskiqEvents] = []
    broker = ListQueueBroker(own_urls.broker)
    for event in (TaskiqEvents.CLIENT_STARTUP, TaskiqEvents.CLIENT_SHUTDOWN):
        broker.add_event_handler(event, note(events, event))
    jobs = AsyncJobs("memory://", dispatcher=TaskiqDispatcher(broker))
    register(jobs)
    if by_the_application:
        await broker.startup()
    async with jobs:
        await jobs.enqueue("echo", 1)
        await jobs.enqueue("echo", 2)
        assert events == [TaskiqEvents.CLIENT_STARTUP]
    assert len(events) == (1 if by_the_application else 2)
    await broker.shutdown()


def note(events: list[TaskiqEvents], event: TaskiqEvents) -> Callable[[TaskiqState], None]:
    return lambda _state: events.append(event)
