"""Signals and answers: kept until awaited, bounded in time, and safe from cancellations."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from asyncjobs.records.waiting import Answer, Signal
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_signal_set_twice_before_a_wait_is_kept_once() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    await signal.wait()
    with anyio.move_on_after(0.01) as scope:
        await signal.wait()
    assert scope.cancelled_caught


async def test_a_signal_wakes_the_task_that_waits() -> None:
    signal, woken = Signal(), anyio.Event()

    async def wait() -> None:
        await signal.wait(60)
        woken.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            signal.set()
            await woken.wait()


async def test_a_signal_wakes_all_waiting_tasks() -> None:
    signal = Signal()
    woken: list[float] = []

    async def wait(timeout: float) -> None:
        await signal.wait(timeout)
        woken.append(timeout)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for timeout in (60, 0.01, 70):
                tasks.start_soon(wait, timeout)
            await until(lambda: woken == [0.01])
            signal.set()
    assert sorted(woken) == [0.01, 60, 70]


async def test_a_wait_for_a_signal_has_a_timeout() -> None:
    signal = Signal()
    with anyio.fail_after(30):
        await signal.wait(0.01)
        await signal.wait(0)


async def test_a_cancelled_wait_does_not_use_up_the_signal() -> None:
    signal = Signal()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await signal.wait()
    signal.set()
    with anyio.fail_after(30):
        await signal.wait()


async def test_only_the_first_answer_is_kept() -> None:
    answer: Answer[int] = Answer()
    answer.succeed(1)
    answer.fail(ValueError())
    assert await answer.wait(0)
    assert answer.get() == 1
    refusal: Answer[int] = Answer()
    refusal.fail(ValueError("no"))
    refusal.succeed(1)
    with pytest.raises(ValueError, match="no"):
        refusal.get()


async def test_a_wait_for_an_answer_has_a_timeout() -> None:
    assert not await Answer[int]().wait(0.01)


async def test_a_caller_cancelled_by_a_scope_gets_its_answer_first() -> None:
    answer: Answer[int] = Answer()
    learned: list[int] = []

    async def ask() -> None:
        assert await answer.wait(60)
        learned.append(answer.get())
        await anyio.lowlevel.checkpoint()
        learned.append(0)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            answer.succeed(1)
    assert learned == [1]


async def test_a_cancelled_caller_waits_no_longer_than_its_timeout() -> None:
    with anyio.fail_after(30), anyio.CancelScope() as scope:
        scope.cancel()
        await Answer[int]().wait(0.05)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_asyncio_cancellation_is_not_mistaken_for_that_of_a_scope() -> None:
    answer: Answer[int] = Answer()
    scope = anyio.CancelScope()

    async def ask() -> None:
        with scope:
            await answer.wait(60)

    task = asyncio.create_task(ask())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    scope.cancel()
    answer.succeed(1)
    with anyio.fail_after(30), pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_asyncio_cancellation_is_raised_after_the_answer() -> None:
    answer: Answer[int] = Answer()
    task = asyncio.create_task(answer.wait(60))
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    answer.succeed(1)
    with anyio.fail_after(30), pytest.raises(asyncio.CancelledError):
        await task
