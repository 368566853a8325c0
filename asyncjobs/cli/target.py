"""The queue or store that a command uses, and how it is opened; commands never run jobs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import click
from click.core import ParameterSource

from asyncjobs import AsyncJobs
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.files import FileStorage
from asyncjobs.http.mounts import MountOptions
from asyncjobs.protocols import Clock, Listing, Store, StoreClock, power_of
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.clock import SharedClock, SystemClock
from asyncjobs.records.repository import Repository
from asyncjobs.stores import store_from_url

_POLL_SECONDS = 1.0


@dataclass
class Target:
    """The queue or store named by `--jobs` or `--store`, or by their environment variables."""

    jobs: str | None = None
    store: str | None = None

    def find_jobs(self) -> AsyncJobs | None:
        """Import the queue that `--jobs` names; None if only a store was named."""
        return None if self.jobs is None else find_jobs(self.jobs)

    def find_store(self) -> Store:
        """Return the store, unopened; raise a usage error if none was named."""
        jobs = self.find_jobs()
        if jobs is not None:
            return jobs.store
        if self.store is None:
            raise click.UsageError(
                "Give the store with --store URL or --jobs MODULE:ATTRIBUTE, or in the environment "
                "variable ASYNCJOBS_STORE or ASYNCJOBS_JOBS."
            )
        return store_from_url(self.store)

    def find_files(self) -> FileStorage | None:
        """Return the file storage of the queue; None if only a store was named.

        The default folder of a store is not used: the application may have another one.
        """
        jobs = self.find_jobs()
        return None if jobs is None else jobs.file_storage


pass_target = click.make_pass_decorator(Target, ensure=True)


def _set_target(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Set the target from an option; the command line takes precedence over the environment."""
    if value is None:
        return
    target = context.ensure_object(Target)
    explicit = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    sources: dict[str, bool] = context.meta.setdefault("asyncjobs.targets", {})
    if explicit and any(sources.values()):
        raise click.UsageError("Give --jobs or --store, not both.", context)
    if not explicit and sources:
        return
    target.jobs = target.store = None
    setattr(target, parameter.name, value)
    sources[parameter.name] = explicit


def with_target(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options `--jobs` and `--store` to a command; it is called with a `Target`."""
    jobs_option = click.option(
        "--jobs",
        metavar="MODULE:ATTRIBUTE",
        envvar="ASYNCJOBS_JOBS",
        show_envvar=True,
        expose_value=False,
        callback=_set_target,
        help="An AsyncJobs object or a function that returns one; overrides ASYNCJOBS_STORE.",
    )
    store_option = click.option(
        "--store",
        metavar="URL",
        envvar="ASYNCJOBS_STORE",
        show_envvar=True,
        expose_value=False,
        callback=_set_target,
        help="A store, such as sqlite:///jobs.db or postgresql://host/database.",
    )
    return jobs_option(store_option(pass_target(command)))


def find_jobs(spec: str) -> AsyncJobs:
    """Import `module:attribute`, an AsyncJobs or a function that returns one.

    The working directory is searched first, as servers do. Raises `ConfigurationError` with the
    module's own error if the import fails.
    """
    made = _load("--jobs", spec, lambda found: isinstance(found, AsyncJobs))
    if not isinstance(made, AsyncJobs):
        raise ConfigurationError(f"{spec} must be an AsyncJobs, got {type(made).__name__}.")
    return made


def find_mounts(spec: str) -> list[MountOptions]:
    """Import `module:attribute`, an application, and return the options of its mounts.

    Mounts of an included router are not found. Raises `ConfigurationError` if the import fails or
    nothing is mounted.
    """
    app = _load("--app", spec, lambda found: _mounts_of(found) is not None)
    mounts = _mounts_of(app)
    if not mounts:
        raise ConfigurationError(
            f"No jobs are mounted on {spec}: leave out --app to check the default MountOptions."
        )
    return [one.endpoints.mount.options for one in mounts]


def _mounts_of(app: Any) -> list[Any] | None:
    """Return the mounts that adapters added to an application, without importing a framework."""
    extensions: Any = getattr(app, "extensions", None)
    router: Any = getattr(app, "router", None)
    if extensions is not None:
        return list(extensions.get("asyncjobs", ()))
    if router is not None:
        return list(getattr(router, "asyncjobs_mounts", ()))
    return None


def _load(option: str, spec: str, is_it: Callable[[Any], bool]) -> object:
    """Import `module:attribute`; if it is a factory of the wanted object, call it."""
    module, colon, path = spec.partition(":")
    if not (module and colon and path):
        name = option.removeprefix("--")
        raise ConfigurationError(f"{option} is module:attribute, such as app:{name}; got {spec!r}.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = reduce(getattr, path.split("."), import_module(module))
        made: object = found if is_it(found) or not callable(found) else found()
    except Exception as error:
        raise ConfigurationError(f"{spec} cannot be loaded: {_describe(error)}.") from error
    return made


def _describe(error: Exception) -> str:
    """Return the text of an error with the line of the user's module that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    not_ours = [it for it in frames if it.filename != __file__ and it.filename[:1] != "<"]
    own = [it for it in not_ours if f"{os.sep}importlib{os.sep}" not in it.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    message = str(error).rstrip(".")
    return (
        f"{type(error).__name__}: {message}{place}" if message else f"{type(error).__name__}{place}"
    )


def require_file(store: Store) -> Store:
    """Raise `StoreUnavailable` if the store's file does not exist: reading must not create it."""
    path = getattr(store, "path", None)
    if isinstance(path, Path) and not path.exists():
        reason = (
            "the file does not exist; `asyncjobs migrate` or the first start of the app creates it"
        )
        raise StoreUnavailable(str(path), reason)
    return store


@asynccontextmanager
async def open_store(target: Target) -> AsyncGenerator[tuple[Store, Clock]]:
    """Open the store without a queue, with the clock that applies to its jobs."""
    clock = SharedClock(SystemClock())
    async with require_file(target.find_store()) as store:
        if (store_clock := power_of(store, StoreClock)) is not None:
            await clock.compare(store_clock)
        yield store, clock


@asynccontextmanager
async def open_repository(target: Target) -> AsyncGenerator[Repository]:
    """Open the store for reading; the only writes are the repairs that every reader makes."""
    async with open_store(target) as (store, clock):
        yield Repository(store, ChangeFeed(poll=_POLL_SECONDS), clock, base=store)


@asynccontextmanager
async def open_queue(target: Target) -> AsyncGenerator[AsyncJobs]:
    """Open a queue on the store that runs no jobs."""
    jobs = AsyncJobs(require_file(target.find_store()), dispatcher="worker")
    jobs.file_storage = target.find_files()
    async with jobs:
        yield jobs


def listing_of(store: Store) -> Listing:
    """Return the listing power of a store; raise `ConfigurationError` if it has none."""
    listing = power_of(store, Listing)
    if listing is None:
        raise ConfigurationError("The store cannot list jobs.")
    return listing


def run_async(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the asynchronous part of a command on asyncio, which all drivers support."""
    anyio.run(work, backend="asyncio")
