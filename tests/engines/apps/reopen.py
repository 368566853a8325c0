"""Sends jobs by one dispatcher in several event loops, or in a process and its forked child."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module

from asyncjobs import AsyncJobs
from asyncjobs.portal import portal_for
from asyncjobs.testing.dispatcher_handlers import register

MANY = 50


async def enqueue_many(jobs: AsyncJobs) -> None:
    await asyncio.gather(*(jobs.enqueue("echo", number) for number in range(MANY)))


async def enqueue_opened(jobs: AsyncJobs, times: int) -> None:
    for _ in range(times):
        async with jobs:
            await enqueue_many(jobs)


def main(module: str, kind: str, url: str, how: str) -> None:
    """Take the dispatcher from the module of an engine's tests."""
    dispatcher = import_module(module).ENGINE(kind).dispatcher(url)
    jobs = AsyncJobs("memory://", dispatcher=dispatcher)
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
