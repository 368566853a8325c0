"""The options that say which jobs are meant, and how durations are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

import click

from asyncjobs.model import JobStatus
from asyncjobs.protocols import Selection

_DURATION = re.compile(r"(\d{1,6}(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(_context: click.Context, _parameter: click.Parameter, value: str) -> timedelta:
    """Read what an option says: 30s, 15m, 12h or 7d."""
    found = _DURATION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no duration; write 30s, 15m, 12h or 7d.")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def with_selection(*statuses: JobStatus) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that select jobs; it is called with `which`, a `Selection`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--user", metavar="ID", help="Only jobs of this owner.")
        @click.option("--type", metavar="NAME", help="Only jobs of this type.")
        @click.option("--status", type=click.Choice([one.value for one in statuses]))
        @wraps(command)
        def called(
            *args: Any, user: str | None, type: str | None, status: str | None, **others: Any
        ) -> None:
            chosen = None if status is None else JobStatus(status)
            which = Selection(user_id=user, type=type, status=chosen)
            command(*args, which=which, **others)

        return called

    return decorate
