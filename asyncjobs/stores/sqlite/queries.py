"""The reads and writes of the SQLite store, as functions of an open connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime

from asyncjobs.core.encoding import encode_state, encode_submission
from asyncjobs.core.job import Job, JobId
from asyncjobs.core.labels import Tallies, Tally, labels_of, tallies_of, total_of
from asyncjobs.protocols import Change, Page, Selection
from asyncjobs.stores.reading import readable
from asyncjobs.stores.sql import (
    IS_BATCH,
    JOB_COLUMNS,
    condition,
    cursor_from,
    due_column,
    job_from,
    moments_from,
    page_of,
)
from asyncjobs.stores.sqlite import output

_JOB = (
    f"SELECT {JOB_COLUMNS}"  # noqa: S608  # constants
    " FROM jobs JOIN submissions USING (seq) LEFT JOIN results USING (seq)"
)
# Lists return no payloads, so SQLite does not read their pages.
_NARROW_JOB = (
    "SELECT id, submission, state, x'', NULL, NULL, revision, lane, due_at, seq"
    " FROM jobs JOIN submissions USING (seq)"
)
# CROSS JOIN keeps this order, in which no row is sorted.
_LABELLED = (
    "SELECT id, submission, state, x'', NULL, NULL, revision, lane, due_at, jobs.seq"
    " FROM labels CROSS JOIN jobs ON jobs.seq = labels.seq"
    " CROSS JOIN submissions ON submissions.seq = labels.seq"
)
_IS_NO_MEMBER = f"NOT EXISTS (SELECT 1 FROM labels AS own WHERE own.seq = jobs.seq AND {IS_BATCH})"  # noqa: S608  # constants
_BY_ONE_ID = f"{_JOB} WHERE id = ?"
_BY_ID = f"{_JOB} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608  # constants
_BY_SEQ = f"{_JOB} WHERE seq IN (SELECT value FROM json_each(?))"  # noqa: S608  # constants
_ANY_DUE = "SELECT 1 FROM jobs WHERE lane = ? AND due_at <= ? LIMIT 1"
_DUE = "SELECT due_at, seq FROM jobs WHERE lane = ? AND due_at <= ? ORDER BY due_at, seq LIMIT ?"
_FIRST_DUE = "SELECT min(due_at) FROM jobs WHERE lane = ?"
_BY_KEY = "SELECT seq FROM idempotency_keys WHERE owner = ? AND type = ? AND key = ?"
_UPDATE = (
    "UPDATE jobs SET state = ?, revision = ?, lane = ?, due_at = ?, status = ?"
    " WHERE id = ? AND revision = ?"
)
# A change without result or errors keeps the stored ones.
_KEEP = (
    "INSERT INTO results SELECT seq, ?, ? FROM jobs WHERE id = ?"
    " ON CONFLICT (seq) DO UPDATE SET result = coalesce(excluded.result, result),"
    " errors = coalesce(excluded.errors, errors)"
)
_PLACE = "SELECT due_at, seq FROM jobs WHERE id = ? AND lane = ? AND due_at IS NOT NULL"
# Two parts, since SQLite uses an index for only the first column of a row comparison.
_BETWEEN = (
    "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE lane = ?1 AND due_at = ?3 AND seq < ?4"
    " UNION ALL SELECT 1 FROM jobs WHERE lane = ?1 AND due_at > ?2 AND due_at < ?3 LIMIT ?5)"
)
# Earlier than every due time.
_LONG_AGO = -(2**62)
_LAST = "SELECT max(seq, coalesce((SELECT max(seq) FROM jobs), 0)) FROM deleted"
_NOTE_DELETED = "UPDATE deleted SET seq = ? WHERE seq < ?"
_INSERT = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_WIDE = "INSERT INTO submissions VALUES (?, ?, ?)"
_INSERT_RESULT = "INSERT INTO results VALUES (?, ?, ?)"
_INSERT_KEY = "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?)"
_INSERT_LABEL = "INSERT OR IGNORE INTO labels VALUES (?, ?)"
_ADD_LABEL = "INSERT OR IGNORE INTO labels SELECT ?, seq FROM jobs WHERE id = ?"
_LABELS = "SELECT DISTINCT label FROM labels WHERE seq IN (SELECT value FROM json_each(?))"
_COUNT = (
    "INSERT INTO tallies VALUES (?, ?, ?)"
    " ON CONFLICT (label, name) DO UPDATE SET number = number + excluded.number"
)
_UNCOUNT = (
    "DELETE FROM tallies WHERE label = ?1 AND NOT EXISTS (SELECT 1 FROM labels WHERE label = ?1)"
)
_TALLY = "SELECT name, number FROM tallies WHERE label = ?"
_UNLABEL = "DELETE FROM labels WHERE seq = ?"
_FORGET = (
    "DELETE FROM idempotency_keys WHERE seq = ?",
    "DELETE FROM results WHERE seq = ?",
    "DELETE FROM submissions WHERE seq = ?",
    "DELETE FROM jobs WHERE seq = ?",
)


def get(db: sqlite3.Connection, ids: Sequence[JobId]) -> list[Job | None]:
    """Read jobs in the order of the ids."""
    if len(ids) == 1:  # the case of status routes; a list of ids takes several times as long
        row = db.execute(_BY_ONE_ID, ids).fetchone()
        return [None if row is None else job_from(row)]
    found = db.execute(_BY_ID, (json.dumps(ids),)).fetchall()
    jobs = {row[0]: job_from(row) for row in found}
    return [jobs.get(job_id) for job_id in ids]


def any_due(db: sqlite3.Connection, lanes: Sequence[str], now: int) -> bool:
    """Return whether `take` would find a job."""
    return any(db.execute(_ANY_DUE, (lane, now)).fetchone() for lane in lanes)


def select(db: sqlite3.Connection, which: Selection, limit: int, after: str | None) -> Page:
    """Read a page of a list."""
    label = which.label
    table, jobs = ("jobs", _NARROW_JOB) if label is None else ("labels", _LABELLED)
    terms = {
        "label = ?": label,
        "owner = ?": which.user_id,
        "type = ?": which.type,
        f"{table}.seq < ?": cursor_from(after),
    }
    where, values = condition(terms, which.status, *([] if which.members else [_IS_NO_MEMBER]))
    query = f"{jobs} WHERE {where} ORDER BY {table}.seq DESC LIMIT ?"
    return page_of(db.execute(query, (*values, limit + 1)).fetchall(), limit)


def count_before(db: sqlite3.Connection, job: Job, now: int, until: int, most: int) -> int:
    """Count the jobs of the lane that begin before a job, up to `most`."""
    mine = db.execute(_PLACE, (job.id, job.lane)).fetchone()
    if mine is None:
        return 0
    end = (until + 1, 0)
    held = (job.lane, now, *(min(tuple(mine), end) if mine[0] > now else end), most)
    [number] = db.execute(_BETWEEN, held).fetchone()
    if mine[0] <= now:
        [waiting] = db.execute(_BETWEEN, (job.lane, _LONG_AGO, *mine, most)).fetchone()
        number += waiting
    return min(int(number), most)


def first_due(db: sqlite3.Connection, lanes: Sequence[str]) -> list[datetime | None]:
    """Read when the first job of each lane is due."""
    return moments_from(db.execute(_FIRST_DUE, (lane,)).fetchone() for lane in lanes)


def insert(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Job]:
    """Add jobs and return what is stored for each."""
    # Usually all jobs are new, so they are inserted at once: looking first would cost as much. If
    # one exists already, only the savepoint is rolled back, not what the transaction did before.
    db.execute("SAVEPOINT added")
    try:
        _add(db, jobs)
    except sqlite3.IntegrityError:
        db.execute("ROLLBACK TO added")
        stored = _add_where_new(db, jobs)
    else:
        stored = list(jobs)
    db.execute("RELEASE added")
    return stored


def _add(db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Add new jobs; raise `IntegrityError` if one exists already."""
    [last] = db.execute(_LAST).fetchone()
    numbered = [*enumerate(jobs, last + 1)]
    db.executemany(_INSERT, [_columns(seq, job) for seq, job in numbered])
    db.executemany(
        _INSERT_WIDE, [(seq, encode_submission(job), job.payload_json) for seq, job in numbered]
    )
    results = [(seq, job.result_json, job.errors_json) for seq, job in numbered if _has_result(job)]
    keys = [(*_key(job), seq) for seq, job in numbered if job.idempotency_key is not None]
    db.executemany(_INSERT_RESULT, results)
    db.executemany(_INSERT_KEY, keys)
    labelled = [(label, seq) for seq, job in numbered for label in labels_of(job)]
    if labelled:
        db.executemany(_INSERT_LABEL, labelled)
        _count(db, [tallies_of(job) for job in jobs])


