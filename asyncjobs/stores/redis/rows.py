"""Jobs as arguments of the Redis store's scripts, and the scripts' answers as jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

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
from asyncjobs.core.labels import Tallies, Tally, labels_of, possible_labels, tallies_of
from asyncjobs.core.lifecycle import forgettable_from
from asyncjobs.errors import UnreadableJob
from asyncjobs.protocols import Change
from asyncjobs.stores.redis.scripts import FIELDS, NARROW, Argument, Keys

Row = Sequence[bytes | None]


def insertion(job: Job, keys: Keys, *, labelled: bool) -> list[Argument]:
    """Return the arguments with which `INSERT` or `INSERT_LABELLED` adds a job."""
    more = _wide(job)
    owned = ""
    if job.user_id is not None:
        owned = keys.owned(job.user_id)
        more += ["owner", job.user_id]
    keyed = "" if job.idempotency_key is None else "1"
    # JSON distinguishes no owner (null) from an owner with an empty name ("").
    trace = to_json([job.user_id, job.type, job.idempotency_key])
    indexed = (job.id, job.lane, _due_at(job), job.status, job.type, job.revision)
    texts = (encode_submission(job), encode_state(job), job.payload_json)
    more = [*indexed, *texts, trace, keyed, owned, _retention_end(job), len(more), *more]
    if labelled:
        possible = possible_labels(job)
        more += [to_json(possible) if possible else "", *_labels(labels_of(job), tallies_of(job))]
    return more


def replacement(change: Change, *, labelled: bool) -> list[Argument]:
    """Return the arguments with which `REPLACE` or a variant compares and writes."""
    job = change.job
    more = _wide(job)
    indexed = (job.id, change.expected_revision, job.lane, _due_at(job), job.status, job.revision)
    more = [*indexed, encode_state(job), _retention_end(job), len(more), *more]
    if labelled:
        more += _labels(change.labels, change.tallies or {})
    return more


def _labels(labels: Sequence[str], tallies: Tallies) -> list[Argument]:
    counters: list[Argument] = [
        part
        for label, tally in tallies.items()
        for name, number in tally.items()
        for part in (label, name, number)
    ]
    return [len(labels), *labels, len(counters), *counters]


def _due_at(job: Job) -> Argument:
    return "" if job.due_at is None else to_microseconds(job.due_at)


def _retention_end(job: Job) -> Argument:
    """Return the end of the job's retention in milliseconds since 1970, '' if it has none."""
    end = forgettable_from(job)
    return "" if end is None else to_microseconds(end) // 1000


def _wide(job: Job) -> list[Argument]:
    result: list[Argument] = [] if job.result_json is None else ["result", job.result_json]
    return result if job.errors_json is None else [*result, "errors", job.errors_json]


def read(job_id: JobId | str, row: Row) -> Job:
    """Decode a job from its `FIELDS`."""
    submission, state, payload, result, errors, revision, lane, due = row[: len(FIELDS)]
    if submission is None or state is None or payload is None or revision is None or lane is None:
        raise UnreadableJob(job_id)
    try:
        due_at = int(due) if due else None
        columns = Columns(payload, result, errors, int(revision), lane.decode(), due_at)
    except ValueError as error:
        raise UnreadableJob(job_id) from error
    return decode(job_id, submission, state, columns)


def read_narrow(job_id: JobId | str, row: Row) -> Job:
    """Decode a job from its `NARROW` fields, without payload, result and errors."""
    submission, state, *others = row[: len(NARROW)]
    return read(job_id, (submission, state, b"", None, None, *others))


def with_id(read_one: Callable[[str, Row], Job]) -> Callable[[Row], Job]:
    """Return a function that reads rows which begin with the job's id."""
    return lambda row: read_one((row[0] or b"").decode(), row[1:])


def first_score(entries: Sequence[bytes]) -> datetime | None:
    """Return when the first entry of a lane is due, from the entry and its score."""
    return from_microseconds(int(float(entries[1]))) if entries else None


def tally_from(values: Mapping[bytes, bytes]) -> Tally:
    """Decode a hash of counters."""
    return {name.decode(): int(value) for name, value in values.items()}
