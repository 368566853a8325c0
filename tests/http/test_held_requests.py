"""Requests that are held until a job changes or ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncjobs import Job, Settings
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import UnknownJob
from asyncjobs.testing import Faults
from tests.http.followers import (
    LONG,
    Place,
    followed,
    in_simulated_time,
    read_again,
    simulated_place,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

PlaceOf = Callable[..., Place]

SHORT_POLL = Settings(poll_interval=0.02)


async def test_a_held_request_is_answered_by_the_next_change(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.next_change(job, LONG)) as found:
            assert found == []
            await at.jobs.update_progress(job.id, 60)
        assert found == [await at.jobs.find(job.id)]


async def test_a_held_request_outlasts_reads_that_fail_or_are_slow(place: PlaceOf) -> None:
    at = place(settings=SHORT_POLL)
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.next_change(job, LONG)) as found:
            for share, delay in ((1.0, 0.0), (0.5, 0.02), (0.0, 0.02)):
                at.store.faults = Faults(before=share, after=share, delay=delay, only=["get"])
                await read_again(at.store, times=3)
            assert found == []
            at.store.faults = Faults()
            await at.jobs.update_progress(job.id, 60)
        assert found == [await at.jobs.find(job.id)]


@asynccontextmanager
async def held(at: Place, answer: Coroutine[Any, Any, Job]) -> AsyncGenerator[list[Job]]:
    """Hold a request in the block, which ends with its answer; append that to the list."""
    found: list[Job] = []

    async def hold() -> None:
        found.append(await answer)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await followed(at.jobs)
        yield found


def test_a_change_since_the_job_was_read_is_answered_at_once() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            old = await at.begun()
            new = await at.jobs.update_progress(old.id, 60)
            began = anyio.current_time()
            assert await at.streams.next_change(old, LONG) == new
            assert anyio.current_time() == began

    in_simulated_time(hold)


async def test_a_request_held_for_the_end_ignores_other_changes(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.ended(job.id, LONG)) as found:
            for percent in (60, 70):
                await at.jobs.update_progress(job.id, percent)
            assert found == []
            await at.jobs.complete(job.id, {})
        assert found == [await at.jobs.find(job.id)]


def test_a_terminal_job_is_answered_at_once() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            job = await at.done()
            began = anyio.current_time()
            assert await at.streams.ended(job.id, LONG) == job
            assert await at.streams.next_change(job, LONG) == job
            assert anyio.current_time() == began

    in_simulated_time(hold)


def test_a_held_request_returns_the_job_when_its_wait_is_over() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            job = await at.begun()
            began = anyio.current_time()
            assert await at.streams.next_change(job, 20) == job
            assert anyio.current_time() - began == pytest.approx(20)
            assert await at.streams.ended(job.id, 20) == job
            assert anyio.current_time() - began == pytest.approx(40)

    in_simulated_time(hold)


def test_a_request_held_for_the_end_is_answered_by_the_newest_state() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            job = await at.begun()
            async with anyio.create_task_group() as tasks:

                async def work() -> None:
                    await anyio.sleep(5)
                    await at.jobs.update_progress(job.id, 60)

                tasks.start_soon(work)
                found = await at.streams.ended(job.id, 20)
                assert found.progress == 60

    in_simulated_time(hold)


async def test_a_request_for_an_unknown_job_is_not_held(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        gone = (await at.waiting()).model_copy(update={"id": new_job_id()})
        with pytest.raises(UnknownJob):
            await at.streams.next_change(gone, LONG)
        with pytest.raises(UnknownJob):
            await at.streams.ended(gone.id, LONG)