def _add_where_new(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Job]:
    """Add jobs one by one; return what is stored for each."""
    stored: list[Job] = []
    for job in jobs:
        found = get(db, [job.id])[0] or _by_key(db, job)
        if found is None:
            _add(db, [job])
        stored.append(found or job)
    return stored


def _by_key(db: sqlite3.Connection, job: Job) -> Job | None:
    if job.idempotency_key is None:
        return None
    row = db.execute(_BY_KEY, _key(job)).fetchone()
    return None if row is None else job_from(db.execute(_BY_SEQ, (json.dumps(row),)).fetchone())


def replace(db: sqlite3.Connection, changes: Sequence[Change]) -> list[bool]:
    """Write the changes whose stored revision is the expected one; return which were written."""
    rows = [_changed_columns(change) for change in changes]
    # One call writes all, but returns only the total of rows. If some were refused, the savepoint
    # is rolled back, and a call for each row finds out which.
    db.execute("SAVEPOINT changed")
    written = [True] * len(rows)
    if db.executemany(_UPDATE, rows).rowcount != len(rows):
        db.execute("ROLLBACK TO changed")
        written = [db.execute(_UPDATE, row).rowcount == 1 for row in rows]
    db.execute("RELEASE changed")
    done = [change.job for change, won in zip(changes, written, strict=True) if won]
    results = [(job.result_json, job.errors_json, job.id) for job in done if _has_result(job)]
    db.executemany(_KEEP, results)
    done_changes = [change for change, won in zip(changes, written, strict=True) if won]
    labelled = [(label, one.job.id) for one in done_changes for label in one.labels]
    if labelled:
        db.executemany(_ADD_LABEL, labelled)
    _count(db, [one.tallies for one in done_changes if one.tallies])
    return written


