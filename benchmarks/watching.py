"""What hooks and telemetry cost: jobs per second of processor time, by a handler that does nothing.

    python benchmarks/watching.py            # about a minute; needs the `test` extra

The rounds take turns in one run, and what other processes take does not count: read the ratios.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from asyncjobs import AsyncJobs, Event, JobContext, Transition
from asyncjobs.otel import instrument

ROUNDS = 5
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


async def rate(url: str, prepare: Callable[[AsyncJobs], None]) -> float:
    jobs = AsyncJobs(url)
    prepare(jobs)

    @jobs.handler("nothing")
    async def work(_payload: None, _job: JobContext) -> None: ...

    async def caller() -> None:
        for _ in range(JOBS // CALLERS):
            await jobs.wait((await jobs.enqueue(work, None)).id)

    async with jobs:
        began = time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(caller)
        return JOBS // CALLERS * CALLERS / (time.process_time() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for store in ("memory://", "sqlite"):
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(ROUNDS):
                for kind, prepare in KINDS.items():
                    file = Path(name) / f"{kind.replace(' ', '')}{number}.db"
                    url = store if store != "sqlite" else f"sqlite:///{file}"
                    rates[kind].append(anyio.run(rate, url, prepare))
            print(f"{store}, medians of {ROUNDS} rounds of {JOBS} jobs")
            base = statistics.median(rates["nothing"])
            for kind, measured in rates.items():
                median = statistics.median(measured)
                print(f"  {kind:32}{median:10,.0f} jobs/s   ratio {base / median:5.2f}")


if __name__ == "__main__":
    main()
