"""What the PostgreSQL store reads and writes, as functions of a session."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    from_microseconds,
    readable,
    sequence_of,
    to_microseconds,
)
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.protocols import Change, Page, Selection
from asyncjobs.stores.postgres import statements as sql
from asyncjobs.stores.postgres.session import Database, Session

_ESCAPED = re.compile(r"\\([\\0])")

# Of a cursor, which is a `seq`.
_DIGITS = 18

# How often a job may be refused because of one that is gone when it is looked for.
_TRIES = 9

# Of payloads or results in one statement, unless a single one is larger.
_MOST_BYTES = 32 * 1024 * 1024

# An index entry has no room for more than this many characters of each part.
_LONGEST = 200


async def get(db: Session, ids: Sequence[JobId]) -> list[Job | None]:
    names = [_text(job_id) for job_id in ids]
    jobs = {row[0]: _job(row) for row in await db.rows(sql.BY_ID, names)}
    return [jobs.get(name) for name in names]


async def insert(db: Database, jobs: Sequence[Job]) -> list[Job]:
    stored: dict[int, Job] = {}
    for round_ in _rounds([_unique_of(job) for job in jobs]):
        for places in _portions(round_, [len(job.payload_json) for job in jobs]):
            for _ in range(_TRIES):
                if rest := [place for place in places if place not in stored]:
                    stored |= await _insert(db, {place: jobs[place] for place in rest})
    if len(stored) < len(jobs):
        raise StoreUnavailable(db.server.name, "it refuses a job and has none in its place")
    return [stored[place] for place in range(len(jobs))]


async def _insert(db: Database, jobs: dict[int, Job]) -> dict[int, Job]:
    """Add jobs that are not in each other's way; return what is stored for each now."""
    added = {name for (name,) in await db.rows(sql.INSERT, *_columns(list(jobs.values())))}
    stored = {place: job for place, job in jobs.items() if _text(job.id) in added}
    refused = [place for place in jobs if place not in stored]
    if refused:
        # A new statement, since it must see what was not yet there when the first one began.
        asked = [jobs[place] for place in refused]
        ids = [_text(job.id) for job in asked]
        found = await db.rows(sql.IN_THE_WAY, ids, *_keys(asked))
        stored |= {refused[place - 1]: _job(row) for place, *row in found}
    return stored


async def replace(db: Session, changes: Sequence[Change]) -> list[bool]:
    sizes = [len(change.job.result_json or b"") for change in changes]
    # All processes lock rows in one order, lest two of them wait for each other.
    statements = [
        portion
        for round_ in _rounds([{change.job.id} for change in changes])
        for portion in _portions(sorted(round_, key=lambda at: changes[at].job.id), sizes)
    ]
    written: set[int] = set()
    # All or none, since a call that a deadlock ends is made again.
    async with db.transaction() if len(statements) > 1 else nullcontext():
        for places in statements:
            done = await db.rows(sql.UPDATE, *_changed([changes[place] for place in places]))
            names = {name for (name,) in done}
            written |= {place for place in places if _text(changes[place].job.id) in names}
    return [place in written for place in range(len(changes))]


async def take(db: Session, lanes: Sequence[str], now: int, until: int, limit: int) -> list[Job]:
    names = [_text(lane) for lane in sorted(set(lanes))]
    return readable(await db.rows(sql.TAKE, names, now, limit, limit, until), _job)


async def delete(db: Session, ids: Sequence[JobId]) -> None:
    await db.rows(sql.DELETE, [_text(job_id) for job_id in sorted(ids)])


async def select(db: Session, which: Selection, limit: int, after: str | None) -> Page:
    wanted: dict[str, str | int | None] = {
        "owner = %b::text": _indexed(which.user_id),
        "type = %b::text": None if which.type is None else _text(which.type),
        "seq < %b::bigint": sequence_of(after, _DIGITS),
    }
    given = {term: value for term, value in wanted.items() if value is not None}
    # Spelt out, since a partial index is not used for a value that is not known yet.
    state = [] if which.status is None else [f"status = '{which.status.value}'"]
    where = " AND ".join([*given, *state]) or "true"
    found = await db.rows(sql.LIST.replace("{where}", where), *given.values(), limit + 1)
    jobs = readable(found[:limit], _job)
    return Page(jobs, str(found[limit - 1][-1]) if len(found) > limit else None)


