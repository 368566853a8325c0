"""Derives the event of a write from the job before and after it: values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, assert_never

from asyncjobs.core.job import Job, JobStatus


class Event(StrEnum):
    """The events of a job.

    Progress, the renewal of a lease, and the return of a job that was taken but not started are not
    events.
    """

    ENQUEUED = "enqueued"
    STARTED = "started"
    RETRIED = "retried"
    RELEASED = "released"
    LOST = "lost"
    CANCEL_REQUESTED = "cancel_requested"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FORGOTTEN = "forgotten"


#: The same names as literals, for type annotations.
EventName = Literal[
    "enqueued",
    "started",
    "retried",
    "released",
    "lost",
    "cancel_requested",
    "completed",
    "failed",
    "cancelled",
    "forgotten",
]


@dataclass(frozen=True, slots=True)
class Transition:
    """One event: the job after it, the job before it (None for a new job), and its time.

    For a forgotten job, both are the deleted job.
    """

    event: Event
    job: Job
    before: Job | None
    at: datetime

    @property
    def worker_lost(self) -> bool:
        """Whether the job lost its worker: `lost`, or the `failed` of its last delivery."""
        return self.before is not None and self.job.losses > self.before.losses


def event_of(before: Job | None, job: Job) -> Event | None:
    """Return the event of a write; None if it is not an event, such as a renewed lease."""
    if before is None:
        return Event.ENQUEUED
    if before.status.terminal:
        return None
    event: Event | None
    match job.status:
        case JobStatus.PENDING:
            event = _why_it_waits_again(before, job)
        case JobStatus.PROCESSING:
            event = _what_is_new(before, job)
        case JobStatus.COMPLETED:
            event = Event.COMPLETED
        case JobStatus.FAILED:
            event = Event.FAILED
        case JobStatus.CANCELLED:
            event = Event.CANCELLED
        case _:
            assert_never(job.status)
    return event


def _what_is_new(before: Job, job: Job) -> Event | None:
    if before.status is JobStatus.PENDING:
        return Event.STARTED
    asked_now = job.cancel_requested_at is not None and before.cancel_requested_at is None
    return Event.CANCEL_REQUESTED if asked_now else None


def _why_it_waits_again(before: Job, job: Job) -> Event | None:
    if before.status is JobStatus.PENDING:
        return None
    if job.losses > before.losses:
        return Event.LOST
    return Event.RETRIED if job.failures > before.failures else Event.RELEASED
