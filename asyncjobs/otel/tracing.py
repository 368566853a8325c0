"""The spans: one for each submission, and one for each attempt, linked to the submission."""

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
from asyncjobs.otel.metrics import JobMetrics, Labels

_propagator = TraceContextTextMapPropagator()


class TracedSpans:
    """Opens the spans. It also measures attempts, so that spans and metrics agree."""

    def __init__(self, tracer: Tracer, metrics: JobMetrics) -> None:
        self._tracer = tracer
        self._metrics = metrics

    @contextmanager
    def submitting(
        self, kind: str, queue: str, traceparent: str | None, /
    ) -> Generator[str | None]:
        """Trace a submission; the job stores the `traceparent` of this span."""
        attributes = {
            names.OPERATION: "enqueue",
            names.OPERATION_TYPE: "send",
            **self._metrics.labels(kind, queue),
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
                yield _traceparent(span) or traceparent
            except Exception as error:
                _set_error(span, type(error).__qualname__)
                raise

    @contextmanager
    def attempting(
        self, job: Job, stop_reason: Callable[[], str | None], /
    ) -> Generator[str | None]:
        """Trace and measure the call of a handler."""
        labels = self._metrics.labels(job.type, job.queue)
        error: str | None = None
        with self._attempt(job, labels) as span:
            self._metrics.handler_started(labels)
            started_at = perf_counter()
            try:
                yield _traceparent(span) or job.traceparent
            except BaseException as raised:
                error = _record_error(span, raised, stop_reason())
                raise
            finally:
                self._metrics.handler_ended(labels, perf_counter() - started_at, error)

    def _attempt(self, job: Job, labels: Labels) -> AbstractContextManager[Span]:
        attributes: Mapping[str, str | int] = {
            names.OPERATION: "process",
            names.OPERATION_TYPE: "process",
            names.MESSAGE_ID: job.id,
            names.ATTEMPT: job.attempt,
            **labels,
        }
        submission = _parse(job.traceparent)
        return self._tracer.start_as_current_span(
            f"process {labels[names.JOB_TYPE]}",
            Context(),  # a new trace: it may start hours later, and more than once
            SpanKind.CONSUMER,
            attributes,
            [Link(submission)] if submission.is_valid else (),
            record_exception=False,
            set_status_on_exception=False,
        )


def set_message_id(transition: Transition) -> None:
    """Set the job's id on the span of its submission, which is current."""
    if transition.event is Event.ENQUEUED:
        trace.get_current_span().set_attribute(names.MESSAGE_ID, transition.job.id)


def _parent(traceparent: str | None) -> Context | None:
    """Return the parent of a submission's span; None stands for the current span.

    A current span of the same trace is closer than the request's header. A `traceparent` of another
    trace was passed on purpose.
    """
    current, given = trace.get_current_span().get_span_context(), _parse(traceparent)
    if not given.is_valid or given.trace_id == current.trace_id:
        return None
    return trace.set_span_in_context(trace.NonRecordingSpan(given), Context())


def _parse(traceparent: str | None) -> SpanContext:
    if traceparent is None:
        return trace.INVALID_SPAN_CONTEXT
    found = _propagator.extract({"traceparent": traceparent}, Context())
    return trace.get_current_span(found).get_span_context()


def _traceparent(span: Span) -> str | None:
    """Return a span's context as a W3C `traceparent`; None if the span is not recorded."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent")


def _record_error(span: Span, raised: BaseException, stop_reason: str | None) -> str:
    """Record what a handler raised on its span; return the `error.type`."""
    if not isinstance(raised, Exception):
        if stop_reason is None and belongs_to_the_loop(raised, stopping=False):
            stop_reason = names.SHUTDOWN
        if stop_reason == names.TIMEOUT:
            _set_error(span, stop_reason)
            return stop_reason
        if stop_reason is not None:  # not an error of the handler
            span.set_attribute(names.ERROR_TYPE, stop_reason)
            return stop_reason
    error = type(raised).__qualname__
    if isinstance(raised, (InvalidPayload, InvalidResult)):
        # Without the traceback: its cause contains the value that did not fit.
        attributes = {names.EXCEPTION_TYPE: error, names.EXCEPTION_MESSAGE: str(raised)}
        span.add_event("exception", attributes)
    else:
        span.record_exception(raised)
    _set_error(span, error)
    return error


def _set_error(span: Span, error: str) -> None:
    span.set_attribute(names.ERROR_TYPE, error)
    span.set_status(Status(StatusCode.ERROR))
