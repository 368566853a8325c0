"""The taskiq broker of the tests' workers, with defaults that would harm jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from taskiq import AsyncBroker, SimpleRetryMiddleware, TaskiqMessage, TaskiqMiddleware
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_handlers import register


class ShortTimeLimit(TaskiqMiddleware):
    """Sets a short time limit for every task without one."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        message.labels.setdefault("timeout", 0.2)
        return message


BROKERS: Mapping[str, Callable[[str], AsyncBroker]] = {
    "list": ListQueueBroker,
    "stream": RedisStreamBroker,
}

broker = BROKERS[os.environ["KIND"]](os.environ["BROKER"])
broker.with_result_backend(RedisAsyncResultBackend(os.environ["BROKER"], prefix_str="result"))
broker.add_middlewares(SimpleRetryMiddleware(default_retry_label=True), ShortTimeLimit())
dispatcher = TaskiqDispatcher(broker)
jobs = AsyncJobs(os.environ["STORE"], dispatcher=dispatcher, settings=BRISK)
register(jobs)
dispatcher.register_task(jobs)


@broker.task("plain")
async def plain() -> str:
    return "kept"
