"""Which queue or store a command is for, and how it is opened: never so that it runs jobs."""

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
from asyncjobs.protocols import Clock, Listing, Store, StoreClock, power_of
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.clock import SharedClock, SystemClock
from asyncjobs.records.repository import Repository
from asyncjobs.stores import store_from_url

_POLL_SECONDS = 1.0


@dataclass
class Target:
    """What the options `--jobs` and `--store`, or their environment variables, have named."""

    jobs: str | None = None
    store: str | None = None

    def find_jobs(self) -> AsyncJobs | None:
        """Import the queue that `--jobs` names; None where only a store was named."""
        return None if self.jobs is None else find_jobs(self.jobs)

    def find_store(self) -> Store:
        """Make the store, unopened."""
        jobs = self.find_jobs()
        if jobs is not None:
            return jobs.store
        if self.store is None:
            raise click.UsageError(
                "Say where the jobs are: by --store URL or --jobs MODULE:ATTRIBUTE, or by the "
                "environment variable ASYNCJOBS_STORE or ASYNCJOBS_JOBS."
            )
        return store_from_url(self.store)


pass_target = click.make_pass_decorator(Target, ensure=True)


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Note an option; what is said on the command line goes before the environment."""
    if value is None:
        return
    target = context.ensure_object(Target)
    said = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ranks: dict[str, bool] = context.meta.setdefault("asyncjobs.targets", {})
    if said and any(ranks.values()):
        raise click.UsageError("Give --jobs or --store, not both.", context)
    if not said and ranks:
        return
    target.jobs = target.store = None
    setattr(target, parameter.name, value)
    ranks[parameter.name] = said


def with_target(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where the jobs are; it is called with a `Target`."""
    named = click.option(
        "--jobs",
        metavar="MODULE:ATTRIBUTE",
        envvar="ASYNCJOBS_JOBS",
        show_envvar=True,
        expose_value=False,
        callback=_keep,
        help="An AsyncJobs object, or a function that returns one; goes before ASYNCJOBS_STORE.",
    )
    stored = click.option(
        "--store",
        metavar="URL",
        envvar="ASYNCJOBS_STORE",
        show_envvar=True,
        expose_value=False,
        callback=_keep,
        help="A store, such as sqlite:///jobs.db or postgresql://host/database.",
    )
    return named(stored(pass_target(command)))


def find_jobs(spec: str) -> AsyncJobs:
    """Import `module:attribute`, an AsyncJobs or a function that returns one.

    The working directory is looked into first, as servers do. Raises `ConfigurationError` with the
    module's own error where importing it fails.
    """
    module, colon, path = spec.partition(":")
    if not (module and colon and path):
        raise ConfigurationError(f"--jobs is module:attribute, such as app:jobs; got {spec!r}.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = reduce(getattr, path.split("."), import_module(module))
        made: object = found if isinstance(found, AsyncJobs) or not callable(found) else found()
    except Exception as error:
        raise ConfigurationError(f"{spec} cannot be loaded: {_told(error)}.") from error
    if not isinstance(made, AsyncJobs):
        raise ConfigurationError(f"{spec} is no AsyncJobs but of type {type(made).__name__}.")
    return made


def _told(error: Exception) -> str:
    """Tell an error and the line it comes from, where that is not ours or Python's."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [one for one in frames if one.filename != __file__ and one.filename[:1] != "<"]
    own = [one for one in outside if f"{os.sep}importlib{os.sep}" not in one.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    words = str(error).rstrip(".")
    return f"{type(error).__name__}: {words}{place}" if words else f"{type(error).__name__}{place}"


def present(store: Store) -> Store:
    """Refuse a store at a path where nothing is: to look for jobs must not make a file."""
    path = getattr(store, "path", None)
    if isinstance(path, Path) and not path.exists():
        raise StoreUnavailable(str(path), "there is no such file")
    return store


@asynccontextmanager
async def opened(target: Target) -> AsyncGenerator[tuple[Store, Clock]]:
    """Open the store alone, with the clock by which its jobs go."""
    clock = SharedClock(SystemClock())
    async with present(target.find_store()) as store:
        if (store_clock := power_of(store, StoreClock)) is not None:
            await clock.compare(store_clock)
        yield store, clock


@asynccontextmanager
async def reading(target: Target) -> AsyncGenerator[Repository]:
    """Open the store to look: nothing is swept, jobs change only where a reader repairs them."""
    async with opened(target) as (store, clock):
        yield Repository(store, ChangeFeed(poll=_POLL_SECONDS), clock, base=store)


@asynccontextmanager
async def acting(target: Target) -> AsyncGenerator[AsyncJobs]:
    """Open a queue on the store that leaves its jobs to those who run them."""
    async with AsyncJobs(present(target.find_store()), dispatcher="worker") as jobs:
        yield jobs


def listing_of(store: Store) -> Listing:
    """Return the store as one that can list jobs; raise `ConfigurationError` where it cannot."""
    listing = power_of(store, Listing)
    if listing is None:
        raise ConfigurationError("The store cannot list jobs.")
    return listing


def carry_out(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the asynchronous part of a command, on the event loop that all drivers know."""
    anyio.run(work, backend="asyncio")
