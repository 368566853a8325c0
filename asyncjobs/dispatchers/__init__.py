"""The dispatchers, one module each; those that need no arguments can be selected by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Dispatcher

Make = Callable[[], Dispatcher]

_BY_NAME: dict[str, Make] = {
    "local": LocalDispatcher,
    "worker": WorkerDispatcher,
}


def dispatcher_from_name(name: str) -> Dispatcher:
    """Make the dispatcher of that name; raise `ConfigurationError` if there is none.

    Third-party dispatchers register a function without arguments under the entry point group
    `asyncjobs.dispatchers`, by name.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]()
    found = entry_points(group="asyncjobs.dispatchers")
    if name not in found.names:
        known = ", ".join(sorted({*_BY_NAME, *found.names}))
        raise ConfigurationError(f"No dispatcher is named {name!r} (known: {known}).")
    return _registered(found[name])()


def _registered(entry: EntryPoint) -> Make:
    try:
        make: Make = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"The dispatcher {entry.name!r} cannot be loaded from {entry.value}: {error}"
        ) from error
    return make
