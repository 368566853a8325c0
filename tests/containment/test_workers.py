"""A misbehaving handler in a worker process only ends its own job; the worker goes on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType

import pytest

from asyncjobs import AsyncJobs
from tests.conftest import ask
from tests.everywhere import SERVERS
from tests.queues import finished
from tests.waiting import until

from .hosts import Host
from .matrix import Combination, ending, misbehave_beside_others, parametrized
from .misbehaviour import PROCESS

pytestmark = pytest.mark.anyio

Find = Callable[[str], Host]


@pytest.fixture(scope="session")
def host_of(
    new_url: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Generator[Find]:
    """Start a worker of each kind on this store; all tests share them."""
    made: dict[str, Host] = {}

    def find(way: str) -> Host:
        if way not in made:
            broker = None
            if way == "saq":
                broker = f"{request.getfixturevalue('redis_url')}/5"
                ask(broker, "FLUSHDB")
            made[way] = Host(tmp_path_factory.mktemp("worker"), new_url(), broker)
            made[way].start()
        return made[way]

    yield find
    for host in made.values():
        try:
            assert host.stop() == 0
        finally:
            host.kill()


@parametrized((("worker", "sqlite"), ("saq", "sqlite")), ways=("worker", "saq"))
async def test_a_misbehaving_handler_does_not_damage_its_worker(
    combination: Combination, host_of: Find, kinds: ModuleType, tmp_path: Path
) -> None:
    host = host_of(combination.way)
    async with host.client(kinds) as jobs:
        process = (await finished(jobs, "healthy")).result
        if combination.form in PROCESS:
            await finished(jobs, "healthy in process")
        before = await census(jobs)
        done = await misbehave_beside_others(jobs, combination.kind, combination.form, tmp_path)
        assert (await finished(jobs, "healthy")).result == process

        async def nothing_is_left() -> bool:
            return not await census(jobs) - before

        # Drivers of servers open connections at any time: SQLite shows the handlers' leaks.
        if combination.store not in SERVERS:
            await until(nothing_is_left)
    assert host.alive
    assert ending(done) == combination.kind.ends
    if ending(done) != "worker_lost":
        assert done.attempt == 1


async def census(jobs: AsyncJobs) -> Counter[str]:
    """Count the tasks, threads and open files of the worker, by names without numbers."""
    found = (await finished(jobs, "census")).result
    assert isinstance(found, list)
    return Counter(re.sub(r"job_[0-9a-f-]+|\d+", "", str(one)) for one in found)
