"""What is counted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import anyio
from opentelemetry.metrics import Histogram, Meter

from asyncjobs.errors import StoreError
from asyncjobs.model import JobStatus
from asyncjobs.otel import names
from asyncjobs.queue import AsyncJobs
from asyncjobs.transitions import Event, Transition

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
                await anyio.sleep(self._jobs.settings.sweep.total_seconds())
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
