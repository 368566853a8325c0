"""A process that is killed while it saves a file leaves nothing that is lost or never deleted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import AsyncJobs, JobContext, Policy, Settings
from asyncjobs.core.job import JobFile, JobId
from asyncjobs.files import FolderStorage
from asyncjobs.protocols import Change, Selection
from asyncjobs.stores import store_from_url
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store(without="memory")]

SETTINGS = Settings(
    lease=timedelta(seconds=0.5),
    redelivery=timedelta(seconds=0.5),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
)

#: The moments at which the process is killed, in their order.
MOMENTS = ("before", "during", "unnamed", "stored", "recorded")


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone


class Deadly(FolderStorage):
    """Kills its process at one moment of a write."""

    def __init__(self, path: Path, moment: str) -> None:
        super().__init__(path)
        self._moment = moment

    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        self._reach("before")
        super().write(key, self._watched(chunks))
        self._reach("stored")

    def _watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._reach("during")
        self._reach("unnamed")

    def _reach(self, moment: str) -> None:
        if moment == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)


def queue(url: str, folder: Path, moment: str = "", retention: float = 0) -> AsyncJobs:
    """Make the queue; only its first attempt dies."""
    policy = Policy(retention=retention)
    jobs = AsyncJobs(url, files=Deadly(folder, moment), settings=SETTINGS, policy=policy)

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("export.csv", rows())
        if moment == "recorded":
            os.kill(os.getpid(), signal.SIGKILL)

    return jobs


async def rows() -> AsyncIterator[bytes]:
    for number in range(3):
        await anyio.lowlevel.checkpoint()
        yield bytes([number]) * 300_000


async def die(url: str, folder: str, moment: str) -> None:
    """Run a job until this process is killed."""
    async with queue(url, Path(folder), moment, retention=60) as jobs:
        handle = await jobs.enqueue("export", None)
        await jobs.wait(handle.id, timeout=60)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_kill_at_any_moment_leaves_no_unlisted_and_no_missing_file(
    new_url: Callable[[], str], tmp_path: Path, moment: str
) -> None:
    url, folder = new_url(), tmp_path / "files"
    command = [sys.executable, __file__, url, str(folder), moment]
    done = await anyio.run_process(command, check=False, stdout=None, stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    [job_id] = await listed_jobs(url)
    async with queue(url, folder, retention=60) as jobs:
        # At once: what is listed can be read, and what is stored belongs to a job with a record.
        job = await jobs.find(job_id)
        assert job.files != ()
        assert [len(await content(jobs, job_id, one)) for one in job.files if one.size] == (
            [900_000] if moment == "recorded" else []
        )
        assert set(jobs.file_storage.jobs() if jobs.file_storage else ()) <= {job_id}
        # The next attempt replaces the file.
        ended = await jobs.wait(job_id, timeout=60)
        [file] = ended.files
        assert (file.attempt, file.size) == (2, 900_000)
        assert len(await content(jobs, job_id, file)) == 900_000
        # And all of it is deleted with the job.
        over = ended.completed_at
        forgettable = ended.changed(expires_at=over, due_at=over, revision=ended.revision + 1)
        assert [*await jobs.store.replace([Change(forgettable, ended.revision)])] == [True]
        await until(lambda: not (folder / job_id).exists())
        assert await jobs.get(job_id) is None


async def content(jobs: AsyncJobs, job_id: JobId, file: JobFile) -> bytes:
    return b"".join([chunk async for chunk in await jobs.read_file(job_id, file.name)])


async def listed_jobs(url: str) -> list[JobId]:
    async with AsyncJobs(store_from_url(url), dispatcher="worker") as jobs:
        return [job.id for job in (await jobs.list(Selection())).jobs]


if __name__ == "__main__":
    anyio.run(die, sys.argv[1], sys.argv[2], sys.argv[3])
