"""The simulated event loop: time, order, and frozen machines."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import anyio
import pytest

from tests.simulation.loop import MACHINE, NothingHappens, SimulatedLoop, run_simulated

HOUR = 3600.0


def test_time_jumps_to_the_next_timer() -> None:
    async def work(loop: SimulatedLoop) -> float:
        await asyncio.sleep(1000 * HOUR)
        return loop.time()

    assert run_simulated(work, 0) == pytest.approx(1000 * HOUR, abs=1)


def test_a_wait_that_cannot_end_is_an_error() -> None:
    async def work(loop: SimulatedLoop) -> None:
        await loop.create_future()

    with pytest.raises(NothingHappens):
        run_simulated(work, 0)


def test_the_seed_orders_timers_of_the_same_time() -> None:
    async def work(loop: SimulatedLoop) -> list[int]:
        fired: list[int] = []
        for number in range(8):
            loop.call_later(1, fired.append, number)
        await asyncio.sleep(2)
        return fired

    orders = [run_simulated(work, seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_callbacks_of_call_soon_keep_their_order() -> None:
    async def work(loop: SimulatedLoop) -> list[int]:
        called: list[int] = []
        for number in range(100):
            loop.call_soon(called.append, number)
        await asyncio.sleep(1)
        return called

    assert run_simulated(work, 3) == list(range(100))


def test_a_task_that_spins_does_not_stop_time() -> None:
    async def work(loop: SimulatedLoop) -> None:
        async def spin() -> None:
            while loop.time() < HOUR / 60:  # noqa: ASYNC110  # the subject of the test
                await asyncio.sleep(0)

        await asyncio.gather(spin(), asyncio.sleep(HOUR / 60))

    run_simulated(work, 0)


def test_ids_and_random_numbers_come_from_the_seed() -> None:
    async def work(_: SimulatedLoop) -> tuple[Any, ...]:
        return uuid4(), random.random()  # noqa: S311  # no secret

    before = random.getstate()
    assert run_simulated(work, 7) == run_simulated(work, 7) != run_simulated(work, 8)
    assert random.getstate() == before


def on_machine(loop: SimulatedLoop, call: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    context = contextvars.copy_context()
    context.run(MACHINE.set, 1)

    async def body() -> None:
        await call()

    return loop.create_task(body(), context=context)


async def ticks(loop: SimulatedLoop, seen: list[int]) -> None:
    try:
        while True:
            await asyncio.sleep(1)
            seen.append(int(loop.time()))
    finally:
        seen.append(-1)


def test_a_frozen_machine_does_nothing_until_it_is_thawed() -> None:
    async def work(loop: SimulatedLoop) -> list[int]:
        seen: list[int] = []
        task = on_machine(loop, lambda: ticks(loop, seen))
        await asyncio.sleep(2.5)
        loop.freeze(1)
        task.cancel()
        await asyncio.sleep(10)
        assert seen == [1, 2]
        assert loop.tasks_of(1) == [task]
        loop.thaw(1)
        await asyncio.wait({task})
        return seen

    assert run_simulated(work, 0) == [1, 2, -1]


def test_a_thawed_machine_runs_what_became_ready_meanwhile() -> None:
    async def work(loop: SimulatedLoop) -> list[int]:
        seen: list[int] = []
        task = on_machine(loop, lambda: ticks(loop, seen))
        await asyncio.sleep(1.5)
        loop.freeze(1)
        await asyncio.sleep(10)
        loop.thaw(1)
        await asyncio.sleep(1.2)
        task.cancel()
        await asyncio.wait({task})
        return seen

    assert run_simulated(work, 0) == [1, 11, 12, -1]


def test_a_timer_cancelled_while_its_machine_was_frozen_does_not_fire() -> None:
    async def work(loop: SimulatedLoop) -> list[int]:
        fired: list[int] = []
        context = contextvars.copy_context()
        context.run(MACHINE.set, 1)
        handles = [loop.call_later(1, fired.append, n, context=context) for n in range(2)]
        loop.freeze(1)
        await asyncio.sleep(2)
        handles[0].cancel()
        loop.thaw(1)
        await asyncio.sleep(1)
        return fired

    assert run_simulated(work, 0) == [1]


def test_a_simulation_and_other_threads_do_not_disturb_each_other() -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def live() -> None:
        with anyio.CancelScope() as outer:
            with anyio.CancelScope():
                begun.set()
                await asyncio.to_thread(go_on.wait, 60)
                uuid4()
                random.random()  # noqa: S311  # no secret
            outer.cancel()
            await anyio.sleep_forever()

    def simulated(beside: Callable[[], object]) -> list[object]:
        async def work(_: SimulatedLoop) -> list[object]:
            first = uuid4()
            beside()
            return [first, uuid4(), random.random()]  # noqa: S311  # no secret

        return run_simulated(work, 7)

    with ThreadPoolExecutor(1) as threads:
        living = threads.submit(anyio.run, live)
        assert begun.wait(60)

        def let_it_end() -> None:
            go_on.set()
            living.result(60)

        assert simulated(let_it_end) == simulated(lambda: None)
