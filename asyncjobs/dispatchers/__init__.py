"""Dispatchers, each in a module of its own; those that need nothing are known by name."""

from __future__ import annotations

from collections.abc import Callable

from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Dispatcher

_BY_NAME: dict[str, Callable[[], Dispatcher]] = {
    "local": LocalDispatcher,
    "worker": WorkerDispatcher,
}


def dispatcher_from_name(name: str) -> Dispatcher:
    """Make the dispatcher of that name; raise `ConfigurationError` where there is none."""
    if name not in _BY_NAME:
        known = ", ".join(_BY_NAME)
        raise ConfigurationError(f"No dispatcher is named {name!r} (known: {known}).")
    return _BY_NAME[name]()
