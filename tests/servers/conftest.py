"""Real servers in their own processes, and clients that wait for conditions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.waiting import PATIENCE_SECONDS, until_sync

HERE = Path(__file__).parent
UVICORN = ("uvicorn", "served:asgi_app", "--factory", "--port", "{port}", "--log-level", "warning")
TERMINAL = {"completed", "failed", "cancelled"}


class Server:
    """One server on one port and one store; it can be restarted."""

    def __init__(
        self, folder: Path, command: Sequence[str], store: str, environment: Mapping[str, str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._log = folder / "server.log"
        self._command = [part.format(port=self.port) for part in command]
        self._environment = {
            **os.environ,
            "JOBS": store,
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "default",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """Start the server and return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                env=self._environment,
                cwd=HERE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.eventually(self._answers)

    def stop(self, how: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        self.client.close()
        if self._process is not None:
            with suppress(ProcessLookupError):  # of this server alone: it has its own session
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def submit(self, name: str = "nap", **payload: Any) -> str:
        answer = self.client.post(f"/{name}", json=payload)
        assert answer.status_code == 202, answer.text + self.log
        url: str = answer.json()["statusUrl"]
        return url

    def job(self, url: str) -> dict[str, Any]:
        answer = self.client.get(url)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = {**answer.json(), "etag": answer.headers["etag"]}
        return document

    def ended(self, url: str) -> dict[str, Any]:
        self.eventually(lambda: self.job(url)["status"] in TERMINAL)
        return self.job(url)

    def eventually(self, holds: Callable[[], object]) -> None:
        try:
            until_sync(holds)
        except AssertionError as error:
            raise AssertionError(self.log) from error

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return self.client.get("/").status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture
def serve(tmp_path: Path, new_url: Callable[[], str]) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def serving(*command: str, **environment: str) -> Server:
        server = Server(tmp_path, command, new_url(), environment)
        made.append(server)
        server.start()
        return server

    yield serving
    for server in made:
        server.close()


@pytest.fixture
def uvicorn(serve: Callable[..., Server]) -> Server:
    return serve(*UVICORN)


@pytest.fixture
def patient_uvicorn(serve: Callable[..., Server]) -> Server:
    """Serve with leases that do not lapse during a test."""
    return serve(*UVICORN, LEASE_SECONDS="600")
