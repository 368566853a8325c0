"""What opening a store checks and keeps, whichever store it is."""

from __future__ import annotations

import asyncio
import os
from typing import Generic, TypeVar

from asyncjobs.errors import ConfigurationError, NotOpen, SchemaError

T = TypeVar("T")

# What forks copied into this process. Its connections are the parent's: to close them here, as
# forgetting them would, harms the parent.
_inherited: list[object] = []


def require_asyncio(store: str, *, driver: str) -> None:
    """Raise `ConfigurationError` if the running event loop is not asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"The {store} store needs asyncio: its driver, {driver}, knows no other event loop, "
            "such as trio's."
        ) from None


def require_version(store: str, found: int | str, known: int) -> None:
    """Raise `SchemaError` if the data has another schema version than this package knows."""
    if found != known:
        raise SchemaError(store, f"it has schema version {found}, this asyncjobs knows {known}")


class OpenState(Generic[T]):
    """What a store has only while it is open, and only in the process that opened it."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._value: T | None = None
        self._pid = 0

    def set(self, value: T) -> None:
        """Keep the value until `clear`."""
        if self._value is not None and self._pid != os.getpid():
            _inherited.append(self._value)
        self._value, self._pid = value, os.getpid()

    def get(self) -> T:
        """Return the value; raise `NotOpen` if there is none, or if it is another process's."""
        if self._value is None or self._pid != os.getpid():
            raise NotOpen(f"The store {self._store}")
        return self._value

    def clear(self) -> T:
        """Return the value and forget it; raise as `get`."""
        value = self.get()
        self._value = None
        return value
