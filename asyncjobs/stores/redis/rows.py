"""What the Redis store sends to its scripts, and reads back, as functions of values."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from typing import TypeVar

from pydantic_core import to_json

from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    from_microseconds,
    to_microseconds,
)
from asyncjobs.core.job import Job, JobId
from asyncjobs.core.lifecycle import forgettable_from
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change
from asyncjobs.stores.redis.keys import Keys
from asyncjobs.stores.redis.looks import FIELDS, NARROW

T = TypeVar("T")

Argument = str | bytes | int
Row = Sequence[bytes | None]

# The most that one script is given to do, so that no other client of the server waits for long.
_MOST_JOBS = 128
_MOST_BYTES = 4 * 1024 * 1024


def first_score(entries: Sequence[bytes]) -> datetime | None:
    """Read when the first entry of a lane is due, from the entry and its score."""
    return from_microseconds(int(float(entries[1]))) if entries else None


def in_portions(items: Sequence[T], size: Callable[[T], int]) -> Generator[Sequence[T]]:
    """Divide items among scripts; one that is too large goes alone."""
    start, total = 0, 0
    for index, item in enumerate(items):
        total += size(item)
        if index > start and (total > _MOST_BYTES or index - start == _MOST_JOBS):
            yield items[start:index]
            start, total = index, size(item)
    if items:
        yield items[start:]


def size_of(job: Job) -> int:
    return len(job.payload_json) + len(job.result_json or b"")


def insertion(job: Job, keys: Keys) -> list[Argument]:
    """Make the arguments by which the script adds a job."""
    more = _result(job)
    owned = ""
    if job.user_id is not None:
        owned = keys.owned(job.user_id)
        more += ["owner", job.user_id]
    keyed = "" if job.idempotency_key is None else "1"
    # No owner is null, and so is not the owner whose name is empty.
    trace = to_json([job.user_id, job.type, job.idempotency_key])
    indexed = (job.id, job.lane, due_at(job), job.status, job.type, job.revision)
    texts = (encode_submission(job), encode_state(job), job.payload_json)
    return [*indexed, *texts, trace, keyed, owned, ends(job), len(more), *more]


def replacement(change: Change) -> list[Argument]:
    """Make the arguments by which the script compares and writes."""
    job = change.job
    more = _result(job)
    indexed = (job.id, change.expected_revision, job.lane, due_at(job), job.status, job.revision)
    return [*indexed, encode_state(job), ends(job), len(more), *more]


def due_at(job: Job) -> Argument:
    return "" if job.due_at is None else to_microseconds(job.due_at)


def ends(job: Job) -> Argument:
    """Tell in milliseconds since 1970 from when on nobody needs the job."""
    end = forgettable_from(job)
    return "" if end is None else to_microseconds(end) // 1000


def _result(job: Job) -> list[Argument]:
    return [] if job.result_json is None else ["result", job.result_json]


def read(job_id: JobId | str, row: Row) -> Job:
    """Read a job's `FIELDS` back."""
    submission, state, payload, result, revision, lane, due = row[: len(FIELDS)]
    if submission is None or state is None or payload is None or revision is None or lane is None:
        raise UnreadableJob(job_id)
    try:
        columns = Columns(payload, result, int(revision), lane.decode(), int(due) if due else None)
    except ValueError as error:
        raise UnreadableJob(job_id) from error
    return decode(job_id, submission, state, columns)


def read_narrow(job_id: JobId | str, row: Row) -> Job:
    """Read a job's `NARROW` fields back, without payload and result."""
    submission, state, *others = row[: len(NARROW)]
    return read(job_id, (submission, state, b"", None, *others))


def named(read_one: Callable[[str, Row], Job]) -> Callable[[Row], Job]:
    """Let a function read rows that begin with the job's id."""
    return lambda row: read_one((row[0] or b"").decode(), row[1:])
