"""How stores write a job down: one text per half, wide data and indexed columns beside them.

Shared by every store that keeps text, so that a field added to the model needs no store to change.
A text has no fields that have their default: most have, and reading the rest takes half the time.
So these defaults are part of what is stored, and never change.
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
    """What a store keeps apart from the two texts."""

    payload: bytes
    result: bytes | None
    errors: bytes | None
    revision: int
    lane: str
    due_at: int | None


def encode_submission(job: Job) -> bytes:
    """Write the half that never changes, without the payload."""
    return Submission.__pydantic_serializer__.to_json(job, exclude_defaults=True)


def encode_state(job: Job) -> bytes:
    """Write the half that moves, without result, errors, revision, lane and due_at."""
    return State.__pydantic_serializer__.to_json(job, exclude_defaults=True)


def decode(job_id: str, submission: bytes, state: bytes, columns: Columns) -> Job:
    """Read a job back, the exact inverse of the functions above; or raise `UnreadableJob`."""
    try:
        job: Job = Job.__pydantic_validator__.validate_json(submission[:-1] + b"," + state[1:])
    except ValidationError as error:
        raise UnreadableJob(job_id) from error
    # In place: nobody else has the job yet.
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
    """Read where a list goes on: a number of at most so many digits; or raise `InvalidQuery`."""
    if cursor is None:
        return None
    if len(cursor) <= digits and _NUMBER.fullmatch(cursor):
        return int(cursor)
    raise InvalidQuery("cursor", "no page ended there")


def to_microseconds(moment: datetime) -> int:
    """Express a moment as whole microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Undo `to_microseconds`."""
    return _EPOCH + timedelta(microseconds=value)
