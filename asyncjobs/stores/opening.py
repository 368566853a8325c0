"""The checks that all stores make when they open, and the state of an open store."""

from __future__ import annotations

import asyncio
import os
from typing import Generic, TypeVar

from asyncjobs.errors import ConfigurationError, NotOpen, SchemaError

T = TypeVar("T")

# Values copied into this process by a fork. Their connections belong to the parent. Closing them
# here, as garbage collection would, breaks them for the parent.
_inherited: list[object] = []


def require_asyncio(store: str, *, driver: str) -> None:
    """Raise `ConfigurationError` if the running event loop is not asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"The {store} store needs asyncio: its driver, {driver}, does not support other event "
            "loops, such as trio's."
        ) from None


def require_version(store: str, found: int | str, known: int) -> None:
    """Raise `SchemaError` if the data has a schema version other than `known`."""
    if found != known:
        raise SchemaError(store, f"it has schema version {found}, asyncjobs needs {known}")


class OpenState(Generic[T]):
    """The state of an open store, valid only in the process that opened it."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._value: T | None = None
        self._pid = 0

    def set(self, value: T) -> None:
        """Store the value until `clear`."""
        if self._value is not None and self._pid != os.getpid():
            _inherited.append(self._value)
        self._value, self._pid = value, os.getpid()

    def get(self) -> T:
        """Return the value; raise `NotOpen` if there is none or another process set it."""
        if self._value is None or self._pid != os.getpid():
            raise NotOpen(f"The store {self._store}")
        return self._value

    def clear(self) -> T:
        """Return the value and remove it; raise like `get`."""
        value = self.get()
        self._value = None
        return value
