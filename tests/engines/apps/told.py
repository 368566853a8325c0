"""Tells an engine of jobs, from several event loops and from a forked child, by one dispatcher."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping

from saq import Queue
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from asyncjobs import AsyncJobs, Dispatcher
from asyncjobs.dispatchers.saq import SAQDispatcher
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher
from asyncjobs.portal import portal_for
from asyncjobs.testing.dispatcher_handlers import register

DISPATCHERS: Mapping[str, Callable[[str], Dispatcher]] = {
    "saq": lambda url: SAQDispatcher(Queue.from_url(url)),
    "taskiq list": lambda url: TaskiqDispatcher(ListQueueBroker(url)),
    "taskiq stream": lambda url: TaskiqDispatcher(RedisStreamBroker(url)),
}
MANY = 50


async def enqueue_many(jobs: AsyncJobs) -> None:
    await asyncio.gather(*(jobs.enqueue("echo", number) for number in range(MANY)))


async def enqueue_opened(jobs: AsyncJobs, times: int) -> None:
    for _ in range(times):
        async with jobs:
            await enqueue_many(jobs)


def main(kind: str, url: str, how: str) -> None:
    jobs = AsyncJobs("memory://", dispatcher=DISPATCHERS[kind](url))
    register(jobs)
    if how == "loops":
        for times in (2, 1):
            asyncio.run(enqueue_opened(jobs, times))
        return
    portal = portal_for(jobs)
    portal.call(enqueue_many, jobs)
    child = os.fork()
    portal.call(enqueue_many, jobs)
    portal.close()
    if child != 0:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


main(*sys.argv[1:])
