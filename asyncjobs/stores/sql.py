"""Code shared by the SQL stores: rows and jobs, lists, and the migration script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from asyncjobs.core.encoding import (
    Columns,
    decode,
    from_microseconds,
    sequence_of,
    to_microseconds,
)
from asyncjobs.core.job import Job, JobStatus
from asyncjobs.core.labels import BATCH_PREFIX
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Page
from asyncjobs.stores.reading import readable

Row = Sequence[Any]

#: The columns that `job_from` reads; `seq`, the order of insertion, comes last.
JOB_COLUMNS = "id, submission, state, payload, result, errors, revision, lane, due_at, seq"

#: The condition for a label of a batch.
IS_BATCH = f"substr(own.label, 1, {len(BATCH_PREFIX)}) = '{BATCH_PREFIX}'"

# A cursor is the `seq` of a page's last job.
_MAX_CURSOR_DIGITS = 18


def job_from(row: Row) -> Job:
    """Decode a job from its `JOB_COLUMNS`."""
    return decode(row[0], row[1], row[2], Columns._make(row[3:9]))


def due_column(job: Job) -> int | None:
    """Return the value of the column `due_at` for a job."""
    return None if job.due_at is None else to_microseconds(job.due_at)


def moments_from(rows: Iterable[Row]) -> list[datetime | None]:
    """Decode a column of moments, which may be NULL."""
    return [None if moment is None else from_microseconds(moment) for (moment,) in rows]


def condition(
    terms: Mapping[str, str | int | None], status: JobStatus | None, *others: str
) -> tuple[str, list[str | int]]:
    """Join the terms whose value is not None, and others; return the condition and the values."""
    given = {term: value for term, value in terms.items() if value is not None}
    # The status is a literal: a partial index is not used for a parameter.
    state = [] if status is None else [f"status = '{status.value}'"]
    return " AND ".join([*given, *state, *others]) or "true", [*given.values()]


def cursor_from(after: str | None) -> int | None:
    """Return the `seq` before which a list continues; raise `InvalidQuery` for any other text."""
    return sequence_of(after, _MAX_CURSOR_DIGITS)


def page_of(rows: Sequence[Row], limit: int, read: Callable[[Row], Job] = job_from) -> Page:
    """Return a page of at most `limit` jobs; one extra row means that the list continues."""
    jobs = readable(rows[:limit], read)
    return Page(jobs, str(rows[limit - 1][-1]) if len(rows) > limit else None)


def script_since(since: int, *, version: int, script: str) -> str:
    """Return the script that makes the tables, or '' if `since` is the current version.

    Raises `ConfigurationError` for a version that does not exist.
    """
    if since > version:
        raise ConfigurationError(f"Schema version {since} does not exist; the latest is {version}.")
    return "" if since == version else script
