"""The error for an engine that is not installed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def needs_extra(name: str) -> Generator[None]:
    """Make a failed import inside the block name the extra to install.

    Only `asyncjobs.dispatchers.<name>` imports the engine of that name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"asyncjobs.dispatchers.{name} needs the package {error.name}: "
            f"pip install 'asyncjobs-http[{name}]'.",
            name=error.name,
            path=error.path,
        ) from error
