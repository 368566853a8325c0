"""Worker processes are killed, suspended and lose their store: no job is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncjobs.stores import store_from_url
from tests.chaos.checker import violations
from tests.chaos.crowd import Workers, besiege, web_process
from tests.chaos.recording import Notes, Recorded, read_notes

if TYPE_CHECKING:
    from tests.conftest import PostgresServer, Serve

pytestmark = pytest.mark.anyio

#: How many jobs each test has. 2,000 find more errors, and take a minute or two.
JOBS = int(os.environ.get("ASYNCJOBS_CHAOS_JOBS", "400"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Site:
    url: str
    restart: Callable[[], None] | None


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Return a store's URL and how to restart it; SQLite has no server."""
    if request.param == "sqlite":
        return Site(f"sqlite:///{tmp_path / 'jobs.db'}", None)
    fixture = {"postgresql": "postgresql_site", "redis": "redis_site"}[request.param]
    made: Site = request.getfixturevalue(fixture)
    return made


@pytest.fixture
def postgresql_site(postgres: PostgresServer, schema: str) -> Site:
    def restart() -> None:
        with postgres.away():
            pass

    return Site(f"{postgres.url}?asyncjobs_schema={schema}", restart)


@pytest.fixture
def redis_site(serve: Serve) -> Site:
    server = serve("--appendonly", "yes", "--appendfsync", "always")

    def restart() -> None:
        server.kill()
        server.start()

    return Site(server.url, restart)


@pytest.fixture
def workers(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path, site.url, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("workers", [2, 8], indirect=True)
async def test_every_accepted_job_ends_once_by_its_recorded_attempt(
    site: Site, workers: Workers, tmp_path: Path, record_property: Callable[[str, int], None]
) -> None:
    customers = web_process(Recorded(store_from_url(site.url), Notes(tmp_path)), workers.size)
    await besiege(workers, customers, JOBS, site.restart)
    history = read_notes(tmp_path)
    assert violations(history) == []
    losses = sum(event["losses"] for event in history if event["what"] == "final")
    assert losses > 0, "no worker was lost in the middle of a job"
    record_property("jobs", JOBS)
    record_property("attempts whose worker was killed", losses)
    assert len(set(customers.accepted)) == JOBS
    assert "An internal loop failed" not in workers.log.read_text()
