"""The workers of an engine: processes that are started once for the tests of a module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from asyncjobs import Dispatcher
from asyncjobs.stores import store_from_url
from asyncjobs.testing import WorkerPool

APPS = Path(__file__).parent / "apps"


class Fleet:
    """Worker processes that one command starts, in a session of their own."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        self._command = [sys.executable, *command]
        self._environment: Mapping[str, str] = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start them, unless they run already."""
        if self._process is not None and self._process.poll() is None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=APPS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End them all at once, in the middle of what they do."""
        if self._process is not None:
            self.tell_all(signal.SIGKILL)

    def tell_all(self, number: signal.Signals, patience: float = 60) -> None:
        """Send a signal to all of them, as systemd does unless told otherwise; wait for the end."""
        assert self._process is not None
        # All at once: RQ's pool tells its workers, too, and they kill what runs if that takes long.
        for pid in list(processes_of(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        self._process.wait(patience)

    def stop(self, patience: float = 60) -> int:
        """Ask them to end as a service manager does; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(patience)


def processes_of(session: int) -> Iterator[int]:
    """List the processes of a session, its leader first, which starts others while it lives.

    Not of a group: some engines give a process that runs a job a group of its own.
    """
    yield session
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(session):
            with suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)


class FleetWorkers(WorkerPool):
    """Has an engine's workers run what is delivered."""

    slots = 2

    def __init__(self, store: str, dispatcher: Dispatcher, fleet: Fleet) -> None:
        super().__init__(store_from_url(store), dispatcher)
        self.fleet = fleet
        fleet.start()

    async def kill(self) -> None:
        self.fleet.kill()
        self.fleet.start()
