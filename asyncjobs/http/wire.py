"""The documents of the wire, in camelCase by one rule, and the functions that write them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from asyncjobs.http.mounts import Links
from asyncjobs.model import Detail, Job, JobId, JobStatus
from asyncjobs.protocols import Page


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class AcceptedDocument(_Document):
    """The answer to a submission: where to follow the job."""

    status: Literal["accepted"] = "accepted"
    job_id: JobId
    status_url: str
    result_url: str
    events_url: str
    cancel_url: str
    estimated_duration: float | None = Field(default=None, description="seconds")


class JobDocument(_Document):
    """A job as its owner sees it."""

    job_id: JobId
    type: str
    status: JobStatus
    progress: int = Field(ge=0, le=100)
    detail: Detail | None = None
    result: JsonValue = None
    error: str | None = None
    error_code: str | None = None
    attempt: int = Field(default=0, description="how many times the work was begun")
    created_at: datetime
    started_at: datetime | None = Field(default=None, description="of the latest attempt")
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    estimated_duration: float | None = Field(default=None, description="seconds")
    trace_id: str
    version: int = Field(description="grows with each change; the number in the ETag")
    retry_after: int | None = Field(default=None, description="seconds; null once terminal")
    position: int | None = Field(default=None, description="how far in front of its queue it waits")


class ListedDocument(_Document):
    """A job in a list: its status without its result."""

    job_id: JobId
    status_url: str
    type: str
    status: JobStatus
    progress: int = Field(ge=0, le=100)
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = Field(default=None, description="of the latest attempt")
    completed_at: datetime | None = None


class ListDocument(_Document):
    """Some of a caller's jobs, the newest first."""

    jobs: list[ListedDocument]
    next: str | None = Field(default=None, description="where the list goes on")


def encode_accepted(job: Job, links: Links) -> bytes:
    """Write the document of a 202."""
    document: dict[str, Any] = {
        "status": "accepted",
        "jobId": job.id,
        "statusUrl": links.status,
        "resultUrl": links.result,
        "eventsUrl": links.events,
        "cancelUrl": links.cancel,
    }
    if job.estimated_duration is not None:
        document["estimatedDuration"] = _seconds(job.estimated_duration)
    return to_json(document)


def encode_job(job: Job) -> bytes:
    """Write what of a `JobDocument` only changes with the job's version.

    The stored result is passed on, neither parsed nor rewritten.
    """
    estimate = job.estimated_duration
    document = to_json(
        {
            "jobId": job.id,
            "type": job.type,
            "status": job.status,
            "progress": job.progress,
            "detail": job.detail,
            "error": job.error.message if job.error else None,
            "errorCode": job.error.code if job.error else None,
            "attempt": job.attempt,
            "createdAt": job.created_at,
            "startedAt": job.started_at,
            "completedAt": job.completed_at,
            "cancelRequestedAt": job.cancel_requested_at,
            "estimatedDuration": None if estimate is None else _seconds(estimate),
            "traceId": job.trace_id,
            "version": job.version,
        }
    )
    return document[:-1] + b',"result":' + (job.result_json or b"null") + b"}"


def with_pace(document: bytes, retry_after: int | None, position: int | None = None) -> bytes:
    """Add to a job's document what is true at this moment only."""
    pace = b"null" if retry_after is None else b"%d" % retry_after
    place = b"null" if position is None else b"%d" % position
    return b'%s,"retryAfter":%s,"position":%s}' % (document[:-1], pace, place)


def encode_list(page: Page, base: str, next_url: str | None) -> bytes:
    """Write a `ListDocument`."""
    return to_json({"jobs": [_listed(job, base) for job in page.jobs], "next": next_url})


def _listed(job: Job, base: str) -> dict[str, Any]:
    return {
        "jobId": job.id,
        "statusUrl": f"{base}/{job.id}",
        "type": job.type,
        "status": job.status,
        "progress": job.progress,
        "error": job.error.message if job.error else None,
        "createdAt": job.created_at,
        "startedAt": job.started_at,
        "completedAt": job.completed_at,
    }


def _seconds(duration: timedelta) -> float:
    """Express a duration in seconds, whole ones without a fraction."""
    seconds = duration.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds
