"""The ticks of cron expressions; only this module loads the library that evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from typing import cast
from zoneinfo import ZoneInfo

from asyncjobs.core.schedules import Definition, Every, Timetable
from asyncjobs.errors import ConfigurationError

_Iterate = Callable[[str, datetime], Iterator[datetime]]

_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Cron:
    """Ticks by a cron expression in a time zone, as Debian's cron has them.

    A fixed time of day that a change of the clocks leaves out runs when the clocks have changed,
    and a repeated one runs once; expressions with `*` for the minute or hour follow real time.
    """

    def __init__(self, expression: str, zone: tzinfo, iterate: _Iterate) -> None:
        self._expression = expression
        self._zone = zone
        self._iterate = iterate

    def after(self, moment: datetime, /) -> datetime | None:
        for found in self._iterate(self._expression, moment.astimezone(self._zone)):
            tick = found.astimezone(UTC)
            # In an hour that the clocks repeat, the library begins with the first one.
            if tick > moment:
                return tick
        return None  # not in the next 50 years


def timetable_of(definition: Definition) -> Timetable:
    """Return the ticks of a definition; raise `ConfigurationError` if they cannot be computed."""
    if definition.every is not None:
        return Every(definition.every)
    expression = definition.cron or ""
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError(
            "cron expressions need the package 'cronsim': pip install 'asyncjobs-http[cron]'."
        ) from error
    iterate = cast("_Iterate", CronSim)
    try:
        iterate(expression, _ANY_TIME)
    # A field of thousands of digits is no number for Python: a `ValueError` with a long text.
    except (CronSimError, ValueError) as error:
        reason = str(error) if isinstance(error, CronSimError) else "a number is too long"
        fault = _fault_of(expression, reason, iterate, CronSimError)
        raise ConfigurationError(f"the cron expression {expression[:100]!r} {fault}.") from error
    return Cron(
        expression, _zone_of("UTC" if definition.timezone is None else definition.timezone), iterate
    )


def _fault_of(expression: str, reason: str, iterate: _Iterate, refusal: type[Exception]) -> str:
    """Return what is wrong with an expression that the library refuses for a reason."""
    if expression.lstrip().startswith("@"):
        return "is not valid: macros do not work; write the fields, such as '0 0 * * *' for @daily"
    if "day" in reason:
        fields = expression.split()
        with suppress(refusal, ValueError):
            iterate(" ".join([*fields[:-2], "*", *fields[-1:]]), _ANY_TIME)
            return "never fires: none of its months has such a day"
    return f"is not valid: {reason}"


def _zone_of(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    # Depending on the name and the data: no such key, not a name, a folder of names.
    except (KeyError, ValueError, OSError) as error:
        raise ConfigurationError(f"there is no time zone {name!r}.") from error
