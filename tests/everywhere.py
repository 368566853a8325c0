"""The store of a test: memory by default, or every store if the test is marked `every_store`.

A test marked `every_store` runs once on each store if it uses `new_url`, `new_store`, `store` or
`beside`, directly or through a fixture. `every_store(without="memory")` leaves out stores that
processes cannot share. If the test sets its event loop by `parametrize("anyio_backend", ...)`, it
runs on that loop only. `own_store` excludes tests of a special store: it lacks a power, is
removed, or runs in simulated time, in which no server answers.

The first store of a test is in the default run, the others are in the thorough run, and so are the
variants of `SELDOM`. Below the folders of `EDGES`, there is only one other store: the name of the
test decides which. What is tested there is the same on each store, whose own tests and the tests of
the core run on all of them. If `ASYNCJOBS_EVERY_STORE` is set, all tests run on all stores.
"""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore

HERE = Path(__file__).parent

#: Folders of tests that see a store through the core only.
EDGES = frozenset({"adapters", "cli", "clients", "docs", "http", "otel"})

#: In the thorough run only: what they share with another variant is nearly all.
SELDOM = frozenset({"trio", "starlette"})

SERVERS = ("postgresql", "redis")
KINDS = ("memory", "sqlite", *SERVERS)

FRAMEWORKS = ("fastapi", "starlette", "flask")
GUNICORNS = ("used-before-the-fork", "sync", "sync-2", "gthread", "preload", "preload-gthread")


def each_on(kind: str, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Pair each name with one kind of store, and the first name with the servers, too."""
    return [*((name, kind) for name in names), *((names[0], server) for server in SERVERS)]


#: The variants of a test marked `every_store`, by the fixture that it uses beside its store.
#: Drivers of servers need asyncio.
EVERYWHERE: dict[str, list[tuple[str, ...]]] = {
    "asyncio_alone": [(kind,) for kind in KINDS],
    "stack": each_on("memory", FRAMEWORKS),
    "served": each_on("memory", FRAMEWORKS),
    "export_app": each_on("sqlite", FRAMEWORKS),
    "gunicorn": each_on("sqlite", GUNICORNS),
    "anyio_backend": [
        ("asyncio", "memory"),
        ("trio", "memory"),
        ("asyncio", "sqlite"),
        *(("asyncio", server) for server in SERVERS),
    ],
}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `every_store` on every store, if it uses one."""
    every = metafunc.definition.get_closest_marker("every_store")
    own = metafunc.definition.get_closest_marker("own_store")
    if every is None or own is not None or "store_kind" not in metafunc.fixturenames:
        return
    beside = [name for name in EVERYWHERE if name in metafunc.fixturenames][:1]
    values = EVERYWHERE[beside[0]] if beside else [(kind,) for kind in KINDS]
    for named in metafunc.definition.iter_markers("parametrize"):
        if beside and named.args[0] == beside[0]:
            values = [one[-1:] for one in values if one[0] in named.args[1]]
    kept = [one for one in values if one[-1] != every.kwargs.get("without")]
    first, *others = dict.fromkeys(one[-1] for one in kept)
    kinds = {first, *_others_for(metafunc.definition, others)}
    usual = [one for one in kept if one[-1] == first and one[0] not in SELDOM] or kept[:1]
    chosen = [variant(one, thorough=one not in usual) for one in kept if one[-1] in kinds]
    names = (*beside, "store_kind")[-len(values[0]) :]
    mark = pytest.mark.parametrize(names, chosen, indirect=True, scope="session")
    metafunc.definition.add_marker(mark)


def _others_for(test: pytest.Function, kinds: list[str]) -> list[str]:
    folder = test.path.relative_to(HERE).parts[0]
    if not kinds or folder not in EDGES or os.environ.get("ASYNCJOBS_EVERY_STORE"):
        return kinds
    return [kinds[zlib.crc32(test.nodeid.encode()) % len(kinds)]]


def variant(values: tuple[str, ...], *, thorough: bool) -> Any:
    """Return a test's variant."""
    marks = [pytest.mark.thorough] if thorough else []
    return pytest.param(*values, id="-".join(values), marks=marks)


@pytest.fixture(scope="session")
def store_kind(request: pytest.FixtureRequest) -> str:
    kind: str = getattr(request, "param", "memory")
    return kind


@pytest.fixture(scope="session")
def new_url(store_kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Return URLs of unused stores; their data is deleted at the end of the run."""
    name = f"test_{uuid.uuid4().hex[:12]}_"
    numbers = count()
    match store_kind:
        case "memory":
            yield lambda: "memory://"
        case "sqlite":
            folder = request.getfixturevalue("tmp_path_factory").mktemp("stores")
            yield lambda: f"sqlite:///{folder}/{next(numbers)}.db"
        case "postgresql":
            postgres = request.getfixturevalue("postgres")
            yield lambda: f"{postgres.url}?asyncjobs_schema={name}{next(numbers)}"
            made = [f"{name}{number}" for number in range(next(numbers))]
            postgres.execute(*(f"DROP SCHEMA IF EXISTS {one} CASCADE" for one in made))
        case _:
            url: str = request.getfixturevalue("redis_url")
            delete = request.getfixturevalue("delete_keys")
            yield lambda: f"{url}?namespace={name}{next(numbers)}"
            delete(name)


@pytest.fixture
def asyncio_alone() -> str:
    """Return the event loop for modules whose tests do not depend on it."""
    return "asyncio"


@pytest.fixture
def new_store(store_kind: str, new_url: Callable[[], str]) -> Callable[[], Any]:
    """Make stores that share their jobs, like those of several processes; they are not open."""
    if store_kind == "memory":
        shared = MemoryStore()
        return lambda: shared
    url = new_url()
    return lambda: store_from_url(url)


@pytest.fixture
def store(new_store: Callable[[], Any]) -> Any:
    """Return the test's store, which is not open."""
    return new_store()


@pytest.fixture
async def beside(new_store: Callable[[], Any]) -> AsyncIterator[Any]:
    """Open a store on the same jobs, as another process does."""
    async with new_store() as opened:
        yield opened
