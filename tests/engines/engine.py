"""A driver of an engine for the tests: its dispatcher, messages and worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from asyncjobs.stores import store_from_url
from asyncjobs.testing import WorkerPool
from tests.conftest import PostgresServer
from tests.waiting import until_sync

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
EXAMPLES = ROOT / "examples"

STOP_SECONDS = 60


@dataclass(frozen=True)
class Urls:
    """The URLs of an engine's messages and of the jobs' store."""

    broker: str
    store: str


@dataclass(frozen=True)
class Sent:
    """A message that waits for a worker; `settings` are the engine's own."""

    task: str
    message: Mapping[str, object]
    settings: Mapping[str, object]


class Engine(ABC):
    """The hooks that the shared tests need of an engine, for one kind of its workers."""

    #: The module and arguments that start workers, and those of each kind of workers.
    worker: tuple[str, ...]
    kinds: ClassVar[Mapping[str, tuple[str, ...]]] = {"worker": ()}
    #: More kinds, for tests of features that only they have.
    more_kinds: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Arguments that make stopping workers not wait for their jobs.
    give_back: tuple[str, ...] = ()
    #: The text that a worker logs when it begins to stop.
    stopping: str
    default_queue = "default"
    #: The engine's class of options, and the options that the workers know.
    options: Callable[..., Any]
    options_by_type: ClassVar[Mapping[str, Any]] = {}
    #: The engine's settings in every message.
    settings: ClassVar[Mapping[str, object]] = {}
    #: See `WorkerPool`.
    slots, many, some = 2, 200, 20

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @property
    def environment(self) -> Mapping[str, str]:
        return {}

    @abstractmethod
    def dispatcher(self, broker: str, **arguments: Any) -> Any:
        """Make a dispatcher for a process that only submits."""

    @abstractmethod
    async def sent(self, broker: str, queue: str) -> list[Sent]:
        """Read the messages that wait in a queue."""

    @abstractmethod
    async def results(self, broker: str) -> set[str]:
        """Return the keys of the engine's records of tasks that have ended."""

    @abstractmethod
    async def run_own_task(self, broker: str) -> str:
        """Run a task of the application; return the key of its result."""

    def task_name(self, namespace: str) -> str:
        return f"{namespace}.run"

    def processes(
        self, urls: Urls, log: Path, *arguments: str, give_back: bool = False
    ) -> WorkerProcesses:
        """Make worker processes to start; they end with the `with` block."""
        kinds = {**self.kinds, **self.more_kinds}
        command = [*self.worker, *kinds[self.kind], *arguments]
        return WorkerProcesses(
            [*command, *self.give_back] if give_back else command,
            log,
            BROKER=urls.broker,
            STORE=urls.store,
            KIND=self.kind,
            GIVE_BACK="yes" if give_back else "",
            **self.environment,
        )

    def stop(self, processes: WorkerProcesses) -> None:
        """Stop workers in the way that makes them release their jobs."""
        processes.stop()

    def close(self) -> None:  # noqa: B027  # most have none
        """Close connections that dispatchers leave open."""


class WorkerProcesses:
    """Worker processes that one command starts, in their own session."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        path = os.pathsep.join([str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
        self._command = [sys.executable, "-m", *command]
        self._log = log
        self._environment = {**os.environ, "PYTHONPATH": path, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the processes, unless they run already."""
        if self._process is not None and self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=APPS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def has_logged(self, text: str) -> bool:
        return text in self._log.read_text()

    def stop(self) -> int:
        """Send SIGTERM to the first process; return the exit code when it has ended."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Kill all of them; return when none can take a message any more."""
        if self._process is not None:
            self.signal_all(signal.SIGKILL)
            until_sync(lambda: not list(self._pids()))

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all of them, as systemd does, and wait for the end of the first."""
        assert self._process is not None
        # At once: RQ's pool also signals its workers, which kill running jobs at a second signal.
        for pid in list(self._pids()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        self._process.wait(STOP_SECONDS)

    def _pids(self) -> Iterator[int]:
        """List the processes of the session that have not ended, its leader first.

        Not a process group: some engines give a process that runs a job its own group.
        """
        assert self._process is not None
        numbers = sorted(
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
        )
        for pid in numbers:
            with suppress(ProcessLookupError, FileNotFoundError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if os.getsid(pid) == self._process.pid and state != "Z":
                    yield pid


class EngineWorkers(WorkerPool):
    """The worker processes of an engine, as the conformance suites use them."""

    def __init__(self, engine: Engine, urls: Urls, processes: WorkerProcesses) -> None:
        dispatcher = engine.dispatcher(urls.broker, options=engine.options_by_type)
        super().__init__(store_from_url(urls.store), dispatcher)
        self.slots, self.many, self.some = engine.slots, engine.many, engine.some
        self.processes = processes
        processes.start()

    async def kill(self) -> None:
        self.processes.kill()
        self.processes.start()


@contextmanager
def postgres_database(server: PostgresServer, schema: str = "") -> Generator[str]:
    """Make a database inside the block with the statements of a schema; yield its URL."""
    name = f"engine_{uuid.uuid4().hex[:12]}"
    url = urlsplit(server.url)._replace(path=f"/{name}").geturl()
    server.execute(f"CREATE DATABASE {name}")
    try:
        if schema:
            PostgresServer(url).execute(schema)
        yield url
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