def tally(db: sqlite3.Connection, labels: Sequence[str]) -> list[Tally]:
    """Read the counters of labels."""
    return [dict(db.execute(_TALLY, (label,)).fetchall()) for label in labels]


def _count(db: sqlite3.Connection, tallies: Sequence[Tallies]) -> None:
    if tallies:
        totals = total_of(tallies).items()
        rows = [(label, *pair) for label, tally in totals for pair in tally.items()]
        db.executemany(_COUNT, rows)


def _columns(seq: int, job: Job) -> tuple[object, ...]:
    hot = (seq, job.id, job.lane, due_column(job), job.revision, encode_state(job))
    return (*hot, job.user_id, job.type, job.status.value)


def _changed_columns(change: Change) -> tuple[object, ...]:
    job = change.job
    values = (encode_state(job), job.revision, job.lane, due_column(job), job.status.value)
    return (*values, job.id, change.expected_revision)


def _has_result(job: Job) -> bool:
    return job.result_json is not None or job.errors_json is not None


def take(
    db: sqlite3.Connection, lanes: Sequence[str], now: int, until: int, limit: int
) -> list[Job]:
    """Take due jobs, the longest due first, by moving their due time."""
    # One index scan per lane: in a query for all lanes SQLite would sort all due jobs.
    due = [row for lane in set(lanes) for row in db.execute(_DUE, (lane, now, limit))]
    chosen = [seq for _, seq in sorted(due)[:limit]]
    move = "UPDATE jobs SET due_at = ? WHERE seq = ?"
    db.executemany(move, [(until, seq) for seq in chosen])
    order = {seq: place for place, seq in enumerate(chosen)}
    rows = db.execute(_BY_SEQ, (json.dumps(chosen),)).fetchall()
    return readable(sorted(rows, key=lambda row: order[row[-1]]), job_from)


def delete(db: sqlite3.Connection, ids: Sequence[JobId]) -> list[bool]:
    """Delete jobs with all their data; return which of them existed."""
    find = "SELECT id, seq FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
    found = dict(db.execute(find, (json.dumps(ids),)).fetchall())
    [last] = db.execute("SELECT max(seq) FROM jobs").fetchone()
    labels = db.execute(_LABELS, (json.dumps([*found.values()]),)).fetchall()
    for statement in (_UNLABEL, *_FORGET) if labels else _FORGET:
        db.executemany(statement, [(seq,) for seq in found.values()])
    db.executemany(_UNCOUNT, labels)
    output.forget(db, [*found.values()])
    highest = max(found.values(), default=0)
    # Only deleting the newest job could let its number be reused, so only then is it recorded.
    if highest == last:
        db.execute(_NOTE_DELETED, (highest, highest))
    return [job_id in found for job_id in ids]


def _key(job: Job) -> tuple[str, str, str | None]:
    # A unique index treats NULLs as different, but jobs without an owner share one key space.
    owner = "" if job.user_id is None else f"={job.user_id}"
    return owner, job.type, job.idempotency_key
