"""The background event loop: started on demand, once per process, and closed at exit."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobId, JobStatus, Store
from asyncjobs.errors import StoreUnavailable
from asyncjobs.portal import Portal
from asyncjobs.testing import FaultyStore
from tests.everywhere import SERVERS, variant
from tests.waiting import until, until_sync

pytestmark = pytest.mark.every_store

# An SQLite file must not be open across a fork.
OPEN_ACROSS_FORKS = [variant((kind,), thorough=kind in SERVERS) for kind in ("memory", *SERVERS)]

VARIABLE = ContextVar("VARIABLE", default="")

FORKING = """
import os, sys
from asyncjobs import AsyncJobs, JobContext
from asyncjobs.portal import Portal

jobs = AsyncJobs(sys.argv[1])

@jobs.handler("pid")
async def pid(_: None, __: JobContext) -> int:
    return os.getpid()

portal = Portal(jobs)

def run() -> int:
    job = portal.call(jobs.enqueue, "pid", None)
    return portal.call(jobs.wait, job.id).result

assert run() == os.getpid()
if "close" in sys.argv:
    portal.close()
child = os.fork()
if child == 0:
    assert not jobs.is_open
    portal.close()  # the child has nothing to close, and must not touch the parent's
    assert run() == os.getpid()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert run() == os.getpid()
print("done")
"""

FORGETTING = """
import atexit, gc, os, signal, sys
from asyncjobs import AsyncJobs
from asyncjobs.portal import Portal

jobs = AsyncJobs(sys.argv[1])
portal = Portal(jobs)
portal.start()
child = os.fork()
if child == 0:
    signal.alarm(5)
    # As the interpreter does at its end, in this order or another.
    atexit._run_exitfuncs()
    vars(portal).clear()
    del portal
    gc.collect()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""

LEAVING = """
import sys, time
from asyncjobs import AsyncJobs, JobContext
from asyncjobs.portal import Portal

jobs = AsyncJobs(sys.argv[1])

@jobs.handler("nap")
async def nap(_: None, __: JobContext) -> str:
    import anyio
    await anyio.sleep(0.3)
    return "rested"

portal = Portal(jobs)
print(portal.call(jobs.enqueue, "nap", None).id)
"""


def make_jobs(store: str | Store) -> AsyncJobs:
    jobs = AsyncJobs(store)

    @jobs.handler("thread")
    async def thread(_: None, __: JobContext) -> str:
        return threading.current_thread().name

    return jobs


@pytest.fixture
def portal(new_url: Callable[[], str]) -> Generator[tuple[Portal, AsyncJobs]]:
    jobs = make_jobs(new_url())
    portal = Portal(jobs)
    yield portal, jobs
    portal.close()


def run(portal: Portal, jobs: AsyncJobs) -> object:
    job = portal.call(jobs.enqueue, "thread", None)
    return portal.call(jobs.wait, job.id).result


def loops() -> int:
    return sum(thread.name == "asyncjobs" for thread in threading.enumerate())


def loop_of(portal: Portal) -> int:
    return id(portal.start())


