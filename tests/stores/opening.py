"""Open a store and close it again."""

from __future__ import annotations

from asyncjobs.protocols import Store


async def open_and_close(store: Store) -> None:
    async with store:
        pass
