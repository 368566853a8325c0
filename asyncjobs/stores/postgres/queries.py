"""The reads and writes of the PostgreSQL store, as functions of a session.

In the statements `{s}` stands for the schema. A cast gives each parameter its type. Most parameters
are arrays: a call for many jobs is one statement, and each statement is one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from asyncjobs.core.encoding import encode_state, encode_submission
from asyncjobs.core.job import Job, JobId
from asyncjobs.core.labels import Tallies, Tally, labels_of, tallies_of, total_of
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change, Page, Selection
from asyncjobs.stores.postgres.connections import Session, StatementRunner
from asyncjobs.stores.postgres.values import escaped, portions, unescaped
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

# How often an insertion is tried if the job that conflicts is deleted before it can be read.
_MAX_INSERT_ATTEMPTS = 9

# Longer values are shortened: the parts of an index entry must fit its maximum size.
_MAX_INDEXED_CHARACTERS = 200

_LANE = JOB_COLUMNS.split(", ").index("lane")


_JOBS = "{s}.jobs JOIN {s}.submissions USING (seq)"

BY_ID = f"""
SELECT {JOB_COLUMNS} FROM {_JOBS} LEFT JOIN {{s}}.results USING (seq) WHERE id = ANY (%b::text[])
"""  # noqa: S608  # constants

LIST = f"""
SELECT id, submission, state, ''::bytea, NULL, NULL, revision, lane, due_at, seq
FROM {_JOBS} WHERE {{where}} ORDER BY seq DESC LIMIT %b::bigint
"""  # noqa: S608  # constants

LIST_BY_LABEL = f"""
SELECT id, submission, state, ''::bytea, NULL, NULL, revision, lane, due_at, seq
FROM {{s}}.labels JOIN {_JOBS.replace(" JOIN", " USING (seq) JOIN")}
WHERE {{where}} ORDER BY seq DESC LIMIT %b::bigint
"""  # noqa: S608  # constants

# OFFSET keeps the planner from joining the labels of all jobs: then each job is looked up, newest
# first, until the page is full.
IS_NO_MEMBER = f"""
NOT EXISTS (SELECT FROM {{s}}.labels AS own WHERE own.seq = jobs.seq AND {IS_BATCH} OFFSET 0)
"""

# Adds to the counters of each label in `{counts}`, and to the number of its stored jobs, which has
# no name there. Rows are written in the order of their labels, after all jobs: two processes would
# deadlock otherwise. The counters of a row without stored jobs belong to jobs that are gone.
_COUNT = """
    INSERT INTO {s}.tallies AS old (label, stored, counters)
    SELECT label, coalesce(sum(number) FILTER (WHERE name = ''), 0),
        coalesce(jsonb_object_agg(name, number) FILTER (WHERE name <> ''), '{}')
    FROM (SELECT label, name, sum(number) AS number FROM {counts} GROUP BY label, name) AS totals
    GROUP BY label ORDER BY label
    ON CONFLICT (label) DO UPDATE SET stored = old.stored + excluded.stored, counters = (
        SELECT coalesce(jsonb_object_agg(name, number), '{}') FROM (
            SELECT name, sum(number::bigint) AS number FROM (
                SELECT * FROM jsonb_each_text(old.counters) WHERE old.stored > 0
                UNION ALL SELECT * FROM jsonb_each_text(excluded.counters)
            ) AS _(name, number) GROUP BY name
        ) AS totals
    )
