"""Local times with daylight saving are converted to UTC on entry, on each store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

NEW_YORK = ZoneInfo("America/New_York")

#: Local times with a clock change before the deadline, or in the repeated hour.
MOMENTS = [
    (datetime(2098, 3, 9, 1, 30, tzinfo=NEW_YORK), timedelta(minutes=90)),
    (datetime(2098, 3, 8, 12, tzinfo=NEW_YORK), timedelta(days=1)),
    (datetime(2098, 11, 2, 0, 30, tzinfo=NEW_YORK), timedelta(minutes=90)),
    (datetime(2098, 11, 2, 1, 30, tzinfo=NEW_YORK, fold=0), timedelta(hours=1)),
    (datetime(2098, 11, 2, 1, 30, tzinfo=NEW_YORK, fold=1), timedelta(hours=1)),
]


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone


@pytest.mark.parametrize(("run_at", "deadline"), MOMENTS)
async def test_run_at_is_converted_to_utc_and_the_deadline_counts_real_seconds(
    new_store: Callable[[], Any], run_at: datetime, deadline: timedelta
) -> None:
    jobs, begins = AsyncJobs(new_store()), run_at.astimezone(UTC)

    @jobs.handler("work")
    async def work(_none: None, _job: JobContext) -> None: ...

    async with jobs:
        options = EnqueueOptions(run_at=run_at, deadline=deadline)
        handle = await jobs.enqueue(work, None, options=options)
        for job in (handle.job, await jobs.find(handle.id)):
            assert (job.run_at, job.run_at.utcoffset()) == (begins, timedelta(0))
            assert job.deadline is not None
            assert (job.deadline, job.deadline.utcoffset()) == (begins + deadline, timedelta(0))
