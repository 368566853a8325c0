"""The servers and worker processes of the engine that a module tests: its `ENGINE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from tests.conftest import ask
from tests.engines.engine import Engine, Urls, WorkerProcesses

pytest.register_assert_rewrite("tests.engines.suite")

Launch = Callable[..., WorkerProcesses]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on all kinds of the engine's workers, or on the kinds of its class."""
    module = cast("Any", metafunc).module
    if "kind" in metafunc.fixturenames and len(module.ENGINE.kinds) > 1:
        kinds = getattr(cast("Any", metafunc).cls, "kinds", module.ENGINE.kinds)
        metafunc.parametrize("kind", [*kinds], scope="module")


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    module = cast("Any", request).module
    return str(next(iter(module.ENGINE.kinds)))


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, kind: str) -> Iterator[Engine]:
    module = cast("Any", request).module
    engine: Engine = module.ENGINE(kind)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def urls(redis_url: str, kind: str) -> Urls:  # noqa: ARG001  # kinds may keep messages differently
    """Return the broker and store URLs of the workers that a module's tests share."""
    return emptied(Urls(f"{redis_url}/1", f"{redis_url}/2"))


@pytest.fixture
def own_urls(redis_url: str) -> Urls:
    """Return broker and store URLs for one test, which the shared workers do not use."""
    return emptied(Urls(f"{redis_url}/3", f"{redis_url}/4"))


def emptied(urls: Urls) -> Urls:
    for url in (urls.broker, urls.store):
        ask(url, "FLUSHDB")
    return urls


@pytest.fixture(scope="module")
def launch(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Make worker processes for a broker and a store; they end with the `with` block."""

    def launched(urls: Urls, *arguments: str, give_back: bool = False) -> WorkerProcesses:
        log = tmp_path_factory.mktemp("workers") / "log"
        return engine.processes(urls, log, *arguments, give_back=give_back)

    return launched


@pytest.fixture(scope="module")
def processes(urls: Urls, launch: Launch) -> Iterator[WorkerProcesses]:
    """Make the workers that a module's tests share."""
    with launch(urls) as processes:
        yield processes


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The drivers of servers need asyncio; engines' workers have their own loops."""
    backend: str = request.param
    return backend
