"""The stores, one module or package each, selected by the scheme of a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from urllib.parse import urlsplit

from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Store
from asyncjobs.stores.urls import check_characters

Make = Callable[[str], Store]

_BUILT_IN = {
    "memory": "asyncjobs.stores.memory:from_url",
    "sqlite": "asyncjobs.stores.sqlite:from_url",
    **dict.fromkeys(("postgresql", "postgres"), "asyncjobs.stores.postgres:from_url"),
    **dict.fromkeys(
        ("redis", "rediss", "valkey", "valkeys", "unix"), "asyncjobs.stores.redis:from_url"
    ),
}


def store_from_url(url: str) -> Store:
    """Make the store for a URL without opening it; raise `ConfigurationError` if none matches.

    Third-party stores register a function from URL to store under the entry point group
    `asyncjobs.stores`, named by the scheme.
    """
    check_characters("The URL of the store", url)
    scheme = _scheme_of(url)
    if scheme in _BUILT_IN:
        return _load(*_BUILT_IN[scheme].split(":"))(url)
    found = entry_points(group="asyncjobs.stores")
    if scheme not in found.names:
        known = ", ".join(sorted({*_BUILT_IN, *found.names}))
        # The message must not quote the URL, which may contain a password.
        raise ConfigurationError(
            f"No store has the URL scheme {scheme!r} (known schemes: {known})."
        )
    return _registered(found[scheme])(url)


def _scheme_of(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        # The original message quotes the URL, which may contain a password.
        raise ConfigurationError("The URL of the store is malformed.") from None


def _registered(entry: EntryPoint) -> Make:
    try:
        make: Make = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"The store for {entry.name}:// cannot be loaded from {entry.value}: {error}"
        ) from error
    return make


def _load(module: str, name: str) -> Make:
    try:
        make: Make = getattr(import_module(module), name)
    except ImportError as error:
        extra = module.rpartition(".")[2]
        raise ConfigurationError(
            f"The {extra} store {_reason_of(error)}: pip install 'asyncjobs-http[{extra}]'."
        ) from error
    return make


def _reason_of(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"needs the package {(error.name or '').partition('.')[0]!r}"
    # The driver is installed but incomplete, for example psycopg without libpq.
    return f"cannot load its driver ({str(error).partition(chr(10))[0].rstrip('.')})"
