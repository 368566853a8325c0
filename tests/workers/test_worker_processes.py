"""`asyncjobs worker` runs jobs, stops in order, and restarts dead processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from anyio import to_thread

from asyncjobs import AsyncJobs, Job, JobStatus
from tests.waiting import until

if TYPE_CHECKING:
    from tests.workers.conftest import Workers

pytestmark = [pytest.mark.anyio, pytest.mark.every_store(without="memory")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def begun(web: AsyncJobs, folder: Path) -> Job:
    """Submit a job and return it when its handler has started."""
    job = (await web.enqueue("work", folder)).job
    await until((folder / f"{job.id}.began").exists)
    return job


async def test_sigterm_lets_running_jobs_finish_and_starts_no_more(
    workers: Workers, web: AsyncJobs, tmp_path: Path
) -> None:
    async with web:
        worker = workers.start("--concurrency", "1")
        job = await begun(web, tmp_path)
        later = [(await web.enqueue("work", tmp_path)).job for _ in range(3)]
        worker.terminate()
        await workers.logged("starts no more jobs")
        (tmp_path / "go on").touch()
        assert await workers.ended(worker) == 0
        done = await web.find(job.id)
        assert (done.status, done.result) == (JobStatus.COMPLETED, workers.pids()[0])
        assert {(await web.find(one.id)).attempt for one in later} == {0}


async def test_a_job_that_outlives_the_grace_period_is_released_at_no_cost(
    workers: Workers, web: AsyncJobs, tmp_path: Path
) -> None:
    async with web:
        worker = workers.start(grace=0.2)
        job = await begun(web, tmp_path)
        worker.send_signal(signal.SIGINT)
        assert await workers.ended(worker) == 0
        back = await web.find(job.id)
        assert (back.status, back.attempt, back.losses) == (JobStatus.PENDING, 1, 0)
        (tmp_path / "go on").touch()
        workers.start()
        assert (await web.wait(job.id, timeout=60)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_second_signal_releases_all_jobs_at_once(
    workers: Workers, web: AsyncJobs, tmp_path: Path, processes: str
) -> None:
    async with web:
        worker = workers.start("--processes", processes, grace=3600)
        job = await begun(web, tmp_path)
        worker.terminate()
        await workers.logged("starts no more jobs", int(processes))
        assert (await web.find(job.id)).status is JobStatus.PROCESSING
        worker.terminate()
        assert await workers.ended(worker) == 0
        assert (await web.find(job.id)).status is JobStatus.PENDING


async def test_a_signal_to_the_process_group_counts_once(
    workers: Workers, web: AsyncJobs, tmp_path: Path
) -> None:
    """systemd and terminals signal all processes of a group."""
    async with web:
        supervisor = workers.start("--processes", "2")
        job = await begun(web, tmp_path)
        await workers.logged(" serves ", 2)
        for pid in (supervisor.pid, *workers.pids()):
            # The supervisor passes its signal on, which may already have ended the idle worker.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        await workers.logged("starts no more jobs", 2)
        (tmp_path / "go on").touch()
        assert await workers.ended(supervisor) == 0
        assert (await web.find(job.id)).status is JobStatus.COMPLETED


async def test_a_dead_worker_is_restarted(workers: Workers, web: AsyncJobs, tmp_path: Path) -> None:
    async with web:
        workers.start("--processes", "2")
        await workers.logged(" serves ", 2)
        first, second = workers.pids()
        os.kill(first, signal.SIGKILL)
        await workers.logged(" serves ", 3)
        assert workers.has_logged("exit code -9")
        os.kill(second, signal.SIGKILL)
        (tmp_path / "go on").touch()
        job = (await web.enqueue("work", tmp_path)).job
        done = await web.wait(job.id, timeout=60)
        assert done.result not in {first, second}


async def test_workers_drain_when_their_supervisor_is_killed(
    workers: Workers, web: AsyncJobs, tmp_path: Path
) -> None:
    async with web:
        supervisor = workers.start("--processes", "2")
        await workers.logged(" serves ", 2)
        job = await begun(web, tmp_path)
        supervisor.kill()
        await workers.logged("starts no more jobs", 2)
        (tmp_path / "go on").touch()
        await workers.logged("has ended", 2)
        assert (await web.find(job.id)).status is JobStatus.COMPLETED


async def test_a_worker_serves_only_the_named_queues(
    workers: Workers, web: AsyncJobs, tmp_path: Path
) -> None:
    async with web:
        workers.start("--queues", "urgent, ", target="worked:made_when_asked")
        left = (await web.enqueue("work", tmp_path)).job
        job = (await web.enqueue("urgent", None)).job
        assert (await web.wait(job.id, timeout=60)).status is JobStatus.COMPLETED
        assert (await web.find(left.id)).attempt == 0


@pytest.mark.own_store
@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("worked:nothing", (), "worked:nothing cannot be loaded"),
        ("worked:not_a_queue", (), "must be an AsyncJobs, got str"),
        ("worked:jobs", ("--queues", "nightly"), "No handler uses the queue 'nightly'"),
        ("worked:jobs", ("--queues", "nightly", "--processes", "2"), "No handler uses the queue"),
    ],
)
async def test_a_misconfigured_worker_exits_with_the_reason_and_is_not_restarted(
    workers: Workers, target: str, options: tuple[str, ...], error: str
) -> None:
    worker = workers.start(*options, target=target)
    assert await workers.ended(worker) == 2
    assert workers.has_logged(error)
    assert not workers.has_logged("Traceback")


def _answer(url: str) -> tuple[int, Any]:
    try:
        answer = httpx2.get(url, timeout=60)
    except httpx2.TransportError:
        return 0, None
    return answer.status_code, answer.json() if "json" in answer.headers["Content-Type"] else None


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_health_is_shown_by_a_file_and_over_http(
    workers: Workers, tmp_path: Path, free_port: int, processes: str
) -> None:
    file, url = tmp_path / "health", f"http://127.0.0.1:{free_port}"
    options = ["--health-port", str(free_port), "--health-file", str(file)]
    worker = workers.start("--processes", processes, *options)
    await until(file.exists)
    await until(lambda: _answer(f"{url}/ready")[0] == 200)
    status, health = await to_thread.run_sync(_answer, f"{url}/live")
    assert (status, health["live"], len(health["processes"])) == (200, True, int(processes))
    assert await to_thread.run_sync(_answer, f"{url}/elsewhere") == (404, None)
    if processes == "2":
        os.kill(workers.pids()[0], signal.SIGKILL)
        await until(lambda: _answer(f"{url}/live")[0] == 503)
        await until(lambda: _answer(f"{url}/live")[0] == 200)
    worker.terminate()
    assert await workers.ended(worker) == 0
    assert not file.exists()
