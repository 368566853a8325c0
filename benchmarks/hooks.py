"""Part `hooks`: the cost of hooks and telemetry for a job whose handler does nothing.

Only processor time is measured: other processes do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from asyncjobs import AsyncJobs, Event, JobContext, Transition
from asyncjobs.otel import instrument
from benchmarks.running import Run

CALLERS = 64
JOBS = 1280


def nothing(_jobs: AsyncJobs) -> None: ...


def async_hooks(jobs: AsyncJobs) -> None:
    async def hook(_transition: Transition) -> None: ...

    for event in Event:
        jobs.on(event, hook)


def one_def_hook(jobs: AsyncJobs) -> None:
    def hook(_transition: Transition) -> None: ...

    jobs.on("completed", hook)


def metrics_only(jobs: AsyncJobs) -> None:
    instrument(jobs, meter_provider=MeterProvider([InMemoryMetricReader()]))


def traced(share: float) -> Callable[[AsyncJobs], None]:
    def prepare(jobs: AsyncJobs) -> None:
        tracers = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
        tracers.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        meters = MeterProvider([InMemoryMetricReader()])
        instrument(jobs, tracer_provider=tracers, meter_provider=meters)

    return prepare


KINDS: dict[str, Callable[[AsyncJobs], None]] = {
    "nothing": nothing,
    "an async hook on every event": async_hooks,
    "a def hook at the end": one_def_hook,
    "metrics": metrics_only,
    "metrics, 1 in 100 traced": traced(0.01),
    "metrics, all traced": traced(1),
}


async def cpu(url: str, prepare: Callable[[AsyncJobs], None], count: int) -> float:
    """Return the microseconds of processor time of a job, from `enqueue` to `wait`."""
    jobs = AsyncJobs(url)
    prepare(jobs)

    @jobs.handler("nothing")
    async def work(_payload: None, _job: JobContext) -> None: ...

    async def caller() -> None:
        for _ in range(count // CALLERS):
            await jobs.wait((await jobs.enqueue(work, None)).id)

    async with jobs:
        began = time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(caller)
        return 1e6 * (time.process_time() - began) / count


def measure(run: Run) -> None:
    count = CALLERS if run.quick else JOBS
    for _ in range(run.rounds):
        for store in ("memory",) if run.quick else ("memory", "sqlite"):
            for kind, prepare in KINDS.items():
                with run.servers.place(store) as place:
                    taken = anyio.run(cpu, place.store(store), prepare, count)
                run.figures.add("hooks", store, kind, {"CPU of a job [us]": taken})
