"""A misbehaving handler in the application's process only ends its own job."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType

import pytest

from asyncjobs import AsyncJobs
from tests.queues import Make

from .matrix import (
    PATIENT,
    Combination,
    EngineHere,
    ending,
    misbehave_beside_others,
    nothing_left,
    parametrized,
)

pytestmark = [
    pytest.mark.anyio,
    # The interpreter reports a coroutine that was closed and goes on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WHOLE = (("local", "memory"), ("local", "sqlite"), ("engine", "memory"))


@parametrized(WHOLE, ways=("local", "engine"))
async def test_a_misbehaving_handler_ends_its_own_job_only(
    combination: Combination, make: Make, kinds: ModuleType, tmp_path: Path
) -> None:
    engine = EngineHere()
    given = {"dispatcher": engine} if combination.way == "engine" else {}
    jobs: AsyncJobs = kinds.register(make(settings=PATIENT, **given))
    # It logs the remains of a handler, which the test runner counts as a failure.
    asyncio.get_running_loop().set_exception_handler(None)
    async with nothing_left(), AsyncExitStack() as stack:
        await stack.enter_async_context(jobs)
        if given:
            await stack.enter_async_context(engine.working(jobs.run))
        done = await misbehave_beside_others(jobs, combination.kind, combination.form, tmp_path)
    assert ending(done) == combination.kind.ends
    if ending(done) != "worker_lost":
        assert done.attempt == 1
