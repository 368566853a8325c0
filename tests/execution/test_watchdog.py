"""A handler that blocks the event loop is named in the log; other code is not."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import anyio
import pytest

from asyncjobs import JobContext, JobStatus, Settings
from tests.queues import Make
from tests.waiting import until_sync

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

WATCHFUL = Settings(
    block_warning_after=timedelta(seconds=0.1), poll_interval=timedelta(seconds=0.05)
)


def warned(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "blocked the event loop" in record.message]


def compute(caplog: pytest.LogCaptureFixture) -> None:
    """Hold the thread until the warning is logged, and long enough for a second one."""
    until_sync(lambda: warned(caplog))
    block()


def block() -> None:
    time.sleep(0.4)


async def test_a_handler_that_blocks_the_event_loop_is_named_once_with_its_stack(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make(settings=WATCHFUL)

    @jobs.handler("blocking")
    async def blocking(_none: None, _job: JobContext) -> None:
        compute(caplog)

    async with jobs:
        job = await jobs.enqueue(blocking, None)
        done = await jobs.wait(job.id, timeout=60)
    assert done.status is JobStatus.COMPLETED
    [record] = warned(caplog)
    assert vars(record)["job_id"] == job.id
    assert "'blocking'" in record.message
    [_, _runner, outer, inner, *_] = record.message.split('  File "')
    assert "in blocking\n    compute(caplog)" in outer
    assert "in compute" in inner
    assert "event loop stopped" not in caplog.text


async def test_code_that_blocks_the_loop_outside_handlers_names_no_handler(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make(settings=WATCHFUL)

    @jobs.handler("patient")
    async def patient(_none: None, _job: JobContext) -> None:
        began.set()
        await blocked.wait()

    began, blocked = anyio.Event(), anyio.Event()
    async with jobs:
        job = await jobs.enqueue(patient, None)
        await began.wait()
        block()
        blocked.set()
        await job.result(timeout=60)
    assert warned(caplog) == []


async def test_a_handler_in_a_thread_does_not_block_the_loop(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make(settings=WATCHFUL)

    @jobs.handler("computing")
    def computing(_none: None, _job: JobContext) -> None:
        block()

    async with jobs:
        job = await jobs.enqueue(computing, None)
        await jobs.wait(job.id, timeout=60)
    assert warned(caplog) == []
