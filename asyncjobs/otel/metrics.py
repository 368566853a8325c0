"""The metrics: durations and outcomes of jobs, and how many run and wait now."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Protocol, assert_never
from weakref import WeakKeyDictionary, ref

import anyio
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import RESERVED_PREFIX, Job
from asyncjobs.errors import StoreError
from asyncjobs.otel import names
from asyncjobs.queue import AsyncJobs

Labels = Mapping[str, str]

# Histogram boundaries in seconds, from short requests to jobs of a day.
_BOUNDARIES = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)

_MAX_ERROR_TYPES = 100


class JobMetrics:
    """The instruments of one queue. Labels are registered names, so their number is bounded."""

    def __init__(self, jobs: AsyncJobs, meter: Meter) -> None:
        self._jobs = jobs
        self._labels: dict[tuple[str, str], Labels] = {}
        self._errors: set[str] = set()
        self._at_zero: set[str] = set()
        self.oldest_waiting: Mapping[str, timedelta] = {}
        count = meter.create_counter
        self._sent = count(names.SENT, "{message}", "Jobs that were enqueued.")
        self._consumed = count(names.CONSUMED, "{message}", "Attempts that were started.")
        self._ended = count(names.ENDED, "{job}", "Jobs that have ended, by outcome.")
        self._lost = count(names.LOST, "{worker}", "Attempts whose worker was lost.")
        self._running = meter.create_up_down_counter(
            names.RUNNING, "{job}", "Handlers that are running."
        )
        self._processing_time = _histogram(meter, names.PROCESSING, "How long handlers ran.")
        self._wait_time = _histogram(meter, names.WAIT, "How long due jobs waited for their start.")

    @property
    def watchers(self) -> int | None:
        """How many watchers follow jobs of the queue; None while it is not open."""
        return self._jobs.watchers if self._jobs.is_open else None

    def labels(self, job_type: str, queue: str) -> Labels:
        """Return the labels of a type and a queue; unregistered names become `_OTHER`."""
        made = self._labels.get((job_type, queue))
        if made is None:
            registered = {kind.name: kind.policy.queue for kind in self._jobs.registry}
            known = job_type in registered, queue in registered.values()
            made = {
                names.SYSTEM: "asyncjobs",
                names.JOB_TYPE: job_type if known[0] else names.OTHER,
                names.DESTINATION: queue if known[1] else names.OTHER,
            }
            if all(known):  # unknown names are unbounded, or may be registered later
                self._labels[job_type, queue] = made
        return made

    def observe(self, transition: Transition) -> None:
        """Count an event of this process, except those of jobs that stand for other jobs."""
        job = transition.job
        if job.type.startswith(RESERVED_PREFIX):
            return
        labels = self.labels(job.type, job.queue)
        if transition.worker_lost:
            self._lost.add(1, labels)
        match transition.event:
            case Event.ENQUEUED:
                self._sent.add(1, {**labels, names.OPERATION: "enqueue"})
            case Event.STARTED:
                self._consumed.add(1, {**labels, names.OPERATION: "process"})
                waited = transition.at - job.run_at
                self._wait_time.record(max(waited.total_seconds(), 0), labels)
            case Event.COMPLETED | Event.CANCELLED:
                self._ended.add(1, {**labels, names.OUTCOME: job.status.value})
            case Event.FAILED:
                failed = {names.OUTCOME: job.status.value, names.ERROR_TYPE: _error_type(job)}
                self._ended.add(1, {**labels, **failed})
            case Event.RETRIED | Event.RELEASED | Event.LOST | Event.CANCEL_REQUESTED:
                pass
            case Event.FORGOTTEN:  # counted when it ended
                pass
            case _:
                assert_never(transition.event)

    def handler_started(self, labels: Labels) -> None:
        """Count a running handler."""
        self._running.add(1, labels)

    def handler_ended(self, labels: Labels, seconds: float, error: str | None) -> None:
        """Record how long a handler ran, and the `error.type` if it raised."""
        self._running.add(-1, labels)
        failed = {} if error is None else {names.ERROR_TYPE: self._bounded(error)}
        self._processing_time.record(seconds, {**labels, names.OPERATION: "process", **failed})

    def _bounded(self, error: str) -> str:
        """Return the error type, or `_OTHER` after the first hundred different ones."""
        if len(self._errors) < _MAX_ERROR_TYPES:
            self._errors.add(error)
        return error if error in self._errors else names.OTHER

    def start_at_zero(self) -> None:
        """Export zero for each counter of each registered type, once.

        Monitoring detects an increase only between two scrapes, so not at the first one of a
        series. Alerts would miss the first missed deadline and the first lost worker of each
        process.
        """
        codes = sorted({*names.CODES, names.APPLICATION_CODE})
        failed = [{names.OUTCOME: "failed", names.ERROR_TYPE: code} for code in codes]
        for kind in self._jobs.registry:
            if kind.name in self._at_zero:
                continue
            self._at_zero.add(kind.name)
            labels = self.labels(kind.name, kind.policy.queue)
            self._sent.add(0, {**labels, names.OPERATION: "enqueue"})
            self._consumed.add(0, {**labels, names.OPERATION: "process"})
            self._lost.add(0, labels)
            for outcome in ({names.OUTCOME: "completed"}, {names.OUTCOME: "cancelled"}, *failed):
                self._ended.add(0, {**labels, **outcome})

    async def run(self) -> None:
        """Read how long jobs wait at each sweep interval, until cancelled."""
        try:
            while True:
                self.start_at_zero()  # includes handlers that were registered later
                try:
                    self.oldest_waiting = await self._jobs.oldest_waiting()
                except StoreError:
                    self.oldest_waiting = {}  # an old value would hide that the store is down
                await anyio.sleep(self._jobs.settings.sweep_interval.total_seconds())
        finally:
            self.oldest_waiting = {}


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        name, "s", description, explicit_bucket_boundaries_advisory=_BOUNDARIES
    )


def _error_type(job: Job) -> str:
    code = None if job.error is None else job.error.code
    return code if code in names.CODES else names.APPLICATION_CODE


class QueueState(Protocol):
    """The current state of one queue; `watchers` is None while it is not open."""

    @property
    def oldest_waiting(self) -> Mapping[str, timedelta]: ...

    @property
    def watchers(self) -> int | None: ...


class Gauges:
    """The gauges of one meter provider, over all queues that report to it."""

    def __init__(self, meter: Meter) -> None:
        # Weak references, so that queues can be freed; a new tuple each time, as exporter threads
        # read it.
        self._queues: tuple[ref[QueueState], ...] = ()
        meter.create_observable_gauge(
            names.OLDEST, [self._ages], "s", "How long the oldest due job of a queue has waited."
        )
        meter.create_observable_gauge(
            names.WATCHERS,
            [self._watchers],
            "{watcher}",
            "Watchers that follow a job in this process.",
        )

    def add(self, queue: QueueState) -> None:
        """Add a queue."""
        self._queues = (*(known for known in self._queues if known() is not None), ref(queue))

    def _alive(self) -> list[QueueState]:
        return [queue for known in self._queues if (queue := known()) is not None]

    def _ages(self, _options: CallbackOptions) -> Generator[Observation]:
        oldest: dict[str, timedelta] = {}
        for queue in self._alive():
            for name, waited in queue.oldest_waiting.items():
                oldest[name] = max(waited, oldest.get(name, waited))
        for name, waited in oldest.items():
            labels = {names.SYSTEM: "asyncjobs", names.DESTINATION: name}
            yield Observation(waited.total_seconds(), labels)

    def _watchers(self, _options: CallbackOptions) -> Generator[Observation]:
        counts = [queue.watchers for queue in self._alive()]
        if any(count is not None for count in counts):
            yield Observation(sum(count or 0 for count in counts), {names.SYSTEM: "asyncjobs"})


_gauges: WeakKeyDictionary[MeterProvider, Gauges] = WeakKeyDictionary()


def gauges_of(provider: MeterProvider, meter: Meter) -> Gauges:
    """Return the gauges of a provider; the first call creates them with the meter."""
    found = _gauges.get(provider)
    if found is None:
        found = _gauges[provider] = Gauges(meter)
    return found
