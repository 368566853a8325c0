"""Makes the written-once half of a job from its type, its payload and the caller's options."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from asyncjobs.model import Delivery, Submission, new_job_id
from asyncjobs.registration import Seconds, duration
from asyncjobs.registry import Handler, JobType
from asyncjobs.tracing import new_trace_id, trace_id_of


@dataclass(frozen=True, kw_only=True)
class EnqueueOptions:
    """What one job may have that is rarely needed.

    `run_at` is a moment, or a pause from now, before which the job does not begin. `deadline` is
    counted from then on and replaces the type's. `traceparent` (W3C) or `trace_id` ties the job to
    a trace; a malformed `traceparent` is ignored, as its standard asks.
    """

    run_at: datetime | timedelta | None = None
    deadline: Seconds | None = None
    traceparent: str | None = None
    trace_id: str | None = None

    def begins(self, now: datetime) -> datetime:
        """Say when the job may begin."""
        if self.run_at is None:
            return now
        return max(now, now + self.run_at if isinstance(self.run_at, timedelta) else self.run_at)


@dataclass(frozen=True)
class Caller:
    """Who submits, and under which idempotency key."""

    user_id: str | None = None
    idempotency_key: str | None = None


def make_submission(
    kind: JobType[Any, Any],
    payload: bytes,
    now: datetime,
    *,
    delivery: Delivery,
    caller: Caller,
    options: EnqueueOptions,
) -> Submission:
    """Fix everything about a job that will not change, a new id included.

    The type's limits are copied, so that a later release that changes them does not touch the jobs
    that wait.
    """
    policy = kind.policy
    keyed = caller.idempotency_key is not None
    trace_id = options.trace_id or trace_id_of(options.traceparent)
    return Submission(
        id=new_job_id(),
        type=kind.name,
        payload_json=payload,
        user_id=caller.user_id,
        idempotency_key=caller.idempotency_key,
        fingerprint=hashlib.sha256(payload).hexdigest() if keyed else None,
        trace_id=trace_id or new_trace_id(),
        traceparent=options.traceparent,
        queue=policy.queue,
        delivery=delivery if isinstance(kind, Handler) else Delivery.EXTERNAL,
        retry=policy.retry,
        max_deliveries=policy.max_deliveries,
        timeout=policy.timeout,
        deadline=options.begins(now) + (duration(options.deadline) or policy.deadline),
        retention=policy.retention,
        estimated_duration=kind.estimate,
        created_at=now,
    )
