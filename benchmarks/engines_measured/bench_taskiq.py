"""taskiq: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from asyncjobs.dispatchers.taskiq import TaskiqDispatcher
from benchmarks.engines_measured.common import BROKER, SLOTS, Bench, queue_on

backend: Any = cast("Any", RedisAsyncResultBackend)(BROKER)
taskiq_broker = ListQueueBroker(BROKER).with_result_backend(backend)
dispatcher = TaskiqDispatcher(taskiq_broker)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@taskiq_broker.task(task_name="own")
async def own_taskiq(number: int) -> int:
    return number


async def run_own_taskiq(count: int) -> list[int]:
    asked = [await own_taskiq.kiq(number) for number in range(count)]
    waited = [await one.wait_result(check_interval=0.001, timeout=120) for one in asked]
    return [one.return_value for one in waited]


@asynccontextmanager
async def started() -> AsyncGenerator[None]:
    await taskiq_broker.startup()
    yield
    await taskiq_broker.shutdown()


command = (
    "taskiq",
    "worker",
    "benchmarks.engines_measured.bench_taskiq:taskiq_broker",
    "--workers",
    "1",
)
bench = Bench(
    jobs,
    (*command, "--log-level", "WARNING", "--max-async-tasks", SLOTS),
    run_own_taskiq,
    started,
)
