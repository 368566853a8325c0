"""The processes in which handlers misbehave: `asyncjobs worker`, and a SAQ worker."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from anyio import to_thread
from saq import Queue

from asyncjobs import AsyncJobs
from asyncjobs.dispatchers.saq import SAQDispatcher
from tests.waiting import PATIENCE_SECONDS

from .matrix import PATIENT

HERE = Path(__file__).parent


class Host:
    """One worker process at a time, started and ended by the test; all share a log."""

    def __init__(self, folder: Path, store: str, broker: str | None = None, **more: str) -> None:
        self.log = folder / "worker.log"
        self.store = store
        self.broker = broker
        self._environment = {"JOBS": store, "BROKER": broker or "", **more}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the next process, in its own session."""
        saq = ("saq", "saq_app.settings", "--verbose")
        command = ("asyncjobs", "worker", "misbehaviour:jobs") if self.broker is None else saq
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=HERE,
                env={**os.environ, "PYTHONPATH": path, **self._environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process.poll() is None

    async def ended(self, *, within: float = PATIENCE_SECONDS) -> int:
        """Wait for the end of the process; return its exit code."""
        return await to_thread.run_sync(partial(self.process.wait, within))

    def stop(self) -> int:
        """Stop the process as a service manager does; return its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def client(self, kinds: ModuleType) -> AsyncJobs:
        """Return a queue for this process, which runs no jobs."""
        dispatcher: Any = "worker"
        if self.broker is not None:
            dispatcher = SAQDispatcher(Queue.from_url(self.broker))
        jobs = AsyncJobs(self.store, dispatcher=dispatcher, settings=PATIENT)
        registered: AsyncJobs = kinds.register(jobs)
        return registered
