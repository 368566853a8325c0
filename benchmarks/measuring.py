"""Measurements of rates, latencies and processor time."""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.sides.side import settled

#: Callers of "100 in flight".
CALLERS = 100


@dataclass(frozen=True)
class Plan:
    """The amount of measuring."""

    quick: bool

    @property
    def seconds(self) -> float:
        """Return the seconds of each rate measurement."""
        return 0.03 if self.quick else 1.0

    @property
    def latencies(self) -> int:
        return 5 if self.quick else 200

    def drained(self, jobs: int) -> int:
        return 50 if self.quick else jobs


async def one_after_another(call: Callable[[], Any], seconds: float) -> float:
    """Return how many calls per second one caller makes."""
    made, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        await settled(call())
        made += 1
    return made / (time.perf_counter() - begun)


async def in_flight(call: Callable[[], Any], seconds: float) -> float:
    """Return how many calls per second a hundred callers make, each one call at a time."""
    begun = time.perf_counter()
    made = await _called(call, lambda _: time.perf_counter() - begun < seconds)
    return len(made) / (time.perf_counter() - begun)


async def many(call: Callable[[], Any], count: int) -> list[Any]:
    """Return the results of this many calls, a hundred at a time."""
    return await _called(call, lambda begun: begun < count)


async def _called(call: Callable[[], Any], more: Callable[[int], bool]) -> list[Any]:
    found: list[Any] = []
    begun = 0

    async def caller() -> None:
        nonlocal begun
        while more(begun):
            begun += 1
            found.append(await call())

    def blocking_caller() -> None:
        nonlocal begun
        while more(begun):
            begun += 1  # two threads may count one: an additional call, which `found` includes
            found.append(call())

    if inspect.iscoroutinefunction(call):
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    else:
        with ThreadPoolExecutor(CALLERS) as threads:
            for done in [threads.submit(blocking_caller) for _ in range(CALLERS)]:
                done.result()
    return found


async def latencies(call: Callable[[], Awaitable[object]], count: int) -> dict[str, float]:
    """Return the milliseconds of a call, for calls with pauses between them."""
    taken: list[float] = []
    for number in range(count):
        # Pauses of different lengths: no timer of the other side can synchronise with them.
        await asyncio.sleep(0.004 + 0.008 * (number * 37 % 100) / 100)
        begun = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - begun))
    cuts = statistics.quantiles(taken, n=20, method="inclusive")
    return {"latency p50 [ms]": cuts[9], "latency p95 [ms]": cuts[18]}


async def until(condition: Callable[[], Any], check: Callable[[], None], seconds: float) -> None:
    """Wait until a condition is true; `check` raises if it can no longer become true."""
    give_up = time.perf_counter() + seconds
    while not await settled(condition()):
        check()
        if time.perf_counter() > give_up:
            raise TimeoutError(f"nothing came within {seconds:.0f} s")
        await asyncio.sleep(0.001)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return some of the items, evenly spaced, including the last one."""
    step = max(1, len(items) // count)
    return list(items[::-step])
