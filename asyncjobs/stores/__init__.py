"""Stores, each in a module of its own, found by the scheme of a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Store

_BUILT_IN = {
    "memory": "asyncjobs.stores.memory:from_url",
    "sqlite": "asyncjobs.stores.sqlite:from_url",
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), "asyncjobs.stores.redis:from_url"),
}


def store_from_url(url: str) -> Store:
    """Make the store a URL names, unopened; raise `ConfigurationError` where none does.

    Others than the built-in ones register a function from URL to store under the entry point
    group `asyncjobs.stores`, by scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        try:
            make: Callable[[str], Store] = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"The store for {scheme}:// needs the package {error.name!r}: "
                f"install asyncjobs-http[{module.rpartition('.')[2]}]."
            ) from error
        return make(url)
    found = entry_points(group="asyncjobs.stores")
    if scheme not in found.names:
        known = ", ".join(sorted({*_BUILT_IN, *found.names}))
        raise ConfigurationError(f"No store is known for the URL {url!r} (known schemes: {known}).")
    made: Store = found[scheme].load()(url)
    return made