"""

COUNT = _COUNT.replace(
    "{counts}", "unnest(%b::text[], %b::text[], %b::bigint[]) AS _(label, name, number)"
)

# Labels and counts the jobs in `{written}`.
_LABEL = """, labelled AS (
    INSERT INTO {s}.labels (label, seq)
    SELECT label, seq FROM {written}
        JOIN unnest(%b::text[], %b::text[]) AS _(id, label) USING (id)
    ON CONFLICT DO NOTHING
), counted AS ({count})
""".replace(
    "{count}",
    _COUNT.replace(
        "{counts}",
        "{written} JOIN unnest(%b::text[], %b::text[], %b::text[], %b::bigint[])"
        " AS _(id, label, name, number) USING (id)",
    ),
)

# One statement, so that a job is never visible without its payload. Rows are inserted in the order
# of their unique values: two processes that add the same jobs in different orders would deadlock.
# `seq` is assigned before that, in the order of the call.
_INSERT = """
WITH given AS MATERIALIZED (
    SELECT nextval('{s}.jobs_seq') AS seq, * FROM unnest(
        %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[],
        %b::text[], %b::text[], %b::text[],
        %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[]
    ) AS _(id, lane, due_at, revision, status,
        type, owner, key,
        state, submission, payload, result, errors)
), added AS (
    INSERT INTO {s}.jobs (seq, id, lane, due_at, revision, status, type, owner, key, state)
    SELECT seq, id, lane, due_at, revision, status, type, owner, key, state
    FROM given ORDER BY key, type, owner, id
    ON CONFLICT DO NOTHING RETURNING seq
), wide AS (
    INSERT INTO {s}.submissions (seq, submission, payload)
    SELECT seq, submission, payload FROM added JOIN given USING (seq)
), results AS (
    INSERT INTO {s}.results (seq, result, errors)
    SELECT seq, result, errors FROM added JOIN given USING (seq)
    WHERE result IS NOT NULL OR errors IS NOT NULL
)"""
_ADDED = "added JOIN given USING (seq)"
_ADDED_IDS = f" SELECT id FROM {_ADDED}"  # noqa: S608  # constants
INSERT = _INSERT + _ADDED_IDS
INSERT_LABELLED = _INSERT + _LABEL.replace("{written}", _ADDED) + _ADDED_IDS

# For each refused job, finds the stored job with its id or else with its idempotency key.
IN_THE_WAY = f"""
SELECT asked.place, {JOB_COLUMNS}
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[])
    WITH ORDINALITY AS asked(asked_id, asked_type, asked_owner, asked_key, place)
CROSS JOIN LATERAL (
    SELECT seq AS seq FROM {{s}}.jobs WHERE id = asked_id
    UNION ALL
    SELECT seq FROM {{s}}.jobs WHERE key = asked_key AND type = asked_type
        AND coalesce(owner, '') = coalesce(asked_owner, '')
        AND (owner IS NULL) = (asked_owner IS NULL)
    LIMIT 1
) AS found JOIN {_JOBS} USING (seq) LEFT JOIN {{s}}.results USING (seq)
"""  # noqa: S608  # constants

# A change without result or errors keeps the stored ones.
_UPDATE = """
WITH given AS (
    SELECT * FROM unnest(
        %b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::text[],
        %b::bytea[], %b::bytea[], %b::bytea[]
    ) AS _(id, expected, revision, lane, due_at, status, state, result, errors)
), done AS (
    UPDATE {s}.jobs SET (state, revision, lane, due_at, status)
        = ROW (given.state, given.revision, given.lane, given.due_at, given.status)
    FROM given WHERE jobs.id = given.id AND jobs.revision = given.expected
    RETURNING jobs.id, jobs.seq, given.result, given.errors
), kept AS (
    INSERT INTO {s}.results AS stored (seq, result, errors)
    SELECT seq, result, errors FROM done WHERE result IS NOT NULL OR errors IS NOT NULL
    ON CONFLICT (seq) DO UPDATE SET result = coalesce(excluded.result, stored.result),
        errors = coalesce(excluded.errors, stored.errors)
)"""
_DONE_IDS = " SELECT id FROM done"
UPDATE = _UPDATE + _DONE_IDS
UPDATE_LABELLED = _UPDATE + _LABEL.replace("{written}", "done") + _DONE_IDS

# One scan per lane, in the order of the index. Rows that another process is taking are skipped.
TAKE = f"""
WITH due AS MATERIALIZED (
    SELECT one.seq, one.due_at AS was_due
    FROM unnest(%b::text[]) AS wanted(lane) CROSS JOIN LATERAL (
        SELECT seq, due_at FROM {{s}}.jobs
        WHERE jobs.lane = wanted.lane AND due_at <= %b::bigint
        ORDER BY due_at, seq LIMIT %b::bigint FOR UPDATE SKIP LOCKED
    ) AS one ORDER BY one.due_at, one.seq LIMIT %b::bigint
), moved AS (
    UPDATE {{s}}.jobs SET due_at = %b::bigint FROM due WHERE jobs.seq = due.seq
    RETURNING jobs.*, due.was_due
)
SELECT {JOB_COLUMNS} FROM moved JOIN {{s}}.submissions USING (seq)
    LEFT JOIN {{s}}.results USING (seq)
