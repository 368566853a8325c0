"""Calls to a server are repeated in one rhythm, whichever server it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

E = TypeVar("E", bound=Exception)
T = TypeVar("T")

# A dropped connection is made anew within these; a server that stays away is reported.
_PAUSES_SECONDS = (0.05, 0.2)


async def with_retries(
    call: Callable[[], Awaitable[T]], failure: type[E], may_repeat: Callable[[E], bool]
) -> T:
    """Make a call, and make it again after a failure for which `may_repeat` returns True.

    The last of three attempts raises what it raises.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return await call()
        except failure as error:
            if not may_repeat(error):
                raise
        await anyio.sleep(pause)
    return await call()
