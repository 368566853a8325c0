"""A worker stops whatever its handlers do; a job that kills workers is isolated."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest

from asyncjobs import AsyncJobs, Job, JobId, JobStatus
from asyncjobs.testing import TcpProxy
from tests.everywhere import SERVERS
from tests.queues import finished, running, settled
from tests.waiting import PATIENCE_SECONDS, until

from .hosts import Host
from .matrix import ending
from .misbehaviour import DEADLY

pytestmark = pytest.mark.anyio

sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True, scope="session")

#: The exit code of a process that did not stop by itself in time.
FORCED = 70

#: The form and the exit code, which is 0 if the process ends by itself.
EXITS = {
    "swallows_cancellations": ("async", 0),
    "swallows_everything": ("async", 0),
    "leaves_a_thread": ("async", 1),
    "holds_its_thread": ("thread", 0),
    "never_yields": ("async", FORCED),
}

#: By the number of signals: the grace period, and how long the process may take after the last
#: signal. One signal leaves the grace period and five seconds, two leave three seconds; a busy
#: machine may add some to each.
BOUNDS = {1: (1, 6 + 2), 2: (60, 3 + 2)}

MakeHost = Callable[..., Host]

HEALTHY = 9


@pytest.fixture
def make_host(tmp_path: Path, new_url: Callable[[], str]) -> Generator[MakeHost]:
    made: list[Host] = []

    def make(**environment: str) -> Host:
        made.append(Host(tmp_path, new_url(), **environment))
        return made[-1]

    yield make
    for host in made:
        host.kill()


async def work_until(jobs: AsyncJobs, host: Host, ids: list[JobId]) -> list[Job]:
    """Restart the worker whenever it ends; return the jobs when all have ended."""

    async def all_have_ended() -> bool:
        if not host.alive:
            host.start()
        return all([(await jobs.find(one)).status.terminal for one in ids])

    await until(all_have_ended, seconds=3 * PATIENCE_SECONDS)
    return [await jobs.find(one) for one in ids]


@sqlite
@pytest.mark.parametrize("name", EXITS)
@pytest.mark.parametrize("signals", BOUNDS)
async def test_a_worker_stops_in_time_although_a_handler_goes_on(
    make_host: MakeHost, kinds: ModuleType, name: str, signals: int
) -> None:
    form, code = EXITS[name]
    grace, bound = BOUNDS[signals]
    host = make_host(GRACE=str(grace), LEASE="3")
    async with host.client(kinds) as jobs:
        host.start()
        job = await running(jobs, form, name)
        host.process.terminate()
        if signals == 2:
            await until(lambda: "SIGTERM: drain" in host.log.read_text())
            host.process.terminate()
        assert await host.ended(within=bound) == code
        [_, after] = host.log.read_text().split("SIGTERM: drain")
        assert job.id in after
        if name != "never_yields":
            back = await jobs.find(job.id)
            assert (back.status, back.losses, back.releases) == (JobStatus.PENDING, 0, 1)
        await jobs.cancel(job.id)
        host.start()
        assert (await finished(jobs, "healthy")).status is JobStatus.COMPLETED
        assert (await jobs.wait(job.id, timeout=PATIENCE_SECONDS)).status is JobStatus.CANCELLED


@pytest.mark.parametrize("store_kind", SERVERS, indirect=True, scope="session")
@pytest.mark.parametrize("signals", BOUNDS)
async def test_a_worker_stops_in_time_although_its_store_is_silent(
    new_url: Callable[[], str], kinds: ModuleType, tmp_path: Path, signals: int
) -> None:
    grace, bound = BOUNDS[signals]
    url, go_on = new_url(), tmp_path / "go on"
    server = urlsplit(url)
    after = Host(tmp_path, url, LEASE="3")
    with TcpProxy(server.hostname or "127.0.0.1", server.port or 5432) as wire, ExitStack() as ends:
        host = Host(tmp_path, wire.through(url), GRACE=str(grace), LEASE="3")
        ends.callback(host.kill)
        ends.callback(after.kill)
        async with after.client(kinds) as jobs:
            host.start()
            job = await running(jobs, "neighbour", go_on)
            wire.stall()
            host.process.terminate()
            if signals == 2:
                await until(lambda: "SIGTERM: drain" in host.log.read_text())
                host.process.terminate()
            await host.ended(within=bound)
            go_on.touch()
            after.start()
            assert (await settled(jobs, job.id)).result == "done"


@sqlite
@pytest.mark.parametrize("name", ["never_yields", "stops_the_event_loop"])
async def test_the_log_names_the_job_that_stops_the_event_loop(
    make_host: MakeHost, kinds: ModuleType, name: str
) -> None:
    host = make_host()
    async with host.client(kinds) as jobs:
        host.start()
        job = await running(jobs, "async", name)
        said = "has blocked the event loop" if name == "never_yields" else "event loop stopped"
        await until(lambda: said in host.log.read_text())
        if name == "stops_the_event_loop":
            assert job.id in host.log.read_text()


@pytest.mark.every_store(without="memory")
async def test_a_job_that_terminates_its_worker_fails_after_its_max_releases(
    make_host: MakeHost, kinds: ModuleType
) -> None:
    host = make_host(GRACE="0.1")
    async with host.client(kinds) as jobs:
        host.start()
        bad = await jobs.enqueue("few releases", "terminates_the_worker")
        healthy = [await jobs.enqueue("healthy", None) for _ in range(3)]
        [done, *others] = await work_until(jobs, host, [bad.id, *(one.id for one in healthy)])
    assert (ending(done), done.releases, done.losses) == ("worker_lost", 3, 0)
    assert [one.status for one in others] == [JobStatus.COMPLETED] * 3


LOSSES = [(kind.name, form) for kind in DEADLY.values() for form in kind.forms if kind.ends]
LOSSES.remove(("crashes_with_the_worker", "async"))  # on every store, below


async def nine_beside_one(host: Host, kinds: ModuleType, name: str, form: str, file: Path) -> None:
    """Run nine healthy jobs beside one that ends their process; assert that they complete."""
    async with host.client(kinds) as jobs:
        host.start()
        beside = [await running(jobs, "neighbour", file) for _ in range(HEALTHY)]
        bad = await jobs.enqueue(form, name)
        await host.ended()
        file.touch()
        [done, *others] = await work_until(jobs, host, [bad.id, *(one.id for one in beside)])
        assert (await finished(jobs, "healthy")).status is JobStatus.COMPLETED
    assert (ending(done), done.losses) == ("worker_lost", 3)
    assert [one.result for one in others] == ["done"] * HEALTHY


@sqlite
@pytest.mark.parametrize(("name", "form"), LOSSES)
async def test_a_job_that_ends_its_worker_is_isolated_and_fails(
    make_host: MakeHost, kinds: ModuleType, name: str, form: str, tmp_path: Path
) -> None:
    await nine_beside_one(make_host(LEASE="4"), kinds, name, form, tmp_path / "go on")


@pytest.mark.every_store(without="memory")
async def test_a_job_that_crashes_its_worker_is_isolated_on_every_store(
    make_host: MakeHost, kinds: ModuleType, tmp_path: Path
) -> None:
    host = make_host(LEASE="4")
    await nine_beside_one(host, kinds, "crashes_with_the_worker", "async", tmp_path / "go on")