ORDER BY was_due, seq
"""  # noqa: S608  # constants

# Returns the ids of the deleted jobs, and the labels that have no job any more. Numbers of jobs are
# subtracted by an insertion that always conflicts, since that writes the rows in order. Output is
# deleted by a function: its statements see appends that were committed after this one began.
DELETE = """
WITH gone AS (
    DELETE FROM {s}.jobs WHERE id = ANY (%b::text[]) RETURNING seq, id
), submissions AS (
    DELETE FROM {s}.submissions USING gone WHERE submissions.seq = gone.seq
), results AS (
    DELETE FROM {s}.results USING gone WHERE results.seq = gone.seq
), unlabelled AS (
    DELETE FROM {s}.labels USING gone WHERE labels.seq = gone.seq RETURNING labels.label
), uncounted AS (
    INSERT INTO {s}.tallies AS old (label, stored, counters)
    SELECT label, -number, '{}'
    FROM (SELECT label, count(*) AS number FROM unlabelled GROUP BY label) AS fewer
    WHERE (SELECT true FROM {s}.tallies WHERE tallies.label = fewer.label) ORDER BY label
    ON CONFLICT (label) DO UPDATE SET stored = old.stored + excluded.stored
    RETURNING label, stored
)
SELECT id, NULL FROM gone UNION ALL SELECT NULL, label FROM uncounted WHERE stored = 0
UNION ALL SELECT {s}.forget_output(array_agg(seq)), NULL FROM gone
"""

# Another process may have added a job to a label in the meantime.
FORGET_TALLIES = """
WITH empty AS MATERIALIZED (
    SELECT label FROM {s}.tallies WHERE label = ANY (%b::text[]) AND stored = 0
    ORDER BY label FOR UPDATE
)
DELETE FROM {s}.tallies USING empty WHERE tallies.label = empty.label
"""

TALLY = """
SELECT label, counters FROM {s}.tallies WHERE label = ANY (%b::text[]) AND stored > 0
"""

# Held jobs are due after now, and are one range of the index; waiting jobs are another. Both are
# read from their ends, since taken jobs leave dead entries at the beginning of the waiting range.
BEFORE = """
WITH asked AS (
    SELECT lane, due_at, seq, %b::bigint AS now, %b::bigint AS until
    FROM {s}.jobs WHERE id = %b::text AND lane = %b::text AND due_at IS NOT NULL
), stretches (lane, after, due_at, seq) AS (
    SELECT lane, -9223372036854775808, due_at, seq FROM asked WHERE due_at <= now
    UNION ALL
    SELECT lane, now, until + 1, 0 FROM asked WHERE due_at <= now OR due_at > until
    UNION ALL
    SELECT lane, now, due_at, seq FROM asked WHERE due_at > now AND due_at <= until
)
SELECT coalesce(sum(number), 0)::bigint FROM stretches CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM {s}.jobs WHERE jobs.lane = stretches.lane AND jobs.due_at > stretches.after
            AND (jobs.due_at, jobs.seq) < (stretches.due_at, stretches.seq)
        ORDER BY jobs.due_at DESC, jobs.seq DESC LIMIT %b::bigint
    ) AS before
) AS counted
"""

FIRST_DUE = """
SELECT (SELECT min(due_at) FROM {s}.jobs WHERE jobs.lane = asked.lane)
FROM unnest(%b::text[]) WITH ORDINALITY AS asked (lane, place) ORDER BY place
"""

NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


async def get(db: Session, ids: Sequence[JobId]) -> list[Job | None]:
    """Read jobs in the order of the ids."""
    names = [escaped(job_id) for job_id in ids]
    jobs = {row[0]: _job(row) for row in await db.rows(BY_ID, names)}
    return [jobs.get(name) for name in names]


async def insert(db: StatementRunner, jobs: Sequence[Job]) -> list[Job]:
    """Add jobs and return what is stored for each."""
    stored: dict[int, Job] = {}
    for round_ in _rounds([_unique_of(job) for job in jobs]):
        for places in portions(round_, [job.wide_bytes for job in jobs]):
            for _ in range(_MAX_INSERT_ATTEMPTS):
                if rest := [place for place in places if place not in stored]:
                    stored |= await _insert(db, {place: jobs[place] for place in rest})
    if len(stored) < len(jobs):
        raise StoreUnavailable(db.server.name, "it rejected a job, but has no conflicting job")
    return [stored[place] for place in range(len(jobs))]


async def _insert(db: StatementRunner, jobs: dict[int, Job]) -> dict[int, Job]:
    """Add jobs that do not conflict with each other; return those for which a job is stored now."""
    new = list(jobs.values())
    labels = [(job.id, label) for job in new for label in labels_of(job)]
    statement, labelled = INSERT, list[list[Any]]()
    if labels:
        counts = [(job.id, _with_stored(tallies_of(job))) for job in new]
        statement, labelled = INSERT_LABELLED, _labelled(labels, counts)
    added = {name for (name,) in await db.rows(statement, *_columns(new), *labelled)}
    stored = {place: job for place, job in jobs.items() if escaped(job.id) in added}
    refused = [place for place in jobs if place not in stored]
    if refused:
        # A new statement, which sees rows that were committed after the first one began.
        asked = [jobs[place] for place in refused]
        ids = [escaped(job.id) for job in asked]
        found = await db.rows(IN_THE_WAY, ids, *_keys(asked))
        stored |= {refused[place - 1]: _job(row) for place, *row in found}
    return stored


async def replace(db: Session, changes: Sequence[Change]) -> list[bool]:
    """Write the changes whose stored revision is the expected one; return which were written."""
    sizes = [len(one.job.result_json or b"") + len(one.job.errors_json or b"") for one in changes]
    # All processes lock rows in the order of the ids, so that they cannot deadlock.
    statements = [
        portion
        for round_ in _rounds([{change.job.id} for change in changes])
        for portion in portions(sorted(round_, key=lambda at: changes[at].job.id), sizes)
    ]
    written: set[int] = set()
    # One transaction, because a call that ends in a deadlock is repeated as a whole.
    async with db.transaction() if len(statements) > 1 else nullcontext():
        for places in statements:
            names = await _replace(
                db, [changes[place] for place in places], counts=len(statements) == 1
            )
            written |= {place for place in places if escaped(changes[place].job.id) in names}
        if len(statements) > 1:
            await _count(db, [changes[place].tallies or {} for place in sorted(written)])
    return [place in written for place in range(len(changes))]


async def _replace(db: Session, changes: list[Change], *, counts: bool) -> set[str]:
    """Write changes of different jobs, with or without their tallies; return the ids written."""
    statement, labelled = UPDATE, list[list[Any]]()
    if any(one.labels or one.tallies for one in changes):
        labels = [(one.job.id, label) for one in changes for label in one.labels]
        tallies = [(one.job.id, one.tallies or {}) for one in changes if counts]
        statement, labelled = UPDATE_LABELLED, _labelled(labels, tallies)
    return {name for (name,) in await db.rows(statement, *_changed(changes), *labelled)}


async def _count(db: Session, tallies: Sequence[Tallies]) -> None:
    counts = [
        (_label(label), name, number)
        for label, tally in total_of(tallies).items()
        for name, number in tally.items()
    ]
    if counts:
        await db.rows(COUNT, *_transposed(counts, 3))


async def take(db: Session, lanes: Sequence[str], now: int, until: int, limit: int) -> list[Job]:
    """Take due jobs, the longest due first, by moving their due time."""
    names = [escaped(lane) for lane in sorted(set(lanes))]
    return readable(await db.rows(TAKE, names, now, limit, limit, until), _job)


async def delete(db: Session, ids: Sequence[JobId]) -> list[bool]:
    """Delete jobs with all their data; return which of them existed."""
    rows = await db.rows(DELETE, [escaped(job_id) for job_id in sorted(ids)])
    gone = {job_id for job_id, _ in rows if job_id is not None}
    if empty := [label for _, label in rows if label is not None]:
        await db.rows(FORGET_TALLIES, empty)
    return [escaped(job_id) in gone for job_id in ids]


async def tally(db: Session, labels: Sequence[str]) -> list[Tally]:
    """Read the counters of labels."""
    names = [_label(label) for label in labels]
    found: dict[str, Tally] = {row[0]: row[1] for row in await db.rows(TALLY, names)}
    return [found.get(name, {}) for name in names]


async def select(db: Session, which: Selection, limit: int, after: str | None) -> Page:
    """Read a page of a list."""
    label = which.label
    terms = {
        "label = %b::text": None if label is None else _label(label),
        "owner = %b::text": _indexed(which.user_id),
        "type = %b::text": None if which.type is None else escaped(which.type),
        "seq < %b::bigint": cursor_from(after),
    }
    where, values = condition(terms, which.status, *([] if which.members else [IS_NO_MEMBER]))
    statement = (LIST if label is None else LIST_BY_LABEL).replace("{where}", where)
    return page_of(await db.rows(statement, *values, limit + 1), limit, _job)


async def count_before(db: Session, job: Job, now: int, until: int, most: int) -> int:
    """Count the jobs of the lane that begin before a job, up to `most`."""
    [(number,)] = await db.rows(BEFORE, now, until, escaped(job.id), escaped(job.lane), most)
    return min(int(number), most)


async def first_due(db: Session, lanes: Sequence[str]) -> list[datetime | None]:
    """Read when the first job of each lane is due."""
    return moments_from(await db.rows(FIRST_DUE, [escaped(lane) for lane in lanes]))


async def now(db: Session) -> int:
    """Return the server's time in microseconds since 1970."""
    [(moment,)] = await db.rows(NOW)
    return int(moment)


