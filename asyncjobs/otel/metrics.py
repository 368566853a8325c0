"""The metrics: what jobs took and how they ended, what runs and waits now."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Protocol
from weakref import WeakKeyDictionary, ref

import anyio
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import JobStatus
from asyncjobs.errors import StoreError
from asyncjobs.otel import names
from asyncjobs.queue import AsyncJobs

Labels = Mapping[str, str]

# What jobs take: from what a request waits for to the deadline of a day.
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)

_MOST_ERRORS = 100


class Measures:
    """The instruments of one queue. Labels come from what is registered, so they are few."""

    def __init__(self, jobs: AsyncJobs, meter: Meter) -> None:
        self._jobs = jobs
        self._labels: dict[tuple[str, str], Labels] = {}
        self._errors: set[str] = set()
        self.oldest: Mapping[str, timedelta] = {}
        count = meter.create_counter
        self._sent = count(names.SENT, "{message}", "Jobs that were enqueued.")
        self._consumed = count(names.CONSUMED, "{message}", "Attempts that were begun.")
        self._ended = count(names.ENDED, "{job}", "Jobs that have ended, by outcome.")
        self._lost = count(names.LOST, "{worker}", "Attempts whose worker was lost.")
        self._running = meter.create_up_down_counter(
            names.RUNNING, "{job}", "Handlers that run now."
        )
        self._took = _seconds(meter, names.PROCESSING, "How long handlers ran.")
        self._waited = _seconds(meter, names.WAIT, "How long jobs waited that could have begun.")

    @property
    def watchers(self) -> int | None:
        """Who follows a job of the queue, None while it is not open."""
        return self._jobs.watchers if self._jobs.is_open else None

    def labels(self, kind: str, queue: str) -> Labels:
        """Name a type and a queue as far as they are known here."""
        made = self._labels.get((kind, queue))
        if made is None:
            registered = {one.name: one.policy.queue for one in self._jobs.registry}
            known = kind in registered, queue in registered.values()
            made = {
                names.SYSTEM: "asyncjobs",
                names.JOB_TYPE: kind if known[0] else names.OTHER,
                names.DESTINATION: queue if known[1] else names.OTHER,
            }
            if all(known):  # others may be any number, or be registered yet
                self._labels[kind, queue] = made
        return made

    def observe(self, transition: Transition) -> None:
        """Count a transition that this process has made."""
        job = transition.job
        labels = self.labels(job.type, job.queue)
        if transition.worker_lost:
            self._lost.add(1, labels)
        if transition.event is Event.ENQUEUED:
            self._sent.add(1, {**labels, names.OPERATION: "enqueue"})
        elif transition.event is Event.STARTED:
            self._consumed.add(1, {**labels, names.OPERATION: "process"})
            waited = transition.at - job.run_at
            self._waited.record(max(waited.total_seconds(), 0), labels)
        elif job.status.terminal:
            self._ended.add(1, {**labels, **_outcome(transition)})

    def begin(self, labels: Labels) -> None:
        """Note that a handler runs."""
        self._running.add(1, labels)

    def end(self, labels: Labels, seconds: float, error: str | None) -> None:
        """Note that it does no more."""
        self._running.add(-1, labels)
        failed = {} if error is None else {names.ERROR_TYPE: self._known(error)}
        self._took.record(seconds, {**labels, names.OPERATION: "process", **failed})

    def _known(self, error: str) -> str:
        """Keep the first so many kinds of errors: an application may make classes without end."""
        if len(self._errors) < _MOST_ERRORS:
            self._errors.add(error)
        return error if error in self._errors else names.OTHER

    async def run(self) -> None:
        """Look at what waits, now and then, until cancelled."""
        try:
            while True:
                try:
                    self.oldest = await self._jobs.oldest_waiting()
                except StoreError:
                    self.oldest = {}  # what was true a while ago would hide that it is away
                await anyio.sleep(self._jobs.settings.sweep_interval.total_seconds())
        finally:
            self.oldest = {}


def _seconds(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
    )


def _outcome(transition: Transition) -> Labels:
    job = transition.job
    if job.status is not JobStatus.FAILED or job.error is None:
        return {names.OUTCOME: job.status.value}
    code = job.error.code if job.error.code in names.CODES else names.OWN_CODE
    return {names.OUTCOME: job.status.value, names.ERROR_TYPE: code}


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
