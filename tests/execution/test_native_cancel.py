"""asyncio's own cancellation ignores anyio's shields; it must only affect its target."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import pytest
from anyio import to_thread

from asyncjobs import AsyncJobs, JobContext, Selection
from asyncjobs.records.group_commit import GroupCommit
from tests.queues import Make, finished
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone


async def slowly(numbers: Sequence[int]) -> Sequence[int]:
    await asyncio.sleep(0.05)
    return [2 * number for number in numbers]


async def test_a_caller_that_times_out_does_not_block_later_calls() -> None:
    async with anyio.create_task_group() as tasks:
        merged = GroupCommit(slowly, tasks)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(merged([1]), 0.01)
            async with asyncio.timeout(60):
                assert await merged([2]) == [4]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10])
def test_the_end_of_the_event_loop_ends_every_call(turns: int) -> None:
    ended: list[int] = []

    async def ask(merged: GroupCommit[int, int], number: int) -> None:
        try:
            await merged([number])
        finally:
            ended.append(number)

    async def leave() -> None:
        group = anyio.create_task_group()
        merged = GroupCommit(slowly, group, limit=timedelta(hours=1))
        asking = [asyncio.create_task(ask(merged, number)) for number in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        del asking

    asyncio.run(leave())
    assert sorted(ended) == [0, 1, 2]


@pytest.mark.every_store
async def test_a_cancellation_at_any_step_does_not_affect_other_callers(
    jobs: AsyncJobs,
) -> None:
    kind = jobs.external("outside", payload=int, result=int)
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: jobs.enqueue(kind, 1),
        lambda: jobs.list(Selection(), limit=9),
    ]
    async with jobs:
        for turns in range(60):
            for call in calls:
                impatient = asyncio.create_task(call())
                patient = asyncio.create_task(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                impatient.cancel()
                async with asyncio.timeout(60):
                    await asyncio.wait([impatient])
                    await patient
        page = await jobs.list(Selection(), limit=200)
        found = [await jobs.find(job.id) for job in page.jobs]
    assert 60 <= len(found) <= 120


async def test_any_thread_can_collect_an_abandoned_handler(
    make: Make,
) -> None:
    """The collector would close it there, without an event loop, and never return."""
    handlers: list[Coroutine[Any, Any, None]] = []
    jobs = make()

    async def swallow() -> None:
        while True:
            with suppress(BaseException):
                await asyncio.sleep(600)

    @jobs.handler("swallow", timeout=0.05)
    def swallows(_none: None, _job: JobContext) -> Any:
        handlers.append(swallow())
        return handlers[0]

    async with jobs:
        job = await finished(jobs, swallows)
        assert job.error is not None
        assert job.error.code == "timeout"
    handlers.clear()
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    await to_thread.run_sync(collecting.join, PATIENCE_SECONDS)
    assert not collecting.is_alive()