def _rounds(names: Sequence[set[Hashable]]) -> list[list[int]]:
    """Split places so that no two in a round share a name; those that do keep their order."""
    if len(set[Hashable]().union(*names)) == sum(map(len, names)):  # nearly always
        return [[*range(len(names))]]
    last: dict[Hashable, int] = {}
    rounds: list[list[int]] = []
    for place, mine in enumerate(names):
        number = max(last.get(name, 0) for name in mine)
        last.update(dict.fromkeys(mine, number + 1))
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(place)
    return rounds


def _columns(jobs: list[Job]) -> list[list[Any]]:
    types, owners, keys = _keys(jobs)
    return [
        [escaped(job.id) for job in jobs],
        *_moving(jobs),
        types,
        owners,
        keys,
        [encode_state(job) for job in jobs],
        [encode_submission(job) for job in jobs],
        [job.payload_json for job in jobs],
        [job.result_json for job in jobs],
        [job.errors_json for job in jobs],
    ]


def _changed(changes: list[Change]) -> list[list[Any]]:
    jobs = [change.job for change in changes]
    lanes, due, revisions, statuses = _moving(jobs)
    return [
        [escaped(job.id) for job in jobs],
        [change.expected_revision for change in changes],
        revisions,
        lanes,
        due,
        statuses,
        [encode_state(job) for job in jobs],
        [job.result_json for job in jobs],
        [job.errors_json for job in jobs],
    ]


