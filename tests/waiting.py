"""Wait for a condition by polling, if no notification can be awaited. All tests use these two."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable

import anyio

#: For a busy machine; only a test that fails takes this long.
PATIENCE_SECONDS = 60.0

_PAUSE_SECONDS = 0.005


async def until(
    condition: Callable[[], object | Awaitable[object]], *, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return when the condition is true; raise `AssertionError` if it is not within `seconds`."""
    with anyio.move_on_after(seconds):
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            await anyio.sleep(_PAUSE_SECONDS)
    raise AssertionError(f"not true after {seconds} s: {inspect.getsource(condition).strip()}")


def until_sync(condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return when the condition is true, for tests without an event loop; raise as `until`."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= give_up_at:
            source = inspect.getsource(condition).strip()
            raise AssertionError(f"not true after {seconds} s: {source}")
        time.sleep(_PAUSE_SECONDS)
