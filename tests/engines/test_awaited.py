"""Engines whose calls are awaited are told of several jobs at once, and of all that they take."""

from __future__ import annotations

import anyio
import pytest

from asyncjobs import Job
from asyncjobs.dispatchers.engines.push import AwaitedDispatcher, Message
from asyncjobs.testing.samples import sample_job

pytestmark = pytest.mark.anyio


class Telling(AwaitedDispatcher[None]):
    """An engine that takes its time, and refuses jobs of the type "refused"."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.most = 0
        self._now = 0

    async def send(self, message: Message, job: Job) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        await anyio.lowlevel.checkpoint()
        self._now -= 1
        if job.type == "refused":
            raise ConnectionRefusedError(job.id)
        self.told.append(message["id"])


async def test_a_few_jobs_are_told_at_once_and_in_their_order() -> None:
    engine = Telling()
    jobs = [sample_job() for _ in range(100)]
    await engine.dispatch(jobs)
    assert engine.told == [job.id for job in jobs]
    assert engine.most == engine.at_once


async def test_a_job_that_is_refused_keeps_no_other_from_being_told() -> None:
    engine = Telling()
    jobs = [sample_job(type="refused" if number % 3 == 0 else "taken") for number in range(30)]
    with pytest.raises(ConnectionRefusedError, match=jobs[0].id):
        await engine.dispatch(jobs)
    assert engine.told == [job.id for job in jobs if job.type == "taken"]


async def test_no_jobs_are_told_as_well() -> None:
    engine = Telling()
    await engine.dispatch([])
    assert engine.told == []
