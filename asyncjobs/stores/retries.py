"""Repeats calls to a server with the same pauses for every store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

E = TypeVar("E", bound=Exception)
T = TypeVar("T")

# Long enough to replace a dropped connection, short enough to report a server that stays down.
_PAUSES_SECONDS = (0.05, 0.2)


async def with_retries(
    call: Callable[[], Awaitable[T]], failure: type[E], may_repeat: Callable[[E], bool]
) -> T:
    """Make a call, and repeat it after a failure for which `may_repeat` returns True.

    There are at most three attempts; the error of the last one is raised.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return await call()
        except failure as error:
            if not may_repeat(error):
                raise
        await anyio.sleep(pause)
    return await call()
