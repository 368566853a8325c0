"""SAQ: a task of its own with its result kept, and a job of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from saq import Queue as SaqQueue

from asyncjobs.dispatchers.saq import SAQDispatcher
from benchmarks.engines_measured.common import BROKER, SLOTS, Bench, queue_on

saq_queue = SaqQueue.from_url(BROKER)
dispatcher = SAQDispatcher(saq_queue)
jobs = queue_on(dispatcher)


async def own_saq(_context: Any, *, number: int) -> int:
    return number


settings = dispatcher.register_task(
    jobs, {"queue": saq_queue, "functions": [("own", own_saq)], "concurrency": int(SLOTS)}
)


async def run_own_saq(count: int) -> list[Any]:
    asked = [await saq_queue.enqueue("own", number=number) for number in range(count)]
    found: list[Any] = []
    for one in asked:
        assert one is not None
        while not one.completed:  # `refresh(until_complete)` may miss the end
            await anyio.sleep(0.001)
            await one.refresh()
        found.append(one.result)
    return found


@asynccontextmanager
async def connected() -> AsyncGenerator[None]:
    await saq_queue.connect()
    yield
    await saq_queue.disconnect()


bench = Bench(
    jobs,
    ("saq", "benchmarks.engines_measured.bench_saq.settings", "--quiet"),
    run_own_saq,
    connected,
)
