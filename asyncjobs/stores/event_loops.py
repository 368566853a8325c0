"""The event loops that the drivers of stores know."""

from __future__ import annotations

import asyncio

from asyncjobs.errors import ConfigurationError


def require_asyncio(store: str, *, driver: str) -> None:
    """Raise `ConfigurationError` where the running event loop is not asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"The {store} store needs asyncio: its driver, {driver}, knows no other event loop, "
            "such as trio's."
        ) from None
