"""The documents that are sent: JSON of a job, of a list, of an Azure operation, and SSE events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from asyncjobs.core.job import Detail, Job, JobError, JobId, JobStatus
from asyncjobs.http import sse
from asyncjobs.http.mounts import JobLinks
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


def encode_accepted(job: Job, links: JobLinks) -> bytes:
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


STATES: Mapping[JobStatus, str] = {
    JobStatus.PENDING: "NotStarted",
    JobStatus.PROCESSING: "Running",
    JobStatus.COMPLETED: "Succeeded",
    JobStatus.FAILED: "Failed",
    JobStatus.CANCELLED: "Canceled",
}


class OperationError(BaseModel):
    """Why an operation did not succeed."""

    code: str
    message: str


class OperationDocument(BaseModel):
    """A job as an operation; `result` and `resourceLocation` come with success."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    id: JobId
    kind: str
    status: Literal["NotStarted", "Running", "Succeeded", "Failed", "Canceled"]
    percent_complete: int = Field(ge=0, le=100)
    created_date_time: datetime
    last_action_date_time: datetime
    error: OperationError | None = None
    resource_location: str | None = Field(default=None, description="where the result is")
    result: JsonValue = None


_CANCELLED = JobError(code="job_cancelled", message="The job was cancelled.")


def encode_operation(job: Job, links: JobLinks) -> bytes:
    """Write the operation's resource; a result is passed on as it is stored."""
    error = _CANCELLED if job.status is JobStatus.CANCELLED else job.error
    document = to_json(
        {
            "id": job.id,
            "kind": job.type,
            "status": STATES[job.status],
            "percentComplete": job.progress,
            "createdDateTime": job.created_at,
            "lastActionDateTime": job.completed_at or job.started_at or job.created_at,
            "error": None if error is None else {"code": error.code, "message": error.message},
        },
    )
    if job.status is not JobStatus.COMPLETED:
        return document
    # Where the result is on its own; the poller fetches it with the client's own credentials.
    location = links.operation.removesuffix("/operation") + "/result"
    return b'%s,"resourceLocation":%s,"result":%s}' % (
        document[:-1],
        to_json(location),
        job.result_json or b"null",
    )


_MAX_CACHE_BYTES = 8 * 1024 * 1024

_Key = tuple[JobId, int]


class Encoded:
    """Keeps what was written last, up to some megabytes."""

    def __init__(self) -> None:
        self._documents = _Cache(encode_job)
        self._events = _Cache(
            lambda job: sse.event(job.version, with_pace(self.document(job), None))
        )

    def document(self, job: Job) -> bytes:
        """Return what `encode_job` makes of a job."""
        return self._documents.get(job)

    def event(self, job: Job) -> bytes:
        """Return the event of a stream that shows a job as it stands."""
        return self._events.get(job)


class _Cache:
    def __init__(self, encode: Callable[[Job], bytes]) -> None:
        self._encode = encode
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0

    def get(self, job: Job) -> bytes:
        key = (job.id, job.revision)
        text = self._kept.get(key)
        if text is None:
            text = self._kept[key] = self._encode(job)
            self._size += len(text)
            while self._size > _MAX_CACHE_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest)
        return text