async def count_before(db: Session, job: Job, until: int, most: int) -> int:
    [(number,)] = await db.rows(sql.BEFORE, _text(job.lane), until, _text(job.id), most)
    return int(number)


async def first_due(db: Session, lanes: Sequence[str]) -> list[datetime | None]:
    found = await db.rows(sql.FIRST_DUE, [_text(lane) for lane in lanes])
    return [None if moment is None else from_microseconds(moment) for (moment,) in found]


async def now(db: Session) -> int:
    [(moment,)] = await db.rows(sql.NOW)
    return int(moment)


def _rounds(names: Sequence[set[Hashable]]) -> list[list[int]]:
    """Split places so that no two of a round share a name, and those that do keep their order."""
    last: dict[Hashable, int] = {}
    rounds: list[list[int]] = []
    for place, mine in enumerate(names):
        number = max(last.get(name, 0) for name in mine)
        last.update(dict.fromkeys(mine, number + 1))
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(place)
    return rounds


def _portions(places: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Split places so that what a statement sends stays far below PostgreSQL's limit of 1 GiB."""
    portions: list[list[int]] = []
    room = 0
    for place in places:
        if not portions or sizes[place] > room:
            portions.append([])
            room = _MOST_BYTES
        portions[-1].append(place)
        room -= sizes[place]
    return portions


def _columns(jobs: list[Job]) -> list[list[Any]]:
    types, owners, keys = _keys(jobs)
    return [
        [_text(job.id) for job in jobs],
        *_moving(jobs),
        types,
        owners,
        keys,
        [encode_state(job) for job in jobs],
        [encode_submission(job) for job in jobs],
        [job.payload_json for job in jobs],
        [job.result_json for job in jobs],
    ]


def _changed(changes: list[Change]) -> list[list[Any]]:
    jobs = [change.job for change in changes]
    lanes, due, revisions, statuses = _moving(jobs)
    return [
        [_text(job.id) for job in jobs],
        [change.expected_revision for change in changes],
        revisions,
        lanes,
        due,
        statuses,
        [encode_state(job) for job in jobs],
        [job.result_json for job in jobs],
    ]


def _moving(jobs: list[Job]) -> list[list[Any]]:
    return [
        [_text(job.lane) for job in jobs],
        [None if job.due_at is None else to_microseconds(job.due_at) for job in jobs],
        [job.revision for job in jobs],
        [job.status.value for job in jobs],
    ]


def _keys(jobs: list[Job]) -> list[list[Any]]:
    return [
        [_text(job.type) for job in jobs],
        [_indexed(job.user_id) for job in jobs],
        [_indexed(job.idempotency_key) for job in jobs],
    ]


def _unique_of(job: Job) -> set[Hashable]:
    if job.idempotency_key is None:
        return {job.id}
    return {job.id, (job.type, job.user_id, job.idempotency_key)}


def _job(row: Sequence[Any]) -> Job:
    job_id, submission, state, payload, result, revision, lane, due_at, _ = row
    columns = Columns(payload, result, revision, _unescaped(lane), due_at)
    return decode(job_id, submission, state, columns)


def _text(value: str) -> str:
    """Escape what PostgreSQL's text cannot hold (NUL, lone surrogates), each text differently."""
    if value.isascii() and "\\" not in value and "\0" not in value:
        return value
    escaped = value.replace("\\", "\\\\").replace("\0", "\\0")
    return escaped.encode("utf-8", "backslashreplace").decode()


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda found: found[1].replace("0", "\0"), value)


def _indexed(value: str | None) -> str | None:
    """Shorten what comes from clients, and is only looked up, to what an index entry can hold."""
    if value is None or len(value) <= _LONGEST:
        return None if value is None else _text(value)
    digest = hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{_text(value[: _LONGEST - 100])}\\#{digest}"
