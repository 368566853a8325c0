"""An instrumented queue and its spans and metrics, recorded by the real SDK.

A test marked `every_store` that asks for `make` or `jobs` runs on every store.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncjobs import AsyncJobs, Settings
from asyncjobs.otel import instrument

Make = Callable[..., AsyncJobs]
QUICK = Settings(
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.05),
    grace=timedelta(seconds=0.2),
)


class Recorded:
    """The spans and metrics of one queue."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def spans(self, beginning: str = "") -> list[ReadableSpan]:
        """Return the ended spans whose names start with this text."""
        finished = self.exporter.get_finished_spans()
        return [span for span in finished if span.name.startswith(beginning)]

    def points(self, name: str) -> dict[tuple[tuple[str, object], ...], float]:
        """Return a metric's values by their labels; for a histogram its counts."""
        data = self.reader.get_metrics_data()
        found: dict[tuple[tuple[str, object], ...], float] = {}
        for resource in data.resource_metrics if data else ():
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                for point in metric.data.data_points if metric.name == name else ():
                    value = getattr(point, "value", None)
                    labels = tuple(sorted((point.attributes or {}).items()))
                    found[labels] = getattr(point, "count", 0) if value is None else value
        return found

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all points with these labels, with `_` for dots."""
        return sum(
            value
            for point, value in self.points(name).items()
            if labels.items() <= {(key.replace(".", "_"), value) for key, value in point}
        )


@pytest.fixture
def recorded() -> Generator[Recorded]:
    """Record in memory."""
    made = Recorded()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


@pytest.fixture
def make(recorded: Recorded, new_store: Callable[[], Any]) -> Make:
    """Make an instrumented queue on the test's store; several queues share it, like processes."""

    def build(**arguments: Any) -> AsyncJobs:
        given: dict[str, Any] = {"store": new_store(), "settings": QUICK, **arguments}
        jobs = AsyncJobs(**given)
        instrument(jobs, tracer_provider=recorded.tracers, meter_provider=recorded.meters)
        return jobs

    return build


@pytest.fixture
def jobs(make: Make) -> AsyncJobs:
    return make()
