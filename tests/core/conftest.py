"""A queue with a quick rhythm, so that what takes seconds takes milliseconds.

Leases are longer than a busy machine may pause: those who want to see one lapse wait for it.

Tests of a module marked `every_store` run on SQLite, PostgreSQL and Redis, too, as far as they ask
for `make`, `jobs`, `store` or `beside`. `own_store` marks those of a store they make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncjobs import AsyncJobs, Settings
from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore

QUICK = Settings(
    lease=timedelta(seconds=2),
    redelivery=timedelta(seconds=0.6),
    poll=timedelta(seconds=0.05),
    sweep=timedelta(seconds=0.05),
    progress=timedelta(seconds=0.01),
    grace=timedelta(seconds=0.2),
)

Make = Callable[..., AsyncJobs]

#: The drivers of servers know asyncio only.
ON_SERVERS = [("postgresql", "asyncio"), ("redis", "asyncio")]
EVERYWHERE = [("memory", "asyncio"), ("memory", "trio"), ("sqlite", "asyncio"), *ON_SERVERS]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test of a module that is marked so run on every store."""
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    asks = {"store_kind", "anyio_backend"} <= set(metafunc.fixturenames)
    if not asks or "every_store" not in marks or "own_store" in marks:
        return
    mark = pytest.mark.parametrize(
        ("store_kind", "anyio_backend"),
        EVERYWHERE,
        ids=["-".join(one) for one in EVERYWHERE],
        indirect=True,
    )
    metafunc.definition.add_marker(mark)


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    kind: str = getattr(request, "param", "memory")
    return kind


@pytest.fixture
def new_store(store_kind: str, request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Make stores that share their jobs, as processes have them; not open."""
    if store_kind == "memory":
        shared = MemoryStore()
        return lambda: shared
    if store_kind == "sqlite":
        path = request.getfixturevalue("tmp_path") / "jobs.db"
        return lambda: store_from_url(f"sqlite:///{path}")
    if store_kind == "postgresql":
        schema = request.getfixturevalue("schema")
        url = f"{request.getfixturevalue('postgres').url}?asyncjobs_schema={schema}"
    else:
        namespace = request.getfixturevalue("namespace")
        url = f"{request.getfixturevalue('redis_url')}?namespace={namespace}"
    return lambda: store_from_url(url)


@pytest.fixture
def store(new_store: Callable[[], Any]) -> Any:
    """Make a store of the test's, for it to open."""
    return new_store()


@pytest.fixture
async def beside(new_store: Callable[[], Any]) -> AsyncIterator[Any]:
    """Open a store on the same jobs, as another process would."""
    async with new_store() as opened:
        yield opened


@pytest.fixture
def make(new_store: Callable[[], Any]) -> Make:
    """Make a queue on the test's store; several of them share it, as processes do."""

    def build(**arguments: Any) -> AsyncJobs:
        given: dict[str, Any] = {"store": new_store(), "settings": QUICK, **arguments}
        return AsyncJobs(**given)

    return build


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return make()
