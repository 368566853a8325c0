"""Dramatiq's workers pass the shared tests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar, cast

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results.backends import RedisBackend

from asyncjobs import AsyncJobs, JobId
from asyncjobs.dispatchers.dramatiq import DramatiqDispatcher, DramatiqOptions
from asyncjobs.protocols import JobHandle
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import sample_job
from asyncjobs.testing.dispatcher_handlers import began, release
from tests.conftest import connected
from tests.engines.apps.dramatiq_options import OPTIONS
from tests.engines.apps.handlers import register_more
from tests.engines.engine import Engine, EngineWorkers, Sent, Urls
from tests.engines.suite import (
    EngineConformance,
    GiveBackConformance,
    OnWorkers,
    TimeLimitConformance,
)
from tests.waiting import until


def with_size(processes: int, threads: int) -> tuple[str, ...]:
    return ("--processes", str(processes), "--threads", str(threads))


class DramatiqEngine(Engine):
    worker = ("dramatiq", "dramatiq_worker")
    kinds: ClassVar = {"processes": with_size(2, 1), "threads": with_size(1, 2)}
    more_kinds: ClassVar = {"one thread": with_size(1, 1)}
    give_back = ("--worker-shutdown-timeout", "100")
    stopping = "Shutting down"
    options = DramatiqOptions
    options_by_type: ClassVar[Mapping[str, object]] = OPTIONS
    settings: ClassVar[Mapping[str, object]] = {"args": [], "options": ["redis_message_id"]}

    @property
    def environment(self) -> Mapping[str, str]:
        # By default a process prefetches more than it can run, and an idle one polls once a second.
        fetched = {"processes": "1", "threads": "2", "one thread": "9"}
        return {"dramatiq_worker_timeout": "20", "dramatiq_queue_prefetch": fetched[self.kind]}

    def dispatcher(self, broker: str, **arguments: Any) -> DramatiqDispatcher:
        return DramatiqDispatcher(cast("Any", RedisBroker)(url=broker), **arguments)

    async def sent(self, broker: str, queue: str) -> list[Sent]:
        with connected(broker) as client:
            messages = [json.loads(text) for text in client.hvals(f"dramatiq:{queue}.msgs")]
        return [
            Sent(
                message["actor_name"],
                message["kwargs"],
                {"args": message["args"], "options": list(message["options"])},
            )
            for message in messages
        ]

    async def results(self, broker: str) -> set[str]:
        """Return the keys of results and of dead letters."""
        with connected(broker) as client:
            keys: list[str] = client.keys("*")
        return {key for key in keys if re.fullmatch("[0-9a-f]{32}", key) or key.endswith(".XQ")}

    async def run_own_task(self, broker: str) -> str:
        message = cast("Any", Message)("default", "plain", (), {}, {})
        cast("Any", RedisBroker)(url=broker).enqueue(message)
        return str(cast("Any", RedisBackend)(url=broker).build_message_key(message))


ENGINE = DramatiqEngine


class TestDramatiq(EngineConformance, GiveBackConformance, TimeLimitConformance):
    async def test_a_queue_named_in_options_is_served(self, workers: EngineWorkers) -> None:
        async with workers.opened() as jobs:
            register_more(jobs)
            handle = await jobs.enqueue("process_and_loop", None)
            assert await handle.result(timeout=workers.patience)


class TestPriorities(OnWorkers):
    kinds = ("one thread",)

    @pytest.mark.anyio
    async def test_the_most_urgent_fetched_message_runs_first(
        self, workers: EngineWorkers, urls: Urls, tmp_path: Path
    ) -> None:
        path = tmp_path / "job"
        async with workers.opened() as jobs:
            held = await jobs.enqueue("hold", path)
            await until(lambda: began(path) == 1)
            waiting: list[JobHandle[Any]] = []
            # A message fetched later than others still competes with them for the next slot.
            for name in ("echo", "steps", "echo"):
                waiting.append(await jobs.enqueue(name, 1))
                await until(partial(is_fetched, urls.broker, waiting[-1].id))
            release(path)
            late, early, *_ = [await handle.wait() for handle in (*waiting, held)]
        assert str(early.started_at) < str(late.started_at)


def is_fetched(url: str, job_id: JobId) -> bool:
    with connected(url) as client:
        ids = client.sunion("nothing", *client.keys("dramatiq:__acks__.*.default"))
        messages = client.hgetall("dramatiq:default.msgs")
        return any(job_id in message for number, message in messages.items() if number in ids)


def test_the_actors_that_run_jobs_are_never_retried() -> None:
    broker = StubBroker()
    dispatcher = DramatiqDispatcher(broker, options=OPTIONS)
    dispatcher.register_task(AsyncJobs(MemoryStore(), dispatcher=dispatcher))
    actors = cast("Any", broker).actors
    assert sorted(actors) == ["asyncjobs.run", "asyncjobs.run.-1"]
    assert {(a.options["max_retries"], a.options["retry_when"]) for a in actors.values()} == {
        (0, None)
    }


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


@pytest.mark.anyio
async def test_no_connection_of_the_ended_thread_is_kept() -> None:
    broker = ThreadsBroker()
    broker.declare_queue("default")
    await DramatiqDispatcher(broker).dispatch([sample_job(type="echo")])
    assert broker.queues["default"].qsize() == 1
    assert not broker.kept
