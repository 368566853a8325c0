"""Worker processes, started as a user starts them, and a queue that submits jobs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from asyncjobs import AsyncJobs, JobContext, Policy
from tests.waiting import PATIENCE_SECONDS, until

HERE = Path(__file__).parent


class Workers:
    """The `asyncjobs worker` commands of one test, with a common log."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.log = folder / "worker.log"
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self, *options: str, target: str = "worked:jobs", grace: float = 60
    ) -> subprocess.Popen[str]:
        """Start a command in its own process group, as a service manager does."""
        environment = {**os.environ, "JOBS": self.store, "GRACE": str(grace)}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "asyncjobs", "worker", target, *options],
                cwd=HERE,
                env=environment,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    async def ended(self, process: subprocess.Popen[str]) -> int:
        """Wait for the end of a process; return its exit code."""
        return await to_thread.run_sync(partial(process.wait, PATIENCE_SECONDS))

    def has_logged(self, text: str, times: int = 1) -> bool:
        return self.log.exists() and self.log.read_text().count(text) >= times

    async def logged(self, text: str, times: int = 1) -> None:
        """Return when the workers have logged a text this many times."""
        await until(lambda: self.has_logged(text, times))

    def pids(self) -> Sequence[int]:
        """Return the ids of all worker processes that have started, in order."""
        lines = self.log.read_text().splitlines()
        return [int(line.split("Worker ")[1].split()[0]) for line in lines if " serves " in line]

    def end(self) -> None:
        """Kill the processes that a failed test has left."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in self.pids() if self.log.exists() else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def workers(tmp_path: Path, new_url: Callable[[], str]) -> Generator[Workers]:
    made = Workers(tmp_path, new_url())
    yield made
    made.end()


@pytest.fixture
def web(workers: Workers) -> AsyncJobs:
    """Return a queue of this process, which runs no jobs."""
    jobs = AsyncJobs(workers.store, dispatcher="worker")

    @jobs.handler("work")
    async def work(_folder: Path, _job: JobContext) -> int:
        return 0

    @jobs.handler("urgent", policy=Policy(queue="urgent"))
    async def urgent(_none: None, _job: JobContext) -> int:
        return 0

    return jobs


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
