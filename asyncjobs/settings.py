"""The timing of a queue, and the conversion of durations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, overload

#: A duration in the public API: seconds, or a timedelta.
Seconds = float | timedelta


@overload
def duration(value: Seconds) -> timedelta: ...
@overload
def duration(value: None) -> None: ...
def duration(value: Seconds | None) -> timedelta | None:
    """Return a duration as a timedelta; a number means seconds.

    Raises `TypeError` for anything else, `ValueError` for a number that is not finite or too large.
    """
    if value is None or isinstance(value, timedelta):
        return value
    if type(value) not in (int, float):
        raise TypeError(f"A duration must be a number of seconds or a timedelta, got {value!r}.")
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):
        raise ValueError(f"A duration must be a finite number of seconds, got {value!r}.") from None


def seconds(value: Seconds) -> float:
    """Return a duration as seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How often a queue looks for work, and how long it waits; each is seconds or a timedelta.

    - `lease`: how long a job stays with a worker that does not renew its lease. Workers renew it
      after each third of this time.
    - `redelivery`: how long a job that was dispatched but not started is left alone.
    - `poll_interval`: the longest time for which a process relies on change notices.
    - `sweep_interval`: how often lapsed leases, deadlines and retention are checked.
    - `dispatch_timeout`: how long the call of an engine may take. After that, the job is dispatched
      again later, and the submission is answered.
    - `progress_interval`: the shortest time between two stored progress reports of one job.
    - `grace`: how long a shutdown waits for running jobs before it interrupts them and gives them
      back.
    - `store_timeout`: how long a call of the store may take, counted from the call. After that
      `StoreUnavailable` is raised; the data may have been written.
    - `block_warning_after`: how long a handler may block the event loop before a warning names it.

    Raises `ValueError` for a duration that is negative or not finite, and for an interval of zero.
    """

    lease: timedelta = timedelta(seconds=30)
    redelivery: timedelta = timedelta(seconds=30)
    poll_interval: timedelta = timedelta(seconds=1)
    sweep_interval: timedelta = timedelta(seconds=5)
    dispatch_timeout: timedelta = timedelta(seconds=5)
    progress_interval: timedelta = timedelta(seconds=0.2)
    grace: timedelta = timedelta(seconds=10)
    store_timeout: timedelta = timedelta(seconds=10)
    block_warning_after: timedelta = timedelta(seconds=1)

    if TYPE_CHECKING:

        def __init__(  # noqa: PLR0913  # one parameter per setting
            self,
            *,
            lease: Seconds = ...,
            redelivery: Seconds = ...,
            poll_interval: Seconds = ...,
            sweep_interval: Seconds = ...,
            dispatch_timeout: Seconds = ...,
            progress_interval: Seconds = ...,
            grace: Seconds = ...,
            store_timeout: Seconds = ...,
            block_warning_after: Seconds = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        for field in fields(self):
            given: Seconds | None = getattr(self, field.name)
            if given is None:
                raise TypeError(f"Settings.{field.name} must be a duration, got None.")
            value = duration(given)
            least = "not negative" if field.name == "grace" else "positive"
            if value < timedelta(0) or (value == timedelta(0) and field.name != "grace"):
                raise ValueError(f"Settings.{field.name} must be {least}, got {value}.")
            object.__setattr__(self, field.name, value)
