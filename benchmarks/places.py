"""The servers of a run, and the exclusive place of each measurement on them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import psycopg
import redis

ROOT = Path(__file__).parents[1]
_VARIABLE = "BENCHMARK_PLACE"
_NOBODY = 65534  # PostgreSQL refuses to run as root


@dataclass(frozen=True)
class Place:
    """A folder, a database and a Redis that nothing else uses at the same time."""

    folder: str
    postgres: str
    redis: str

    @classmethod
    def current(cls) -> Place:
        """Return the place that the parent process has passed on."""
        return cls(**json.loads(os.environ[_VARIABLE]))

    def environment(self) -> dict[str, str]:
        """Return the environment of a child process that measures or works here."""
        return {
            **os.environ,
            _VARIABLE: json.dumps(asdict(self)),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }

    def store(self, kind: str) -> str:
        """Return the URL of an asyncjobs store."""
        urls = {"postgres": self.postgres, "redis": self.redis, "memory": "memory://"}
        return urls.get(kind, f"sqlite:///{self.folder}/jobs.db")


class Servers:
    """PostgreSQL and Redis: given by URLs, or started from the wheels of the tests.

    Servers of the wheels have the durability that PostgreSQL and Valkey have by default, except
    that Valkey writes no snapshots.
    """

    def __init__(self, postgres: str | None, redis_url: str | None) -> None:
        self._postgres = postgres
        self._redis = redis_url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-"))
            self._folder = Path(folder)
            self._folder.chmod(0o755)
            self.postgres = self._postgres or self._own_postgres(stack)
            self.redis = self._redis or self._own_redis(stack)
            if _ask(self.redis, "DBSIZE"):
                sys.exit(f"{self.redis} is not empty. It would be flushed: name one that is.")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def place(self, store: str) -> Generator[Place]:
        """Make a place, and clean it up; only the store `postgres` gets a database."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder))
            database = stack.enter_context(self._database()) if store == "postgres" else ""
            stack.callback(_ask, self.redis, "FLUSHDB")
            yield Place(folder, database, self.redis)

    @contextmanager
    def _database(self) -> Generator[str]:
        name = f"asyncjobs_benchmark_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name}")
        server, mark, options = self.postgres.partition("?")
        try:
            yield f"{server.rpartition('/')[0]}/{name}{mark}{options}"
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _own_postgres(self, stack: ExitStack) -> str:
        from tests.conftest import OwnServer, is_root  # noqa: PLC0415  # only without a URL

        class Durable(OwnServer):
            """The tests' server, with PostgreSQL's default durability."""

            def resume(self) -> None:
                options = "-c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
                more = "-c max_connections=200 -c shared_buffers=256MB"
                self._control("start", "-o", f"-p {self.port} {options} {more}")

        folder = self._folder / "postgres"
        folder.mkdir()
        if is_root():
            os.chown(folder, _NOBODY, _NOBODY)
        server = Durable(folder)
        server.start()
        stack.callback(server.stop)
        return server.url

    def _own_redis(self, stack: ExitStack) -> str:
        from tests.conftest import serving  # noqa: PLC0415  # only without a URL

        folder = self._folder / "valkey"
        folder.mkdir()
        return stack.enter_context(serving(folder)).url


def _ask(url: str, command: str) -> Any:
    # redis-py types this by dicts of anything.
    with cast("Any", redis.Redis).from_url(url) as client:
        return client.execute_command(command)
