"""Several worker processes share schedules: each tick has one job, whatever is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from asyncjobs import AsyncJobs, Job, JobStatus, Selection
from tests.waiting import until

if TYPE_CHECKING:
    from tests.workers.conftest import Workers

pytestmark = [pytest.mark.anyio, pytest.mark.every_store(without="memory")]

NAMES = {"every-1", "every-2", "cron"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ticks(web: AsyncJobs) -> list[Job]:
    """Return the jobs of all ticks, the newest first."""
    found: list[Job] = []
    after: str | None = None
    while True:
        page = await web.list(Selection(type="tick"), limit=500, after=after)
        found += page.jobs
        if (after := page.next) is None:
            return found


async def more_ticks(web: AsyncJobs, number: int) -> None:
    """Return when each schedule has this many more jobs that have ended."""

    async def ended() -> Counter[str]:
        return Counter(job.tags[0] for job in await ticks(web) if job.status.terminal)

    before = await ended()

    async def grown() -> bool:
        now = await ended()
        return all(now[name] >= before[name] + number for name in NAMES)

    await until(grown)


async def started(workers: Workers, number: int) -> None:
    """Return when this many worker processes have started."""
    await until(lambda: len(workers.pids()) >= number)


def check(jobs: list[Job]) -> None:
    """Check that no tick has two jobs, and that the ticks are those of their schedule."""
    moments = Counter((job.tags[0], job.scheduled_at) for job in jobs)
    assert set(moments.values()) == {1}
    for name, moment in moments:
        assert moment is not None
        assert moment.microsecond == 0
        assert name != "every-2" or int(moment.timestamp()) % 2 == 0


async def test_each_tick_has_one_job_in_several_processes(workers: Workers, web: AsyncJobs) -> None:
    workers.start("--processes", "3", target="scheduled:jobs")
    async with web:
        await more_ticks(web, 3)
        check(await ticks(web))
        assert {one.name for one in await web.schedules()} == NAMES


@pytest.mark.thorough
async def test_no_kill_gives_a_tick_two_jobs_or_ends_a_schedule(
    workers: Workers, web: AsyncJobs
) -> None:
    command = workers.start("--processes", "3", target="scheduled:jobs")
    async with web:
        for number in range(9):
            await more_ticks(web, 1)
            os.kill(workers.pids()[number], signal.SIGKILL)
            await started(workers, number + 4)
        await more_ticks(web, 2)
        command.terminate()
        await workers.ended(command)
        found = await ticks(web)
        check(found)
        assert [job for job in found if job.status is JobStatus.FAILED] == []
