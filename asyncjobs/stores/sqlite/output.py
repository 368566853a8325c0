"""The output of jobs in the SQLite store: its reads and writes, as functions of a connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from asyncjobs.core.job import JobId, JobStatus
from asyncjobs.core.output import (
    MAX_STREAMS,
    Append,
    Appended,
    Chunk,
    OutputPart,
    ReadFrom,
    Refusal,
    StreamInfo,
    StreamKind,
)

_JOB = (
    "SELECT seq, status, coalesce(epoch, 0), coalesce(items, 0), coalesce(bytes, 0)"
    " FROM jobs LEFT JOIN outputs USING (seq) WHERE id = ?"
)
_STREAMS = "SELECT name, kind, items, bytes, epoch FROM output_streams WHERE seq = ?"
_STREAM = (
    "SELECT seq, kind, items, bytes, epoch FROM output_streams"
    " WHERE seq = (SELECT seq FROM jobs WHERE id = ?) AND name = ?"
)
# From the last chunk that does not begin after the position.
_CHUNKS = (
    "SELECT position, units, epoch, data FROM output_chunks"
    " WHERE seq = ?1 AND name = ?2 AND position >= (SELECT max(position) FROM output_chunks"
    " WHERE seq = ?1 AND name = ?2 AND position <= ?3) ORDER BY position"
)
_CHUNK_AT = (
    "SELECT position, units, epoch, data FROM output_chunks"
    " WHERE seq = ? AND name = ? AND position = ?"
)
_ADD_CHUNK = "INSERT INTO output_chunks VALUES (?, ?, ?, ?, ?, ?)"
_PUT_STREAM = "INSERT OR REPLACE INTO output_streams VALUES (?, ?, ?, ?, ?, ?)"
_PUT_JOB = "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)"
_BEGIN_EPOCH = (
    "INSERT INTO outputs SELECT seq, ?, 0, 0 FROM jobs WHERE id = ?"
    " ON CONFLICT (seq) DO UPDATE SET epoch = max(epoch, excluded.epoch)"
)
_OUTPUTS = (
    "SELECT jobs.id, name, kind, items, bytes, epoch"
    " FROM json_each(?) JOIN jobs ON jobs.id = value JOIN output_streams USING (seq)"
    " ORDER BY jobs.id, name"
)
_BYTES = (
    "SELECT coalesce(sum(bytes), 0) FROM outputs"
    " WHERE seq IN (SELECT seq FROM jobs WHERE id IN (SELECT value FROM json_each(?)))"
)
# Most queues have no output: then nothing else is asked.
_ANY = "SELECT 1 FROM outputs LIMIT 1"
_WITH_OUTPUT = "SELECT seq FROM outputs WHERE seq IN (SELECT value FROM json_each(?))"
_FORGET = (
    "DELETE FROM output_chunks WHERE seq = ?",
    "DELETE FROM output_streams WHERE seq = ?",
    "DELETE FROM outputs WHERE seq = ?",
)


@dataclass(slots=True)
class _Stream:
    kind: StreamKind
    items: int = 0
    bytes: int = 0
    epoch: int = 0

    @property
    def end(self) -> int:
        return self.items if self.kind is StreamKind.JSON else self.bytes


@dataclass(slots=True)
class _JobOutput:
    """The streams of one job, as they are before and after an append."""

    seq: int
    processing: bool
    epoch: int
    items: int
    bytes: int
    streams: dict[str, _Stream]

    def append(self, db: sqlite3.Connection, one: Append) -> Appended:
        """Add a chunk, or return why it is refused."""
        if not self.processing:
            return Appended(refusal=Refusal.ENDED)
        if one.epoch < self.epoch:
            return Appended(refusal=Refusal.STALE)
        stream = self.streams.get(one.stream)
        if stream is None:
            stream = _Stream(one.kind)
        elif one.kind is not stream.kind:
            return Appended(refusal=Refusal.KIND)
        if one.units and one.position not in (None, stream.end):
            return self._repeat(db, one)
        if self._is_full(one):
            return Appended(refusal=Refusal.FULL)
        if one.units:
            chunk = (self.seq, one.stream, stream.end, one.units, one.epoch, one.data)
            db.execute(_ADD_CHUNK, chunk)
        self.streams[one.stream] = stream
        self.items += one.items
        self.bytes += len(one.data)
        stream.items += one.items
        stream.bytes += len(one.data)
        self.epoch = stream.epoch = one.epoch
        return Appended(stream.end)

    def _repeat(self, db: sqlite3.Connection, one: Append) -> Appended:
        """Return the end of the chunk that is stored already, if it is the same."""
        row = db.execute(_CHUNK_AT, (self.seq, one.stream, one.position)).fetchone()
        if row is None or row[1:] != (one.units, one.epoch, one.data):
            return Appended(refusal=Refusal.MOVED)
        return Appended(Chunk(*row).end)

    def _is_full(self, one: Append) -> bool:
        return (
            (one.stream not in self.streams and len(self.streams) >= MAX_STREAMS)
            or self.items + one.items > one.max_items
            or self.bytes + len(one.data) > one.max_bytes
        )


def append(db: sqlite3.Connection, appends: Sequence[Append]) -> list[Appended]:
    """Add items to streams; return for each append the new end, or why it was refused."""
    jobs = {job_id: _read_job(db, job_id) for job_id in {one.job_id for one in appends}}
    refused: dict[tuple[JobId, str], Appended] = {}
    written: dict[tuple[JobId, str], None] = {}
    done: list[Appended] = []
    for one in appends:
        key, job = (one.job_id, one.stream), jobs[one.job_id]
        answer = refused.get(key)
        if answer is None:
            answer = Appended(refusal=Refusal.GONE) if job is None else job.append(db, one)
        if answer.refusal is None:
            written[key] = None
        else:
            refused[key] = answer
        done.append(answer)
    for job_id, name in written:
        if (job := jobs[job_id]) is not None:
            stream = job.streams[name]
            values = (stream.kind.value, stream.items, stream.bytes, stream.epoch)
            db.execute(_PUT_STREAM, (job.seq, name, *values))
    for job_id in {job_id for job_id, _ in written}:
        if (job := jobs[job_id]) is not None:
            db.execute(_PUT_JOB, (job.seq, job.epoch, job.items, job.bytes))
    return done


def begin_epoch(db: sqlite3.Connection, job_id: JobId, epoch: int) -> None:
    """Refuse appends of lower epochs from now on."""
    db.execute(_BEGIN_EPOCH, (epoch, job_id))


def read_output(db: sqlite3.Connection, reads: Sequence[ReadFrom]) -> list[OutputPart | None]:
    """Read the chunks after each position; None for a stream that does not exist."""
    return [_read(db, one) for one in reads]


def outputs(db: sqlite3.Connection, ids: Sequence[JobId]) -> list[list[StreamInfo]]:
    """Read the streams of each job."""
    rows = db.execute(_OUTPUTS, (json.dumps([*set(ids)]),)).fetchall()
    found = {
        job_id: [StreamInfo(name, StreamKind(kind), *rest) for _, name, kind, *rest in group]
        for job_id, group in groupby(rows, itemgetter(0))
    }
    return [found.get(job_id, []) for job_id in ids]


def bytes_of(db: sqlite3.Connection, ids: Sequence[JobId]) -> int:
    """Return how many bytes of output jobs have."""
    if db.execute(_ANY).fetchone() is None:
        return 0
    [number] = db.execute(_BYTES, (json.dumps(ids),)).fetchone()
    return int(number)


def forget(db: sqlite3.Connection, seqs: Sequence[int]) -> None:
    """Delete the output of jobs."""
    if db.execute(_ANY).fetchone() is not None:
        found = db.execute(_WITH_OUTPUT, (json.dumps(seqs),)).fetchall()
        for statement in _FORGET:
            db.executemany(statement, found)


def _read_job(db: sqlite3.Connection, job_id: JobId) -> _JobOutput | None:
    row = db.execute(_JOB, (job_id,)).fetchone()
    if row is None:
        return None
    seq, status, epoch, items, size = row
    streams = {
        name: _Stream(StreamKind(kind), *rest)
        for name, kind, *rest in db.execute(_STREAMS, (seq,)).fetchall()
    }
    return _JobOutput(seq, status == JobStatus.PROCESSING, epoch, items, size, streams)


def _read(db: sqlite3.Connection, one: ReadFrom) -> OutputPart | None:
    row = db.execute(_STREAM, (one.job_id, one.stream)).fetchone()
    if row is None:
        return None
    seq, kind, *rest = row
    stream = _Stream(StreamKind(kind), *rest)
    chunks: list[Chunk] = []
    if one.position < stream.end:
        size = 0
        # Closed at once: a statement that is not finished would keep its snapshot of the file.
        with closing(db.execute(_CHUNKS, (seq, one.stream, one.position))) as found:
            for columns in found:
                chunk = Chunk(*columns)
                if chunk.end > stream.end or (chunks and size + len(chunk.data) > one.max_bytes):
                    break
                chunks.append(chunk)
                size += len(chunk.data)
    return OutputPart(stream.kind, tuple(chunks), stream.end, stream.epoch)