def python(code: str, *arguments: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout


def test_the_queue_is_opened_by_the_first_call_and_runs_in_the_background(
    portal: tuple[Portal, AsyncJobs],
) -> None:
    assert not portal[1].is_open
    assert run(*portal) == "asyncjobs"
    assert portal[1].is_open


def test_many_threads_share_one_loop(portal: tuple[Portal, AsyncJobs]) -> None:
    with ThreadPoolExecutor(8) as threads:
        loops = set(threads.map(loop_of, [portal[0]] * 50))
    assert len(loops) == 1


def test_an_error_of_a_call_is_raised_to_its_caller(portal: tuple[Portal, AsyncJobs]) -> None:
    async def raises() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        portal[0].call(raises)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("awaits", [True, False])
def test_an_error_that_ends_the_event_loop_is_raised_and_the_next_call_opens_the_queue_again(
    portal: tuple[Portal, AsyncJobs],
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    *,
    awaits: bool,
) -> None:
    async def raises_later() -> None:
        raise error

    def raises_at_once() -> Any:
        raise error

    assert run(*portal) == "asyncjobs"
    with pytest.raises(error):
        portal[0].call(raises_later if awaits else raises_at_once)
    until_sync(lambda: not loops())
    assert run(*portal) == "asyncjobs"
    assert "closed by an error and is opened again" in caplog.text


def test_a_call_has_the_context_of_its_thread(portal: tuple[Portal, AsyncJobs]) -> None:
    async def read() -> str:
        return VARIABLE.get()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(VARIABLE.set, "of the thread").result()
        assert threads.submit(portal[0].call, read).result() == "of the thread"
    assert VARIABLE.get() == ""


def test_a_call_that_is_cancelled_in_the_event_loop_raises_cancelled(
    portal: tuple[Portal, AsyncJobs],
) -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    with pytest.raises(CancelledError):
        portal[0].call(cancelled)


def test_a_call_in_the_portals_own_event_loop_raises(portal: tuple[Portal, AsyncJobs]) -> None:
    async def wait_for_itself() -> None:
        portal[0].call(anyio.sleep, 0)

    with pytest.raises(RuntimeError, match="block forever"):
        portal[0].call(wait_for_itself)


def test_closing_waits_for_calls_under_way_and_refuses_later_ones(
    portal: tuple[Portal, AsyncJobs],
) -> None:
    begun, loop = threading.Event(), portal[0].start()

    async def last() -> str:
        begun.set()
        await until(lambda: not portal[1].is_open)
        return "done"

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(loop.call, last)
        assert begun.wait(60)
        portal[0].close()
        assert call.result() == "done"
    with pytest.raises(RuntimeError, match="not open"):
        loop.call(last)


def test_a_signal_handler_can_make_a_call_during_another_call(
    portal: tuple[Portal, AsyncJobs],
) -> None:
    async def count() -> None:
        counted.append(1)

    counted: list[int] = []
    main = threading.main_thread().ident
    assert main is not None

    def on_signal(_number: int, _frame: object) -> None:
        portal[0].call(count)

    before = signal.signal(signal.SIGUSR1, on_signal)
    calls = 0
    try:
        while len(counted) < 20:
            signal.pthread_kill(main, signal.SIGUSR1)
            portal[0].call(anyio.sleep, 0)
            calls += 1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls >= 20


def test_a_closed_portal_is_opened_again_by_the_next_call(
    portal: tuple[Portal, AsyncJobs],
) -> None:
    assert run(*portal) == "asyncjobs"
    portal[0].close()
    assert not portal[1].is_open
    assert run(*portal) == "asyncjobs"


def test_closing_a_portal_that_is_not_open_does_nothing(portal: tuple[Portal, AsyncJobs]) -> None:
    portal[0].close()
    portal[0].close()
    assert not portal[1].is_open


def test_a_queue_that_could_not_be_opened_is_opened_by_a_later_call(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    jobs = make_jobs(f"sqlite:///{folder / 'jobs.db'}")
    portal = Portal(jobs)
    before = loops()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            portal.start()
    assert loops() == before
    folder.mkdir()
    assert run(portal, jobs) == "asyncjobs"
    portal.close()


def test_an_error_while_closing_is_raised_to_the_caller(store: Any) -> None:
    class Stuck(FaultyStore):
        async def __aexit__(self, *_: object) -> None:
            await self.store.__aexit__(None, None, None)
            raise OSError("the disk is gone")

    jobs = make_jobs(Stuck(store))
    portal = Portal(jobs)
    assert run(portal, jobs) == "asyncjobs"
    with pytest.raises(OSError, match="the disk is gone"):
        portal.close()


@pytest.mark.own_store
@pytest.mark.parametrize("store_kind", OPEN_ACROSS_FORKS, indirect=True, scope="session")
def test_a_forked_child_starts_its_own_loop(new_url: Callable[[], str]) -> None:
    assert python(FORKING, new_url()) == "done\n"


def test_a_forked_child_opens_its_own_store_if_the_parent_closed_it(
    new_url: Callable[[], str],
) -> None:
    assert python(FORKING, new_url(), "close") == "done\n"


def test_a_forked_child_drops_the_loop_of_its_parent_without_waiting(
    new_url: Callable[[], str],
) -> None:
    assert python(FORGETTING, new_url()) == ""


@pytest.mark.every_store(without="memory")
def test_running_jobs_finish_at_the_end_of_the_process(
    new_url: Callable[[], str],
) -> None:
    url = new_url()
    job_id = python(LEAVING, url).strip()
    jobs = AsyncJobs(url)
    portal = Portal(jobs)
    job = portal.call(jobs.find, JobId(job_id))
    assert (job.status, job.result) == (JobStatus.COMPLETED, "rested")
    portal.close()
