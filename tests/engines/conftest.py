"""A store and a broker, each in a database of the tests' Valkey, and the workers of an engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.engines.fleets import Fleet

Launch = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture(scope="session")
def broker(redis_url: str) -> str:
    """Name a database for the messages of engines."""
    return f"{redis_url}/1"


@pytest.fixture(scope="session")
def shared_store(redis_url: str) -> str:
    """Name the store that workers and tests share."""
    return f"{redis_url}/2"


@pytest.fixture
def apart(redis_url: str) -> dict[str, str]:
    """Name a broker and a store that a module's workers do not see, for one test's workers."""
    return {"BROKER": f"{redis_url}/3", "STORE": f"{redis_url}/4"}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, broker: str, shared_store: str) -> Launch:
    """Make fleets by their commands, which end with the block."""

    @contextmanager
    def launched(*command: str, **environment: str) -> Generator[Fleet]:
        log = tmp_path_factory.mktemp("fleet") / "log"
        where = {"BROKER": broker, "STORE": shared_store, **environment}
        fleet = Fleet(command, log, **where)
        try:
            yield fleet
        finally:
            fleet.kill()

    return launched


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The drivers of the store know asyncio only, and what engines do is done elsewhere."""
    backend: str = request.param
    return backend
