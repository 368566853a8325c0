"""Daemon threads, which the interpreter does not join at exit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from asyncjobs.core.job import new_job_id
from asyncjobs.execution.threads import ThreadQueue, in_new_thread
from asyncjobs.stores.sqlite import SqliteStore
from tests.waiting import until

pytestmark = pytest.mark.anyio


def threads(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == name]


async def test_a_call_returns_the_value_or_raises_the_error_of_its_function() -> None:
    assert await in_new_thread(lambda: 42, "test value").result() == 42
    with pytest.raises(ZeroDivisionError):
        await in_new_thread(lambda: 1 // 0, "test error").result()


async def test_the_end_of_a_call_is_reported_in_the_event_loop() -> None:
    reported: list[threading.Thread] = []
    call = in_new_thread(
        threading.current_thread, "test end", lambda: reported.append(threading.current_thread())
    )
    assert await call.result() not in reported
    assert reported == [threading.current_thread()]
    assert not call.alive


async def test_the_interpreter_does_not_wait_for_daemon_threads() -> None:
    calls = ThreadQueue("test daemon")
    calls.start()
    assert (await calls.call(threading.current_thread)).daemon
    calls.close()
    assert (await in_new_thread(threading.current_thread, "test other").result()).daemon


async def test_a_queue_of_calls_is_busy_until_they_have_returned() -> None:
    calls = ThreadQueue("test busy")
    calls.start()
    assert not calls.busy
    assert await calls.call(lambda: calls.busy) is True
    assert not calls.busy
    with pytest.raises(ZeroDivisionError):
        await calls.call(lambda: 1 // 0)
    assert not calls.busy
    calls.close()


async def test_the_thread_of_a_closed_queue_ends_after_its_calls() -> None:
    calls = ThreadQueue("test closing")
    calls.start()
    assert await calls.call(lambda: "before") == "before"
    assert len(threads("test closing")) == 1
    calls.close()
    await until(lambda: not threads("test closing"))


async def test_a_closed_sqlite_store_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threads("asyncjobs sqlite"))
    async with SqliteStore(tmp_path / "jobs.db") as store:
        await store.get([new_job_id()])
        opened = set(threads("asyncjobs sqlite")) - before
        assert len(opened) == 1
    await until(lambda: opened.isdisjoint(threads("asyncjobs sqlite")))
