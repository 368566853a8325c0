"""What is traced: a span for each submission, and one for each attempt that is linked to it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from time import perf_counter

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asyncjobs.model import Job
from asyncjobs.otel import names
from asyncjobs.otel.measures import Measures
from asyncjobs.transitions import Event, Transition

_propagator = TraceContextTextMapPropagator()


class TracedSpans:
    """Makes the spans. Attempts are timed here, too, so that span and metric say the same."""

    def __init__(self, tracer: Tracer, measures: Measures) -> None:
        self._tracer = tracer
        self._measures = measures

    @contextmanager
    def submitting(
        self, kind: str, queue: str, traceparent: str | None, /
    ) -> Generator[str | None]:
        """Trace a submission; the job is linked to this span from then on."""
        attributes = {
            names.OPERATION: "enqueue",
            names.OPERATION_TYPE: "send",
            **self._measures.labels(kind, queue),
        }
        with self._tracer.start_as_current_span(
            f"enqueue {attributes[names.JOB_TYPE]}",
            _parent(traceparent),
            SpanKind.PRODUCER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _written(span) or traceparent
            except Exception as error:
                _failed(span, type(error).__qualname__)
                raise

    @contextmanager
    def attempting(self, job: Job, /) -> Generator[str | None]:
        """Trace the call of a handler, and measure it."""
        labels = self._measures.labels(job.type, job.queue)
        attributes: Mapping[str, str | int] = {
            names.OPERATION: "process",
            names.OPERATION_TYPE: "process",
            names.MESSAGE_ID: job.id,
            names.ATTEMPT: job.attempt,
            **labels,
        }
        submission = _read(job.traceparent)
        error: str | None = None
        with self._tracer.start_as_current_span(
            f"process {labels[names.JOB_TYPE]}",
            Context(),  # a trace of its own: it may begin hours later, and more than once
            SpanKind.CONSUMER,
            attributes,
            [Link(submission)] if submission.is_valid else (),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._measures.begin(labels)
            begun = perf_counter()
            try:
                yield _written(span) or job.traceparent
            except Exception as raised:
                error = type(raised).__qualname__
                span.record_exception(raised)
                _failed(span, error)
                raise
            except BaseException:  # told to stop, which is no failure of it
                error = names.INTERRUPTED
                span.set_attribute(names.ERROR_TYPE, error)
                raise
            finally:
                self._measures.end(labels, perf_counter() - begun, error)


def name_the_job(transition: Transition) -> None:
    """Put the id on the span of the submission, inside which this is called."""
    if transition.event is Event.ENQUEUED:
        trace.get_current_span().set_attribute(names.MESSAGE_ID, transition.job.id)


def _parent(traceparent: str | None) -> Context | None:
    """Choose what a submission is part of; None is the current span.

    A span that is current is nearer than the request's header, which began the same trace. One of
    another trace is what somebody has asked for.
    """
    current, given = trace.get_current_span().get_span_context(), _read(traceparent)
    if not given.is_valid or given.trace_id == current.trace_id:
        return None
    return trace.set_span_in_context(trace.NonRecordingSpan(given), Context())


def _read(traceparent: str | None) -> SpanContext:
    if traceparent is None:
        return trace.INVALID_SPAN_CONTEXT
    found = _propagator.extract({"traceparent": traceparent}, Context())
    return trace.get_current_span(found).get_span_context()


def _written(span: Span) -> str | None:
    """Write a span's context as W3C has it; None for a span that is nobody's."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent")


def _failed(span: Span, error: str) -> None:
    span.set_attribute(names.ERROR_TYPE, error)
    span.set_status(Status(StatusCode.ERROR))
