"""How a caller wants jobs to be followed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Transport(StrEnum):
    """The ways to hear of a job, the best first."""

    EVENTS = "events"
    HOLD = "hold"
    POLL = "poll"


@dataclass(frozen=True)
class Following:
    """How a job is followed; seconds. `timeout=None` is for ever.

    After `patience` of nothing but failures the server counts as unreachable; for `submit_for` a
    submission or a cancel is tried again. `origins` are those that a server may point to beside its
    own.
    """

    timeout: float | None = 86_400.0
    patience: float = 300.0
    submit_for: float = 30.0
    transports: Collection[Transport] = tuple(Transport)
    origins: Collection[str] = ()
