"""The example of a custom store is short, and persists its jobs.

It passes the conformance suite on the page that explains it: `tests/docs/test_write_a_store.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext, Selection
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LANE, LATER, NOW, begun, ids
from custom_store import FolderStore, from_url

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_store.py"
MAX_LINES = 200
KILLS = 36

RACER = """
import sys
from pathlib import Path
import anyio
from asyncjobs.testing.samples import LANE, LATER, NOW
from custom_store import FolderStore

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with FolderStore(Path(sys.argv[1])) as store:
        while taken := await store.take([LANE], now=NOW, until=LATER, limit=3):
            print(*(job.id for job in taken), flush=True)

anyio.run(main)
"""

KILLED = """
import os, sys
from pathlib import Path
import anyio
from asyncjobs.protocols import Change
from asyncjobs.testing.samples import begun, sample_job
from custom_store import FolderStore

first, second = (sample_job(id=given, idempotency_key=given) for given in sys.argv[3:])

async def work(folder):
    async with FolderStore(folder) as store:
        await store.insert([first, second])
        await store.replace([Change(begun(first), first.revision)])

# What is imported only when it is used must not count as a step.
anyio.run(work, Path(sys.argv[1], "first"))
for stop in range(int(sys.argv[2])):
    if os.fork() == 0:
        def count(event, arguments):
            global stop
            if event in {"open", "os.rename", "os.remove", "os.truncate"}:
                stop -= 1
                if stop < 0:
                    os._exit(9)
        folder = Path(sys.argv[1], str(stop))
        sys.addaudithook(count)
        anyio.run(work, folder)
        print("to its end", flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_example_is_as_short_as_documented() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < MAX_LINES


@pytest.mark.anyio
async def test_the_example_runs_a_job(tmp_path: Path) -> None:
    jobs = AsyncJobs(from_url(f"folder://{tmp_path}"))

    @jobs.handler("greet")
    async def greet(name: str, _job: JobContext) -> str:
        return f"Hello, {name}!"

    async with jobs:
        job = await jobs.enqueue(greet, "world")
        assert (await jobs.wait(job.id, timeout=60)).result == "Hello, world!"


@pytest.mark.anyio
async def test_a_store_without_labels_keeps_tags_and_refuses_to_list_by_them(
    tmp_path: Path,
) -> None:
    jobs = AsyncJobs(from_url(f"folder://{tmp_path}"))

    @jobs.handler("greet")
    async def greet(name: str, _job: JobContext) -> str:
        return f"Hello, {name}!"

    async with jobs:
        options = EnqueueOptions(title="A greeting", tags=("team:7",), metadata={"n": 1})
        job_id = (await jobs.enqueue(greet, "world", options=options)).id
        job = await jobs.wait(job_id, timeout=60)
        assert (job.title, job.tags, job.metadata) == ("A greeting", ("team:7",), {"n": 1})
        with pytest.raises(ConfigurationError):
            await jobs.list(Selection(tag="team:7"))


def test_two_processes_never_take_the_same_job(tmp_path: Path) -> None:
    jobs = [sample_job() for _ in range(60)]

    async def insert() -> None:
        async with FolderStore(tmp_path) as store:
            await store.insert(jobs)

    anyio.run(insert)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=EXAMPLE.parent,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    told = [racer.communicate("go\n", timeout=60)[0].split() for racer in racers]
    assert sorted(told[0] + told[1]) == sorted(ids(jobs))


def test_a_process_killed_at_any_step_leaves_complete_jobs(tmp_path: Path) -> None:
    first, second = sample_job(), sample_job()
    first, second = (sample_job(id=one.id, idempotency_key=one.id) for one in (first, second))
    said = run("-c", KILLED, str(tmp_path), str(KILLS), first.id, second.id, folder=EXAMPLE.parent)
    assert 0 < said.count("to its end") < KILLS / 2

    async def check(folder: Path) -> None:
        async with FolderStore(folder) as store:
            one, two = await store.get([first.id, second.id])
            assert one in (None, first, begun(first))
            assert two in (None, second)
            again = [one or first, two or second]
            assert await store.insert([first, second]) == again
            assert await store.get([first.id, second.id]) == again
            waiting = [job.id for job in again if job.lane == LANE]
            taken = await store.take([LANE], now=NOW, until=LATER, limit=9)
            assert sorted(ids(taken)) == sorted(waiting)

    for stop in range(KILLS):
        anyio.run(check, tmp_path / str(stop))


def run(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.anyio
async def test_an_error_of_the_disk_raises_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable, match="jobs"):
        async with FolderStore(tmp_path / "jobs"):
            pass


@pytest.mark.parametrize("url", ["folder://", "folder:jobs", "folder://host/jobs"])
def test_a_url_without_a_folder_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(url))):
        from_url(url)
