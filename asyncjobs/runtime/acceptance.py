"""Accepts jobs: checks payloads and stores a job for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import anyio.lowlevel

from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, Submission
from asyncjobs.core.submission import (
    Accepted,
    Caller,
    EnqueueOptions,
    Terms,
    make_submission,
    same_payload,
)
from asyncjobs.errors import IdempotencyConflict
from asyncjobs.runtime.runtime import Runtime

P = TypeVar("P")

# How many payloads are checked before other tasks get a turn.
_PAYLOADS_PER_TURN = 200


async def accept_jobs(
    runtime: Runtime,
    kind: JobType[P, Any],
    payloads: Sequence[P],
    caller: Caller,
    options: EnqueueOptions,
    connection: object = None,
    /,
) -> Sequence[Accepted]:
    """Store jobs of one type in a single call of the store; see `AsyncJobs.enqueue`."""
    if options.callback_url is not None:
        runtime.callbacks.check(options.callback_url)
    now = runtime.repository.now()
    terms = Terms(now, runtime.dispatcher.delivery, expected_duration(runtime, kind))
    spans, queue = runtime.hooks.spans, kind.policy.queue
    with spans.submitting(kind.name, queue, options.traceparent) as traceparent:
        if traceparent != options.traceparent:
            options = replace(options, traceparent=traceparent)
        submissions: list[Submission] = []
        for payload in payloads:
            submissions.append(make_submission(kind, payload, caller, options, terms))
            if not len(submissions) % _PAYLOADS_PER_TURN:
                await anyio.lowlevel.checkpoint()
        jobs = await runtime.accept(submissions, options.begins(now), connection)
    return [
        _accepted(kind, submission, job) for submission, job in zip(submissions, jobs, strict=True)
    ]


def _accepted(kind: JobType[Any, Any], submission: Submission, job: Job) -> Accepted:
    if job.id == submission.id:
        return Accepted(job, replayed=False)
    if not same_payload(kind, job, submission):
        raise IdempotencyConflict(submission.idempotency_key or "", job.id)
    return Accepted(job, replayed=True)


def expected_duration(runtime: Runtime, what: JobType[Any, Any] | Job) -> timedelta | None:
    """Return how long a job takes, by its handler's estimate and the latest jobs."""
    if isinstance(what, Job):
        return runtime.estimates.of(what.type, what.estimated_duration)
    return runtime.estimates.of(what.name, what.estimate)
