"""The same job in the words of Azure's long-running operations, for pollers that know only these.

Microsoft's REST API guidelines, "Long-running operations": the status monitor resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from asyncjobs.http.mounts import Links
from asyncjobs.model import Job, JobError, JobId, JobStatus

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


def encode_operation(job: Job, links: Links) -> bytes:
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
