"""Traces and metrics by OpenTelemetry (extra `otel`).

    instrument(jobs)

Nothing is recorded unless the application sets up an OpenTelemetry SDK. Spans and metrics have the
type, queue and outcome of jobs. Only spans have ids. Owners, payloads and results are never
recorded.
"""

from __future__ import annotations

from importlib.metadata import version

try:
    from opentelemetry.metrics import MeterProvider, get_meter_provider
    from opentelemetry.trace import TracerProvider, get_tracer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncjobs.otel needs opentelemetry-api: pip install 'asyncjobs-http[otel]'.",
        name=error.name,
    ) from error

from asyncjobs.errors import ConfigurationError
from asyncjobs.otel.metrics import JobMetrics, gauges_of
from asyncjobs.otel.names import SCHEMA_URL
from asyncjobs.otel.tracing import TracedSpans, set_message_id
from asyncjobs.queue import AsyncJobs
from asyncjobs.runtime.hooks import NoSpans

__all__ = ["instrument"]


def instrument(
    jobs: AsyncJobs,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Record spans and metrics of a queue; call it once, before the queue is opened.

    The providers default to the global ones. Raises `ConfigurationError` if the queue is open, or
    instrumented already.
    """
    if jobs.is_open:
        raise ConfigurationError("This queue is already open: instrument it before it is opened.")
    if not isinstance(jobs.hooks.spans, NoSpans):
        raise ConfigurationError("This queue is already instrumented.")
    scope = "asyncjobs", version("asyncjobs-http")
    tracer = get_tracer(*scope, tracer_provider, SCHEMA_URL)
    provider = meter_provider or get_meter_provider()
    meter = provider.get_meter(*scope, SCHEMA_URL)
    metrics = JobMetrics(jobs, meter)
    gauges_of(provider, meter).add(metrics)
    jobs.hooks.spans = TracedSpans(tracer, metrics)
    jobs.hooks.observers += [metrics.observe, set_message_id]
    jobs.hooks.loops.append(metrics.run)
