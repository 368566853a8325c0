"""Traces: a span for each submission, and a linked span for each attempt."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from asyncjobs import (
    AsyncJobs,
    EnqueueOptions,
    Job,
    JobContext,
    JobFailed,
    JobStatus,
    Policy,
    Retry,
)
from asyncjobs.core.job import Delivery
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError, InvalidPayload
from asyncjobs.otel import instrument, names

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
AGAIN = Policy(retry=Retry(max_attempts=2, initial_delay=timedelta(0)))


def traceparent(context: SpanContext | None) -> str:
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


async def done(jobs: AsyncJobs, *arguments: Any, **options: Any) -> Job:
    return await jobs.wait((await jobs.enqueue(*arguments, **options)).id)


def nothing(jobs: AsyncJobs) -> Any:
    @jobs.handler("nothing")
    async def nothing(_payload: None, _job: JobContext) -> None: ...

    return nothing


async def test_a_submission_is_a_producer_and_each_attempt_a_consumer_linked_to_it(
    jobs: AsyncJobs, recorded: Any
) -> None:
    @jobs.handler("import", policy=AGAIN)
    async def import_file(_path: str, job: JobContext) -> None:
        if job.attempt == 1:
            raise ValueError("once more")

    async with jobs:
        job = await done(jobs, import_file, "a.csv", user_id="zoe@example.org")
    [submit] = recorded.spans("enqueue import")
    first, second = recorded.spans("process import")
    assert job.traceparent == traceparent(submit.context)
    assert job.trace_id == f"{submit.context.trace_id:032x}"
    assert submit.kind is SpanKind.PRODUCER
    for number, attempt in enumerate((first, second), start=1):
        assert attempt.kind is SpanKind.CONSUMER
        assert [traceparent(link.context) for link in attempt.links] == [job.traceparent]
        assert attempt.parent is None
        assert attempt.attributes["asyncjobs.job.attempt"] == number
    assert first.context.trace_id != second.context.trace_id
    assert first.status.status_code is StatusCode.ERROR
    assert first.attributes["error.type"] == "ValueError"
    assert [event.name for event in first.events] == ["exception"]
    assert second.status.status_code is StatusCode.UNSET
    for span in (submit, first, second):
        assert span.attributes["messaging.system"] == "asyncjobs"
        assert span.attributes["messaging.destination.name"] == "default"
        assert span.attributes["messaging.message.id"] == job.id
        assert "zoe" not in span.to_json()  # no figures have a z


class Engine(WorkerDispatcher):
    """A dispatcher of an engine; the test delivers its messages."""

    delivery = Delivery.PUSH


async def test_attempts_in_a_worker_of_an_engine_link_to_the_submission(
    make: Any, recorded: Any
) -> None:
    queues: list[AsyncJobs] = [make(dispatcher=Engine()) for _ in range(2)]
    web, worker = queues
    for jobs in queues:

        @jobs.handler("import", policy=AGAIN)
        def import_file(_path: str, job: JobContext) -> None:
            if job.attempt == 1:
                raise ValueError("once more")

    async with web, worker:
        job = (await web.enqueue("import", "a.csv")).job
        with recorded.tracers.get_tracer("engine").start_as_current_span("run/asyncjobs.run"):
            for _ in range(3):  # one too many
                await worker.run(job.id)
        assert (await web.find(job.id)).status is JobStatus.COMPLETED
    [submit] = recorded.spans("enqueue import")
    attempts = recorded.spans("process import")
    assert [one.attributes["asyncjobs.job.attempt"] for one in attempts] == [1, 2]
    for attempt in attempts:
        assert attempt.parent is None
        assert [traceparent(link.context) for link in attempt.links] == [job.traceparent]
    assert job.traceparent == traceparent(submit.context)
    of_import = {"asyncjobs_job_type": "import"}
    assert recorded.total(names.SENT, **of_import) == 1
    assert recorded.total(names.CONSUMED, **of_import) == 2
    assert recorded.total(names.ENDED, asyncjobs_job_outcome="completed", **of_import) == 1


async def test_a_submission_is_a_child_of_the_current_span(jobs: AsyncJobs, recorded: Any) -> None:
    kind = nothing(jobs)
    async with jobs:
        with recorded.tracers.get_tracer("app").start_as_current_span("request") as request:
            ours = traceparent(request.get_span_context())
            await jobs.enqueue(kind, None)
            await jobs.enqueue(kind, None, options=EnqueueOptions(traceparent=ours))
    for submit in recorded.spans("enqueue"):
        assert submit.parent == request.get_span_context()


async def test_a_given_traceparent_of_another_trace_is_the_parent(
    jobs: AsyncJobs, recorded: Any
) -> None:
    kind, options = nothing(jobs), EnqueueOptions(traceparent=THEIRS)
    async with jobs:
        await jobs.enqueue(kind, None, options=options)
        with recorded.tracers.get_tracer("app").start_as_current_span("request"):
            job = (await jobs.enqueue(kind, None, options=options)).job
    assert job.trace_id == THEIRS.split("-")[1]
    for submit in recorded.spans("enqueue"):
        assert traceparent(submit.parent) == THEIRS


async def test_a_given_trace_id_is_kept(jobs: AsyncJobs, recorded: Any) -> None:
    kind = nothing(jobs)
    async with jobs:
        job = (await jobs.enqueue(kind, None, options=EnqueueOptions(trace_id="mine"))).job
    [submit] = recorded.spans("enqueue")
    assert (job.trace_id, job.traceparent) == ("mine", traceparent(submit.context))


async def test_a_malformed_traceparent_starts_a_new_trace(jobs: AsyncJobs, recorded: Any) -> None:
    kind = nothing(jobs)
    async with jobs:
        options = EnqueueOptions(traceparent="00-zz-11-01")
        job = (await jobs.enqueue(kind, None, options=options)).job
    [submit] = recorded.spans("enqueue")
    assert (submit.parent, job.traceparent) == (None, traceparent(submit.context))


async def test_a_retried_job_has_its_own_submission_span(jobs: AsyncJobs, recorded: Any) -> None:
    kind = nothing(jobs)
    async with jobs:
        first = await done(jobs, kind, None)
        again = await jobs.wait((await jobs.retry(first.id)).id)
    submits = recorded.spans("enqueue")
    assert [traceparent(one.context) for one in submits] == [first.traceparent, again.traceparent]
    assert again.trace_id == f"{submits[1].context.trace_id:032x}"


async def test_a_refused_submission_is_an_error_without_its_payload(
    jobs: AsyncJobs, recorded: Any
) -> None:
    kind = jobs.external("typed", payload=int, result=int)
    async with jobs:
        with pytest.raises(InvalidPayload):
            await jobs.enqueue(kind, "secret")  # type: ignore[misc]
    [submit] = recorded.spans("enqueue")
    assert submit.status.status_code is StatusCode.ERROR
    assert submit.attributes["error.type"] == "InvalidPayload"
    assert "secret" not in submit.to_json()


async def test_the_attempt_is_current_in_async_handlers_and_in_threads(
    jobs: AsyncJobs, recorded: Any
) -> None:
    seen: dict[str, tuple[str, str | None]] = {}

    def look(job: JobContext) -> None:
        with recorded.tracers.get_tracer("app").start_as_current_span("inner"):
            pass
        current = trace.get_current_span().get_span_context()
        seen[job.type] = traceparent(current), job.traceparent

    @jobs.handler("async")
    async def asynchronous(_payload: None, job: JobContext) -> None:
        await anyio.lowlevel.checkpoint()
        look(job)

    @jobs.handler("def")
    def plain(_payload: None, job: JobContext) -> None:
        assert threading.current_thread() is not threading.main_thread()
        look(job)

    async with jobs:
        for kind in (asynchronous, plain):
            assert (await done(jobs, kind, None)).status is JobStatus.COMPLETED
    for name in ("async", "def"):
        [attempt] = recorded.spans(f"process {name}")
        assert seen[name] == (traceparent(attempt.context),) * 2
    parents = {span.parent.span_id for span in recorded.spans("inner")}
    assert parents == {span.context.span_id for span in recorded.spans("process")}


async def test_a_handler_is_not_in_the_span_of_the_submission(
    jobs: AsyncJobs, recorded: Any
) -> None:
    current: list[SpanContext] = []

    @jobs.handler("after")
    async def after(_payload: None, _job: JobContext) -> None:
        current.append(trace.get_current_span().get_span_context())

    tracer = recorded.tracers.get_tracer("app")
    with tracer.start_as_current_span("startup") as startup:
        async with jobs:
            with tracer.start_as_current_span("request") as request:
                await done(jobs, after, None)
    outside = {one.get_span_context().trace_id for one in (startup, request)}
    assert current[0].trace_id not in outside


@pytest.mark.parametrize("reason", ["cancel", "shutdown"])
async def test_a_handler_stopped_by_the_runtime_is_no_error(
    jobs: AsyncJobs, recorded: Any, reason: str
) -> None:
    started = anyio.Event()

    @jobs.handler("long")
    async def long(_payload: None, _job: JobContext) -> None:
        started.set()
        await anyio.sleep_forever()

    async with jobs:
        job = await jobs.enqueue(long, None)
        await started.wait()
        if reason == "cancel":
            await jobs.cancel(job.id)
            await jobs.wait(job.id)
    [attempt] = recorded.spans("process")
    assert attempt.status.status_code is StatusCode.UNSET
    assert attempt.attributes["error.type"] == reason


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_timeout_is_an_error(jobs: AsyncJobs, recorded: Any, *, asynchronous: bool) -> None:
    brief = Policy(timeout=timedelta(seconds=0.1))

    @jobs.handler("async", policy=brief)
    async def on_the_loop(_payload: None, _job: JobContext) -> None:
        await anyio.sleep_forever()

    @jobs.handler("def", policy=brief)
    def in_a_thread(_payload: None, job: JobContext) -> None:
        while True:
            job.check()

    async with jobs:
        job = await done(jobs, "async" if asynchronous else "def", None)
    assert job.error
    assert job.error.code == "timeout"
    [attempt] = recorded.spans("process")
    assert attempt.status.status_code is StatusCode.ERROR
    assert attempt.attributes["error.type"] == "timeout"


@pytest.mark.parametrize("error", [SystemExit(), JobFailed("No such customer.")])
async def test_any_exception_of_a_handler_is_an_error(
    jobs: AsyncJobs, recorded: Any, error: BaseException
) -> None:
    @jobs.handler("fails")
    async def fails(_payload: None, _job: JobContext) -> None:
        raise error

    async with jobs:
        await done(jobs, fails, None)
    [attempt] = recorded.spans("process")
    assert attempt.status.status_code is StatusCode.ERROR
    assert attempt.attributes["error.type"] == type(error).__name__


async def test_an_invalid_payload_or_result_is_an_error_without_its_value(
    jobs: AsyncJobs, store: Any, recorded: Any
) -> None:
    before = AsyncJobs(store, dispatcher="worker")

    @before.handler("typed")
    async def earlier(_text: str, _job: JobContext) -> int:
        return 1

    @jobs.handler("typed")
    async def typed(_number: int, _job: JobContext) -> int:
        return 1

    @jobs.handler("lies")
    async def lies(_payload: None, _job: JobContext) -> int:
        return "secret"  # type: ignore[return-value]

    async with before, jobs:
        await jobs.wait((await before.enqueue(earlier, "secret")).id)
        await done(jobs, lies, None)
    attempts = recorded.spans("process")
    assert [one.attributes["error.type"] for one in attempts] == ["InvalidPayload", "InvalidResult"]
    for attempt in attempts:
        assert [event.name for event in attempt.events] == ["exception"]
        assert "secret" not in attempt.to_json()


async def test_a_handler_in_a_process_gets_the_traceparent_of_its_span(
    jobs: AsyncJobs, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    for kind in import_module("traced_handlers").kinds.registry:
        jobs.registry.add(kind)
    async with jobs:
        job = await done(jobs, "traceparent", None)
    [attempt] = recorded.spans("process")
    assert job.result == traceparent(attempt.context)


async def test_a_queue_is_instrumented_once_and_before_it_is_opened(
    jobs: AsyncJobs, store: Any, recorded: Any
) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        instrument(jobs, tracer_provider=recorded.tracers)
    late = AsyncJobs(store)
    async with late:
        with pytest.raises(ConfigurationError, match="before it is opened"):
            instrument(late)


async def test_without_an_sdk_the_callers_context_is_passed_on(store: Any) -> None:
    jobs = AsyncJobs(store)
    instrument(jobs)
    kind = nothing(jobs)
    async with jobs:
        options = EnqueueOptions(traceparent=THEIRS)
        job = await done(jobs, kind, None, options=options)
        alone = await done(jobs, kind, None)
    assert (job.traceparent, job.status) == (THEIRS, JobStatus.COMPLETED)
    assert alone.traceparent is None


@pytest.mark.own_store
async def test_without_opentelemetry_the_import_names_the_extra() -> None:
    script = "import sys; sys.modules['opentelemetry'] = None; import asyncjobs.otel"
    done = await anyio.run_process([sys.executable, "-c", script], check=False)
    assert b"pip install 'asyncjobs-http[otel]'" in done.stderr
