"""What is looked up instead of counted; told once for all queues that a process has open.

OpenTelemetry keeps one gauge per name and labels: a second queue's would be hidden by the first's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from asyncjobs.otel import names


class Looked(Protocol):
    """What is known of one queue at the moment; `watchers` is None while it is not open."""

    @property
    def oldest(self) -> Mapping[str, timedelta]: ...

    @property
    def watchers(self) -> int | None: ...


class Gauges:
    """The gauges of one meter provider."""

    def __init__(self, meter: Meter) -> None:
        # Weakly: an application may make queues without end. Replaced, since others read it.
        self._all: tuple[ref[Looked], ...] = ()
        meter.create_observable_gauge(
            names.OLDEST, [self._ages], "s", "For how long the first job of a queue has waited."
        )
        meter.create_observable_gauge(
            names.WATCHERS, [self._watchers], "{watcher}", "Who follows a job in this process."
        )

    def add(self, looked: Looked) -> None:
        """Tell of one more."""
        self._all = (*(one for one in self._all if one() is not None), ref(looked))

    def _alive(self) -> list[Looked]:
        return [looked for one in self._all if (looked := one()) is not None]

    def _ages(self, _options: CallbackOptions) -> Generator[Observation]:
        oldest: dict[str, timedelta] = {}
        for looked in self._alive():
            for queue, waited in looked.oldest.items():
                oldest[queue] = max(waited, oldest.get(queue, waited))
        for queue, waited in oldest.items():
            labels = {names.SYSTEM: "asyncjobs", names.DESTINATION: queue}
            yield Observation(waited.total_seconds(), labels)

    def _watchers(self, _options: CallbackOptions) -> Generator[Observation]:
        told = [looked.watchers for looked in self._alive()]
        if any(one is not None for one in told):
            yield Observation(sum(one or 0 for one in told), {names.SYSTEM: "asyncjobs"})


_of: WeakKeyDictionary[MeterProvider, Gauges] = WeakKeyDictionary()


def gauges_of(provider: MeterProvider, meter: Meter) -> Gauges:
    """Return the gauges of a provider, made by its meter where there are none."""
    found = _of.get(provider)
    if found is None:
        found = _of[provider] = Gauges(meter)
    return found
