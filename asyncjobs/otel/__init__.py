"""Traces and metrics by OpenTelemetry; needs the extra `otel`.

    instrument(jobs)

Without an OpenTelemetry SDK that is set up, nothing is recorded. What is recorded says what jobs
are and what became of them, by type, queue and outcome; ids are on spans only, and owners, payloads
and results nowhere.
"""

from __future__ import annotations

from importlib.metadata import version

from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.trace import TracerProvider, get_tracer

from asyncjobs.errors import ConfigurationError
from asyncjobs.otel.metrics import Measures, gauges_of
from asyncjobs.otel.names import SCHEMA
from asyncjobs.otel.tracing import TracedSpans, name_the_job
from asyncjobs.queue import AsyncJobs
from asyncjobs.runtime.hooks import NoSpans

__all__ = ["instrument"]


def instrument(
    jobs: AsyncJobs,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Record what the jobs of a queue do; call it once, before the queue is opened.

    The providers are the global ones unless given. Raises `ConfigurationError` for a queue that is
    open, or that is instrumented already.
    """
    if jobs.is_open:
        raise ConfigurationError("Instrument a queue before it is opened.")
    if not isinstance(jobs.hooks.spans, NoSpans):
        raise ConfigurationError("This queue is instrumented already.")
    ours = "asyncjobs", version("asyncjobs-http")
    tracer = get_tracer(*ours, tracer_provider, SCHEMA)
    meters = meter_provider or get_meter_provider()
    meter = meters.get_meter(*ours, SCHEMA)
    measures = Measures(jobs, meter)
    gauges_of(meters, meter).add(measures)
    jobs.hooks.spans = TracedSpans(tracer, measures)
    jobs.hooks.observers += [measures.observe, name_the_job]
    jobs.hooks.loops.append(measures.run)
