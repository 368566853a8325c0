"""What is traced: a span for each submission, and one for each attempt that is linked to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asyncjobs.core.events import Event, Transition
from asyncjobs.core.job import Job
from asyncjobs.errors import InvalidPayload, InvalidResult
from asyncjobs.execution.cancellation import belongs_to_the_loop
from asyncjobs.otel import names
from asyncjobs.otel.metrics import Labels, Measures

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
    def attempting(
        self, job: Job, told_to_stop: Callable[[], str | None], /
    ) -> Generator[str | None]:
        """Trace the call of a handler, and measure it."""
        labels = self._measures.labels(job.type, job.queue)
        error: str | None = None
        with self._attempt(job, labels) as span:
            self._measures.begin(labels)
            begun = perf_counter()
            try:
                yield _written(span) or job.traceparent
            except BaseException as raised:
                error = _ended_by(span, raised, told_to_stop())
                raise
            finally:
                self._measures.end(labels, perf_counter() - begun, error)

    def _attempt(self, job: Job, labels: Labels) -> AbstractContextManager[Span]:
        attributes: Mapping[str, str | int] = {
            names.OPERATION: "process",
            names.OPERATION_TYPE: "process",
            names.MESSAGE_ID: job.id,
            names.ATTEMPT: job.attempt,
            **labels,
        }
        submission = _read(job.traceparent)
        return self._tracer.start_as_current_span(
            f"process {labels[names.JOB_TYPE]}",
            Context(),  # a trace of its own: it may begin hours later, and more than once
            SpanKind.CONSUMER,
            attributes,
            [Link(submission)] if submission.is_valid else (),
            record_exception=False,
            set_status_on_exception=False,
        )


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


def _ended_by(span: Span, raised: BaseException, told_to_stop: str | None) -> str:
    """Say on the span how a handler ended that raised; return the `error.type`."""
    if not isinstance(raised, Exception):
        if told_to_stop is None and belongs_to_the_loop(raised, stopping=False):
            told_to_stop = names.SHUTDOWN  # with all else that ran in this process
        if told_to_stop == names.TIMEOUT:
            _failed(span, told_to_stop)
            return told_to_stop
        if told_to_stop is not None:  # which is no failure of it
            span.set_attribute(names.ERROR_TYPE, told_to_stop)
            return told_to_stop
    error = type(raised).__qualname__
    if isinstance(raised, InvalidPayload | InvalidResult):
        # Without the traceback, where its cause shows the value that did not fit.
        said = {names.EXCEPTION_TYPE: error, names.EXCEPTION_MESSAGE: str(raised)}
        span.add_event("exception", said)
    else:
        span.record_exception(raised)
    _failed(span, error)
    return error


def _failed(span: Span, error: str) -> None:
    span.set_attribute(names.ERROR_TYPE, error)
    span.set_status(Status(StatusCode.ERROR))
