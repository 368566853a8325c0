"""Worker processes, started as a user starts them, and a web process beside them."""

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

import anyio
import pytest
from anyio import to_thread

from asyncjobs import AsyncJobs, JobContext, Policy

HERE = Path(__file__).parent

#: A slow machine may take its time; what never comes ends the test here.
PATIENCE = 60.0


class Workers:
    """Commands `asyncjobs worker`, each with its log."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.log = folder / "worker.log"
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self, *options: str, target: str = "worked:jobs", grace: float = 60
    ) -> subprocess.Popen[str]:
        """Start a command, in a group of its own as a service manager does."""
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

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        with anyio.fail_after(PATIENCE):
            while not holds():  # noqa: ASYNC110
                await anyio.sleep(0.02)

    async def ended(self, process: subprocess.Popen[str]) -> int:
        """Wait for the end of a process; return its exit code."""
        return await to_thread.run_sync(partial(process.wait, PATIENCE))

    def logged(self, text: str, times: int = 1) -> bool:
        """Tell whether the workers have logged something so often."""
        return self.log.exists() and self.log.read_text().count(text) >= times

    def pids(self) -> Sequence[int]:
        """Name the processes that serve or have served."""
        lines = self.log.read_text().splitlines()
        return [int(line.split("Worker ")[1].split()[0]) for line in lines if " serves " in line]

    def end(self) -> None:
        """Kill what a failed test has left."""
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
    """Make the queue of a process that runs no jobs."""
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
