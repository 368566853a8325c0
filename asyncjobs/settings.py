"""The engine's own rhythm; the defaults suit almost everyone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How often the engine looks, and how long it waits.

    `lease` is how long a job stays with a worker that gives no sign of life; it is renewed each
    third. `redelivery` is how long a job that was handed on but not started is left alone.
    `poll` is the longest a process relies on being told of changes, `sweep` how often lapsed
    leases, deadlines and retention are looked after. `dispatch` is how long an engine may take to
    be told of a job; after that it is told again later, and nobody waits. `progress` is the least
    time between two written reports of one job. `grace` is how long a shutdown waits for running
    jobs before it breaks them off and gives them back. `blocked` is how long a handler may keep the
    event loop from turning before a warning names it.
    """

    lease: timedelta = timedelta(seconds=30)
    redelivery: timedelta = timedelta(seconds=30)
    poll: timedelta = timedelta(seconds=1)
    sweep: timedelta = timedelta(seconds=5)
    dispatch: timedelta = timedelta(seconds=5)
    progress: timedelta = timedelta(seconds=0.2)
    grace: timedelta = timedelta(seconds=10)
    blocked: timedelta = timedelta(seconds=1)
