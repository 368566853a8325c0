"""Jobs to put into a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from asyncjobs import lifecycle
from asyncjobs.model import Job, Submission, new_job_id

#: The moment at which sample jobs are made.
NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def sample_job(**submission: Any) -> Job:
    """Make a pending job, due now in the lane `default`; name what shall be different of it."""
    return lifecycle.submit(sample_submission(**submission))


def sample_submission(**submission: Any) -> Submission:
    """Make the half of a job that is written once."""
    created_at: datetime = submission.get("created_at", NOW)
    fields: dict[str, Any] = {
        "id": new_job_id(),
        "type": "export",
        "payload_json": b'{"format":"csv"}',
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "timeout": timedelta(minutes=15),
        "deadline": created_at + timedelta(hours=24),
        "retention": timedelta(hours=24),
        "created_at": created_at,
        **submission,
    }
    return Submission(**fields)
