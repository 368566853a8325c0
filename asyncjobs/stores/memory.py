"""Stores jobs in this process: the reference implementation of a store. Durability: process."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from heapq import merge
from itertools import chain, count, islice, takewhile
from math import inf
from operator import itemgetter
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir
from types import TracebackType
from typing import Self
from uuid import uuid4
from weakref import finalize

import anyio.lowlevel

from asyncjobs.core.encoding import sequence_of
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.core.labels import Tally, labels_of, tallies_of
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
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import (
    HOLD,
    Change,
    InlineReads,
    Listing,
    OutputStreams,
    Page,
    Selection,
    Tallies,
)
from asyncjobs.stores.urls import check_parameters

_Key = tuple[str | None, str, str]

# When a job is due, its position in the order of insertion, and its id.
_Entry = tuple[datetime, int, JobId]

# The beginning of an entry. It sorts before all entries that begin with it.
_Bound = tuple[datetime, float]

# The size of the lists in a lane. They are split at twice this length.
_PIECE = 512

_last_of = itemgetter(-1)

# The digits of a cursor, which is a job's position in the order of insertion.
_DIGITS = 19


class MemoryStore:
    """A store that lives as long as its object; closing it keeps all jobs.

    Jobs are immutable and hold their payloads as text, so callers cannot change stored data. Every
    method yields to other tasks first, as a remote store would.
    """

    powers: frozenset[type] = frozenset({InlineReads, Listing, OutputStreams, Tallies})
    filters: frozenset[str] = frozenset({"user_id", "type", "status", "tag", "batch", "members"})

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._keys: dict[_Key, JobId] = {}
        self._due: dict[str, _Lane] = {}
        self._order: dict[JobId, int] = {}
        self._counter = count()
        # The jobs of each label in the order of insertion, and the labels and counters of jobs.
        self._labelled: dict[str, dict[JobId, int]] = {}
        self._labels: dict[JobId, tuple[str, ...]] = {}
        self._tallies: dict[str, Counter[str]] = {}
        self._outputs: dict[JobId, _Output] = {}
        self._folder: Path | None = None

    def folder_for_files(self) -> Path:
        """Return a folder for the files of jobs, deleted with the store or at the process's end."""
        if self._folder is None:
            self._folder = Path(gettempdir()) / f"asyncjobs-{uuid4().hex}"
            finalize(self, _remove, self._folder, os.getpid())
        return self._folder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        await anyio.lowlevel.checkpoint()
        return [self._insert(job) for job in jobs]

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        await anyio.lowlevel.checkpoint()
        return [self._jobs.get(job_id) for job_id in ids]

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        await anyio.lowlevel.checkpoint()
        return [self._replace(change) for change in changes]

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        await anyio.lowlevel.checkpoint()
        entries = merge(*(self._due[lane] for lane in {*lanes} if lane in self._due))
        due = islice(takewhile(lambda entry: entry[0] <= now, entries), max(limit, 0))
        taken = [self._jobs[job_id].changed(due_at=until) for _, _, job_id in due]
        for job in taken:
            self._put(job)
        return taken

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        await anyio.lowlevel.checkpoint()
        return [self._delete(job_id) for job_id in ids]

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        await anyio.lowlevel.checkpoint()
        before, label = sequence_of(after, _DIGITS), which.label
        index = self._order if label is None else self._labelled.get(label, {})
        # Most dicts are in the order of insertion; jobs get later labels in any order.
        entries = reversed(index.items()) if label is None else _newest_first(index)
        newest = (
            (order, job)
            for job_id, order in entries
            if (before is None or order < before)
            # First the quick check: thousands of members may come before the jobs of the page.
            and ((job := self._jobs[job_id]).batch is None or which.members)
            and which.fits(job)
        )
        found = [*islice(newest, limit + 1)]
        jobs = [job.narrow() for _, job in found[:limit]]
        return Page(jobs, str(found[limit - 1][0]) if len(found) > limit else None)

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        await anyio.lowlevel.checkpoint()
        stored = self._jobs.get(job.id)
        if stored is None or stored.lane != job.lane or stored.due_at is None:
            return 0
        lane, mine = self._due[job.lane], (stored.due_at, self._order[job.id])
        now, end = (until - HOLD, inf), (until, inf)
        if mine > now:
            return min(lane.count(now, min(mine, end), most), most)
        return min(lane.count(None, mine, most) + lane.count(now, end, most), most)

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        await anyio.lowlevel.checkpoint()
        first = (next(iter(self._due.get(lane, ())), None) for lane in lanes)
        return [None if entry is None else entry[0] for entry in first]

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        await anyio.lowlevel.checkpoint()
        return [dict(self._tallies.get(label, {})) for label in labels]

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        await anyio.lowlevel.checkpoint()
        done: list[Appended] = []
        refused: dict[tuple[JobId, str], Appended] = {}
        for one in appends:
            key = one.job_id, one.stream
            answer = refused.get(key) or self._append(one)
            if answer.refusal is not None:
                refused[key] = answer
            done.append(answer)
        return done

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        await anyio.lowlevel.checkpoint()
        if job_id in self._jobs:
            output = self._outputs.setdefault(job_id, _Output())
            output.epoch = max(output.epoch, epoch)

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        await anyio.lowlevel.checkpoint()
        return [self._read_output(read) for read in reads]

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        await anyio.lowlevel.checkpoint()
        return [self._outputs[one].infos() if one in self._outputs else [] for one in ids]

    def _append(self, one: Append) -> Appended:
        job = self._jobs.get(one.job_id)
        if job is None:
            return Appended(refusal=Refusal.GONE)
        if job.status is not JobStatus.PROCESSING:
            return Appended(refusal=Refusal.ENDED)
        return self._outputs.setdefault(one.job_id, _Output()).append(one)

    def _read_output(self, read: ReadFrom) -> OutputPart | None:
        output = self._outputs.get(read.job_id)
        return None if output is None else output.read(read)

    def _insert(self, job: Job) -> Job:
        key = _key(job)
        taken_by = self._keys.get(key) if key else None
        stored = self._jobs.get(taken_by or job.id)
        if stored is not None:
            return stored
        if key is not None:
            self._keys[key] = job.id
        self._order[job.id] = next(self._counter)
        self._put(job)
        if labels := labels_of(job):
            self._label(job.id, labels)
            self._count(tallies_of(job))
        return job

    def _replace(self, change: Change) -> bool:
        stored = self._jobs.get(change.job.id)
        if stored is None or stored.revision != change.expected_revision:
            return False
        self._put(stored.updated(change.job))
        if change.labels:
            self._label(stored.id, change.labels)
        if change.tallies:
            self._count(change.tallies)
        return True

    def _label(self, job_id: JobId, labels: Sequence[str]) -> None:
        had = self._labels.get(job_id, ())
        new = [label for label in labels if label not in had]
        for label in new:
            self._labelled.setdefault(label, {})[job_id] = self._order[job_id]
        if new:
            self._labels[job_id] = (*had, *new)

    def _count(self, changes: Mapping[str, Tally]) -> None:
        for label, tally in changes.items():
            self._tallies.setdefault(label, Counter()).update(tally)

    def _unlabel(self, job_id: JobId) -> None:
        for label in self._labels.pop(job_id, ()):
            ids = self._labelled[label]
            del ids[job_id]
            if not ids:
                del self._labelled[label]
                self._tallies.pop(label, None)

    def _put(self, job: Job) -> None:
        if (stored := self._jobs.get(job.id)) is not None:
            self._leave(stored)
        self._jobs[job.id] = job
        if job.due_at is not None:
            lane = self._due.get(job.lane)
            if lane is None:
                lane = self._due[job.lane] = _Lane()
            lane.add((job.due_at, self._order[job.id], job.id))

    def _leave(self, job: Job) -> None:
        if job.due_at is not None:
            self._due[job.lane].remove((job.due_at, self._order[job.id], job.id))

    def _delete(self, job_id: JobId) -> bool:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        self._leave(job)
        self._unlabel(job_id)
        self._outputs.pop(job_id, None)
        del self._order[job_id]
        if (key := _key(job)) is not None:
            del self._keys[key]
        return True


