"""Batches whose workers and submitters are killed: the numbers of each batch are exact."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asyncjobs import AsyncJobs, BatchHandle, JobStatus
from asyncjobs.stores import store_from_url
from tests.chaos import application
from tests.chaos.application import LEASE, Errand
from tests.chaos.crowd import PATIENCE, ROOT, Workers
from tests.chaos.test_workers_under_fire import JOBS, Site, postgresql_site, redis_site, site
from tests.waiting import until

pytestmark = pytest.mark.anyio

#: Members of each batch.
MEMBERS = JOBS // 4

__all__ = ["postgresql_site", "redis_site", "site"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def workers(site: Site, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path, site.url, 3, "counting_jobs")
    yield made
    made.close()


async def test_the_numbers_of_a_batch_are_exact_whatever_is_killed(
    site: Site, workers: Workers
) -> None:
    chance = random.Random(7)  # noqa: S311  # no secret
    jobs = application.queue_on(store_from_url(site.url))
    async with jobs, _under_fire(workers, chance):
        for delay in (0.0, 0.01, 0.05):
            await _kill_a_submission(workers, f"killed {delay}", delay)
        killed = [
            await jobs.enqueue_batch(
                "errand", [Errand()] * MEMBERS, idempotency_key=f"killed {delay}"
            )
            for delay in (0.0, 0.01, 0.05)
        ]
        failing = await jobs.enqueue_batch("errand", _errands(chance), title="Failing")
        cancelled = await jobs.enqueue_batch("errand", [Errand(seconds=0.2)] * MEMBERS)
        growing = await jobs.enqueue_batch("errand", [Errand(seconds=2)])
        for _ in range(4):
            await growing.add("in a thread", [Errand()] * 10)
        await until(lambda: _has_begun(jobs, cancelled), seconds=PATIENCE)
        await cancelled.cancel()
        for batch in (*killed, failing, cancelled, growing):
            await _check(batch, 41 if batch is growing else MEMBERS)
        again = await failing.retry_failed()
        await _check(again, len(await _members(failing, JobStatus.FAILED)))
        assert (await cancelled.wait()).status is JobStatus.CANCELLED
        assert {(await batch.wait()).status for batch in killed} == {JobStatus.COMPLETED}
    await anyio.to_thread.run_sync(workers.end)
    assert "An internal loop failed" not in workers.log.read_text()


def _errands(chance: random.Random) -> list[Errand]:
    fails = [chance.choice([0] * 8 + [1, 3]) for _ in range(MEMBERS)]
    return [
        Errand(fails=number, kills=1 if index % 150 == 7 else 0, seconds=0.01)
        for index, number in enumerate(fails)
    ]


async def _kill_a_submission(workers: Workers, key: str, delay: float) -> None:
    """Start a program that submits a batch, and kill it shortly after it begins."""
    program = _submission(workers, key)
    try:
        assert program.stdout is not None
        line = await anyio.to_thread.run_sync(program.stdout.readline)
        assert line == b"ready\n"
        await anyio.sleep(delay)
    finally:
        program.kill()
        await anyio.to_thread.run_sync(program.communicate)


def _submission(workers: Workers, key: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "tests.chaos.submitting", key, str(MEMBERS))
    return subprocess.Popen(command, env=workers.environment, cwd=ROOT, stdout=subprocess.PIPE)


async def _has_begun(jobs: AsyncJobs, batch: BatchHandle) -> bool:
    counts = (await jobs.find(batch.id)).counts
    return counts is not None and counts.completed > 0


async def _members(batch: BatchHandle, status: JobStatus | None = None) -> list[Any]:
    return [job async for job in batch.jobs(status=status)]


async def _check(batch: BatchHandle, total: int) -> None:
    """Wait for the end of a batch, and compare its numbers with its jobs."""
    done = await batch.wait(timeout=PATIENCE)
    assert done.status.terminal, done
    counts = done.counts
    assert counts is not None
    found = Counter(job.status for job in await _members(batch))
    assert found.total() == counts.total == total
    assert {status: getattr(counts, status) for status in JobStatus} == {
        status: found.get(status, 0) for status in JobStatus
    }
    assert counts.pending == counts.processing == 0
    assert (done.status is JobStatus.COMPLETED) == (counts.completed == total)
    assert len(counts.failures) == min(counts.failed, 5)


@asynccontextmanager
async def _under_fire(workers: Workers, chance: random.Random) -> AsyncGenerator[None]:
    """Kill and suspend workers all the time."""

    async def fire() -> None:
        while True:
            workers.fill_up()
            await anyio.sleep(LEASE.total_seconds() * chance.uniform(0.3, 1.5))
            await workers.stop_for(LEASE.total_seconds() * chance.choice([0.2, 1.5]), chance)
            workers.kill(chance)

    async with anyio.create_task_group() as tasks:
        workers.fill_up()
        tasks.start_soon(fire)
        yield
        tasks.cancel_scope.cancel()
