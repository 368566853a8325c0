"""taskiq with taskiq-redis, and asyncjobs on it; one worker process."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from asyncjobs.dispatchers.taskiq import TaskiqDispatcher
from benchmarks.sides.on_engines import PLACE, queue_on
from benchmarks.sides.ours import OnQueue
from benchmarks.sides.side import CONCURRENCY, PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

backend: Any = cast("Any", RedisAsyncResultBackend)(PLACE.redis, result_ex_time=600)
broker = ListQueueBroker(PLACE.redis).with_result_backend(backend)
dispatcher = TaskiqDispatcher(broker)
jobs = queue_on(dispatcher)
dispatcher.register_task(jobs)


@broker.task(task_name="own")
async def own(_payload: dict[str, int]) -> int:
    stamp(time.monotonic())
    return RESULT


class _Worker(Side):
    @asynccontextmanager
    async def started(self) -> AsyncGenerator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    def worker(self) -> Sequence[str]:
        limits = ("--max-async-tasks", str(CONCURRENCY), "--max-prefetch", str(CONCURRENCY))
        module = "benchmarks.sides.on_taskiq:broker"
        return ("-m", "taskiq", "worker", module, "--workers=1", *limits, "--log-level=ERROR")


class TaskiqTasks(_Worker):
    opened = _Worker.started

    async def submit(self) -> str:
        return (await own.kiq(PAYLOAD)).task_id

    async def ended(self, ticket: str) -> bool:
        if not await backend.is_result_ready(ticket):
            return False
        return bool((await backend.get_result(ticket)).return_value == RESULT)


class OnTaskiq(_Worker, OnQueue):
    jobs = jobs

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        async with self.started(), self.jobs:
            yield