class _Output:
    """The streams of one job."""

    def __init__(self) -> None:
        self.epoch = 0
        self._streams: dict[str, tuple[StreamKind, list[Chunk]]] = {}
        self._epochs: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def append(self, one: Append) -> Appended:
        if one.epoch < self.epoch:
            return Appended(refusal=Refusal.STALE)
        known = self._streams.get(one.stream)
        if known is not None and known[0] is not one.kind:
            return Appended(refusal=Refusal.KIND)
        chunks = [] if known is None else known[1]
        end = chunks[-1].end if chunks else 0
        if one.units and one.position not in (None, end):
            same = Chunk(one.position or 0, one.units, one.epoch, one.data)
            place = bisect_left(chunks, same.position, key=lambda chunk: chunk.position)
            found = place < len(chunks) and chunks[place] == same
            return Appended(same.end) if found else Appended(refusal=Refusal.MOVED)
        if (
            (known is None and len(self._streams) >= MAX_STREAMS)
            or sum(self._items.values()) + one.items > one.max_items
            or sum(self._bytes.values()) + len(one.data) > one.max_bytes
        ):
            return Appended(refusal=Refusal.FULL)
        self._streams[one.stream] = one.kind, chunks
        if one.units:
            chunks.append(Chunk(end, one.units, one.epoch, one.data))
        self.epoch = self._epochs[one.stream] = one.epoch
        self._items[one.stream] = self._items.get(one.stream, 0) + one.items
        self._bytes[one.stream] = self._bytes.get(one.stream, 0) + len(one.data)
        return Appended(end + one.units)

    def read(self, read: ReadFrom) -> OutputPart | None:
        if read.stream not in self._streams:
            return None
        kind, chunks = self._streams[read.stream]
        first = bisect_right(chunks, read.position, key=lambda chunk: chunk.end)
        found: list[Chunk] = []
        size = 0
        for chunk in islice(chunks, first, None):
            if found and size + len(chunk.data) > read.max_bytes:
                break
            found.append(chunk)
            size += len(chunk.data)
        end = chunks[-1].end if chunks else 0
        return OutputPart(kind, tuple(found), end, self._epochs[read.stream])

    def infos(self) -> list[StreamInfo]:
        return [
            StreamInfo(name, kind, self._items[name], self._bytes[name], self._epochs[name])
            for name, (kind, _) in sorted(self._streams.items())
        ]


