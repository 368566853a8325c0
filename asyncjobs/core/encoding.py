"""Encodes jobs for stores: one JSON text per half, and columns for wide and indexed data.

Every store that keeps text shares this encoding, so a field added to the model changes no store.
Fields with their default value are left out: most have it, and reading then takes half the time.
The defaults are therefore part of the stored format and never change.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import ValidationError

from asyncjobs.core.job import Job, State, Submission
from asyncjobs.errors import InvalidQuery, UnreadableJob

_NUMBER = re.compile(r"[0-9]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Columns(NamedTuple):
    """The columns that a store keeps beside the two texts."""

    payload: bytes
    result: bytes | None
    errors: bytes | None
    revision: int
    lane: str
    due_at: int | None


def encode_submission(job: Job) -> bytes:
    """Return the half that never changes as JSON, without the payload."""
    return Submission.__pydantic_serializer__.to_json(job, exclude_defaults=True)


def encode_state(job: Job) -> bytes:
    """Return the half that changes as JSON, without result, errors, revision, lane and due_at."""
    return State.__pydantic_serializer__.to_json(job, exclude_defaults=True)


def decode(job_id: str, submission: bytes, state: bytes, columns: Columns) -> Job:
    """Return the job that the functions above encoded; raise `UnreadableJob` if it is damaged."""
    try:
        job: Job = Job.__pydantic_validator__.validate_json(submission[:-1] + b"," + state[1:])
    except ValidationError as error:
        raise UnreadableJob(job_id) from error
    # Safe in place: no other code has a reference to this job yet.
    vars(job).update(
        payload_json=columns.payload,
        result_json=columns.result,
        errors_json=columns.errors,
        revision=columns.revision,
        lane=columns.lane,
        due_at=None if columns.due_at is None else from_microseconds(columns.due_at),
    )
    return job


def sequence_of(cursor: str | None, digits: int) -> int | None:
    """Return the number in a cursor; raise `InvalidQuery` if it is not one of at most `digits`."""
    if cursor is None:
        return None
    if len(cursor) <= digits and _NUMBER.fullmatch(cursor):
        return int(cursor)
    raise InvalidQuery("cursor", "it is not the cursor of a page")


def to_microseconds(moment: datetime) -> int:
    """Return a moment as whole microseconds since 1970; no precision is lost."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the moment of a value of `to_microseconds`."""
    return _EPOCH + timedelta(microseconds=value)