def _moving(jobs: list[Job]) -> list[list[Any]]:
    return [
        [escaped(job.lane) for job in jobs],
        [due_column(job) for job in jobs],
        [job.revision for job in jobs],
        [job.status.value for job in jobs],
    ]


def _keys(jobs: list[Job]) -> list[list[Any]]:
    return [
        [escaped(job.type) for job in jobs],
        [_indexed(job.user_id) for job in jobs],
        [_indexed(job.idempotency_key) for job in jobs],
    ]


def _labelled(
    labels: Iterable[tuple[JobId, str]], tallies: Iterable[tuple[JobId, Tallies]]
) -> list[list[Any]]:
    rows = [(escaped(job_id), _label(label)) for job_id, label in labels]
    counts = [
        (escaped(job_id), _label(label), name, number)
        for job_id, of_job in tallies
        for label, tally in of_job.items()
        for name, number in tally.items()
    ]
    return [*_transposed(rows, 2), *_transposed(counts, 4)]


def _with_stored(tallies: Tallies) -> Tallies:
    """Add the counter without a name, which is the number of stored jobs of the label."""
    return {label: {"": 1, **tally} for label, tally in tallies.items()}


def _transposed(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[place] for row in rows] for place in range(width)]


def _unique_of(job: Job) -> set[Hashable]:
    if job.idempotency_key is None:
        return {job.id}
    return {job.id, (job.type, job.user_id, job.idempotency_key)}


def _job(row: Sequence[Any]) -> Job:
    lane = row[_LANE]
    return job_from((*row[:_LANE], unescaped(lane), *row[_LANE + 1 :]) if "\\" in lane else row)


def _label(label: str) -> str:
    return _indexed(label) or label  # never empty


def _indexed(value: str | None) -> str | None:
    """Shorten a client's value that is only looked up to a length that an index entry can hold."""
    if value is None or len(value) <= _MAX_INDEXED_CHARACTERS:
        return None if value is None else escaped(value)
    # The digest keeps shortened values distinct. `escaped` makes no escape `\#`, so none of them
    # equals a short value.
    digest = hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{escaped(value[: _MAX_INDEXED_CHARACTERS - 100])}\\#{digest}"
