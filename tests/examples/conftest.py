"""The examples, run as readers run them: as scripts and servers, each in its own folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.everywhere import SERVERS

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the demonstration to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / "demo.py"), "--once", *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
        )

    return run


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., object]:
    """Serve an example with the command in its first line."""

    @contextmanager
    def serving(command: Sequence[str]) -> Generator[httpx2.Client]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        # In other folders the server finds the example by its path.
        filled = [part.format(port=port, examples=EXAMPLES) for part in command]
        with (
            (tmp_path / "server.log").open("wb") as log,
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", *filled], cwd=tmp_path, stdout=log, stderr=log
            )
            try:
                wait_for(client, process, tmp_path / "server.log")
                yield client
            finally:
                process.terminate()
                process.wait(timeout=20)

    return serving


def wait_for(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    patience = time.monotonic() + 20
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < patience, log.read_text()
        try:
            client.get("/")
        except httpx2.TransportError:
            time.sleep(0.02)
        else:
            return


@pytest.fixture(autouse=True)
def environment(
    store_kind: str, new_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Move an example to a server by its one environment variable; by default it has a file."""
    for name in [name for name in os.environ if name.startswith("EXPORTS_")]:
        monkeypatch.delenv(name)
    if store_kind in SERVERS:
        monkeypatch.setenv("EXPORTS_STORE", new_url())