class _Lane:
    """The due jobs of a lane, in order.

    They are kept in short lists, so that adding or removing an entry moves few others, and counting
    adds up lengths of lists instead of entries.
    """

    def __init__(self) -> None:
        self._pieces: list[list[_Entry]] = []

    def __iter__(self) -> Iterator[_Entry]:
        return chain.from_iterable(self._pieces)

    def add(self, entry: _Entry) -> None:
        pieces = self._pieces
        if not pieces:
            pieces.append([entry])
            return
        # Most entries come last, since jobs are usually due in the order of insertion.
        place = len(pieces) - 1
        if len(pieces) > 1 and entry < pieces[place][0]:
            place = bisect_left(pieces, entry, key=_last_of)
        piece = pieces[place]
        if entry > piece[-1]:
            piece.append(entry)
        else:
            insort(piece, entry)
        if len(piece) > 2 * _PIECE:
            pieces.insert(place + 1, piece[_PIECE:])
            del piece[_PIECE:]

    def remove(self, entry: _Entry) -> None:
        pieces = self._pieces
        place = bisect_left(pieces, entry, key=_last_of) if len(pieces) > 1 else 0
        piece = pieces[place]
        del piece[bisect_left(piece, entry)]
        if not piece:
            del pieces[place]

    def count(self, start: _Bound | None, end: _Bound, most: int) -> int:
        """Count the entries between two bounds; stop when `most` are found."""
        first, begin = (0, 0) if start is None else self._find(start)
        place, number = self._find(end)
        while place > first and number < most:
            place -= 1
            number += len(self._pieces[place])
        return number - begin if place == first else number

    def _find(self, bound: _Bound | _Entry) -> tuple[int, int]:
        """Return the list, and the index in it, of the first entry that is not before a bound."""
        place = bisect_left(self._pieces, bound, key=_last_of)
        return place, bisect_left(self._pieces[place], bound) if place < len(self._pieces) else 0


def _remove(folder: Path, pid: int) -> None:
    # A forked child has a copy of the store, and ends earlier.
    if os.getpid() == pid:
        rmtree(folder, ignore_errors=True)


def _newest_first(index: Mapping[JobId, int]) -> list[tuple[JobId, int]]:
    return sorted(index.items(), key=itemgetter(1), reverse=True)


def _key(job: Job) -> _Key | None:
    if job.idempotency_key is None:
        return None
    return job.user_id, job.type, job.idempotency_key


def from_url(url: str) -> MemoryStore:
    """Make a store for `memory://`."""
    check_parameters("memory", url, ())
    if url != "memory://":
        raise ConfigurationError("The memory store's URL must be memory:// and nothing else.")
    return MemoryStore()
