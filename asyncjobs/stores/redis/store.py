"""Keeps jobs in Redis or Valkey, for any number of processes and machines.

Durability: as the server is configured; see docs/howto/redis.md.

Every change of more than one key is a script, so no other client sees it half done. Scripts run one
after the other, each over a bounded number of jobs: changes to one job keep their order, and other
clients are served in between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self
from uuid import uuid4

import anyio

from asyncjobs.core.encoding import from_microseconds, sequence_of, to_microseconds
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.core.labels import BATCH_PREFIX, Tally
from asyncjobs.core.output import Append, Appended, OutputPart, ReadFrom, StreamInfo
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.protocols import (
    HOLD,
    Change,
    ChangeNotices,
    Finding,
    Inspection,
    Listing,
    OutputStreams,
    Page,
    Selection,
    StoreClock,
    Tallies,
)
from asyncjobs.stores.appends import append_in_portions
from asyncjobs.stores.opening import OpenState, require_asyncio
from asyncjobs.stores.reading import readable
from asyncjobs.stores.redis import output, rows, scripts
from asyncjobs.stores.redis.checks import check, inspect
from asyncjobs.stores.redis.notices import ChangeSubscription
from asyncjobs.stores.redis.server import RedisServer, name_of, split_url

# A cursor is a score, which is exact up to 2**53.
_MAX_CURSOR_DIGITS = 16

# The most entries that one script inspects, and the most jobs that it reads.
_MAX_ENTRIES = 500
_MAX_JOBS_READ = 128


class RedisStore:
    """A store in the keys of one namespace of a server.

    `timeout` limits, in seconds, the wait for a connection or an answer. At most `connections` are
    open, plus one that receives changes, on average at most once every `notice` seconds.
    """

    powers: frozenset[type] = frozenset(
        {ChangeNotices, Inspection, Listing, OutputStreams, StoreClock, Tallies}
    )
    filters: frozenset[str] = frozenset({"user_id", "type", "status", "tag", "batch", "members"})

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "asyncjobs",
        timeout: float = 5.0,
        connections: int = 8,
        notice: float = 0.005,
    ) -> None:
        self._url, named = split_url(url)
        self.namespace = namespace if named is None else named
        if not self.namespace or set(self.namespace) & set("{}"):
            raise ConfigurationError(
                f"A namespace must not be empty or contain braces, got {self.namespace!r}."
            )
        self._timeout = timeout
        self._connections = connections
        self._notice = notice
        self._keys = scripts.Keys(self.namespace)
        self._state: OpenState[_OpenServer] = OpenState(name_of(self._url))

    async def __aenter__(self) -> Self:
        require_asyncio("Redis", driver="redis-py")
        server = RedisServer(self._url, timeout=self._timeout, connections=self._connections)
        try:
            await check(server, self._keys)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await server.close()
            raise
        self._state.set(_OpenServer(server))
        return self

    async def __aexit__(self, *_: object) -> None:
        opened = self._state.clear()
        with anyio.CancelScope(shield=True):
            await opened.server.close()

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        opened, keys = self._state.get(), self._keys
        holders: list[bytes] = []
        for some in scripts.in_portions(jobs, lambda job: job.wide_bytes):
            names = [keys.sequence, keys.held, keys.all, *(keys.job(job.id) for job in some)]
            labelled = any(job.tags or job.batch for job in some)
            args = [arg for job in some for arg in rows.insertion(job, keys, labelled=labelled)]
            # Repeatable: a job that is already stored is not added again.
            holders += await opened.server.run(
                scripts.INSERT_LABELLED if labelled else scripts.INSERT,
                names,
                [keys.prefix, opened.writer, *args],
                repeat=True,
            )
        return await self._stored(jobs, [holder.decode() for holder in holders])

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        server, names = self._state.get().server, [*map(self._keys.job, ids)]
        found: list[rows.Row] = []
        while len(found) < len(names):
            some = names[len(found) : len(found) + _MAX_JOBS_READ]
            found += await server.run(scripts.READ, some, [scripts.MAX_SCRIPT_BYTES], repeat=True)
        return [
            rows.read(job_id, row) if any(value is not None for value in row) else None
            for job_id, row in zip(ids, found, strict=True)
        ]

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        opened, keys = self._state.get(), self._keys
        answers: list[bool] = []
        for some in scripts.in_portions(changes, lambda change: change.job.wide_bytes):
            labelled = any(change.labels or change.tallies for change in some)
            args = [arg for one in some for arg in rows.replacement(one, labelled=labelled)]
            answer = await opened.server.run(
                scripts.script_for(some, labelled=labelled),
                [keys.job(change.job.id) for change in some],
                [keys.prefix, opened.writer, *args],
                # Not repeatable: a repeated change is refused, although the first one was written.
                repeat=False,
            )
            answers += map(bool, answer)
        return answers

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        server, keys = self._state.get().server, self._keys
        names = [keys.held, keys.all, *map(keys.due, dict.fromkeys(lanes))]
        moments = [to_microseconds(now), to_microseconds(until)]
        taken: list[Job] = []
        left, more = limit, bool(lanes)
        while more and left > 0:
            most = min(left, _MAX_JOBS_READ)
            more, found = await server.run(
                scripts.TAKE,
                names,
                [keys.prefix, *moments, most, scripts.MAX_SCRIPT_BYTES],
                repeat=False,
            )
            # Unreadable jobs count, too: the script has moved their entries.
            left -= len(found)
            taken += readable(found, rows.with_id(rows.read))
            # With a deadline that is already over, the next script would take the same jobs again.
            more = more and until > now
        return [job.changed(due_at=until) for job in taken]

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        opened, keys = self._state.get(), self._keys
        deleted: set[str] = set()
        for some in scripts.in_portions(ids, len):
            names = [keys.held, keys.all, *map(keys.job, some)]
            args = [keys.prefix, opened.writer, *some]
            gone = await opened.server.run(scripts.DELETE, names, args, repeat=True)
            deleted.update(job_id.decode() for job_id in gone)
        return [job_id in deleted for job_id in ids]

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        server, index = self._state.get().server, self._index(which)
        before = sequence_of(after, _MAX_CURSOR_DIGITS)
        start: str | bytes = "+inf" if before is None else f"({before}"
        found: list[rows.Row] = []
        while start and len(found) <= limit:
            bounds = [limit + 1 - len(found), _MAX_ENTRIES]
            go_on, fitting, gone = await server.run(
                scripts.LIST,
                [index],
                [self._keys.prefix, start, *bounds, *_wanted(which)],
                repeat=True,
            )
            found += fitting
            start = b"(" + go_on if go_on else b""
            with suppress(StoreUnavailable):  # a replica may be read, and refuses this write
                await server.read([("ZREMRANGEBYSCORE", index, order, order) for order in gone])
        jobs = readable([row[1:] for row in found[:limit]], rows.with_id(rows.read_narrow))
        return Page(jobs, str(int(found[limit - 1][0] or 0)) if len(found) > limit else None)

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        names = [self._keys.due(job.lane), self._keys.job(job.id)]
        moments = [to_microseconds(until - HOLD), to_microseconds(until)]
        before: int = await self._state.get().server.run(scripts.COUNT, names, moments, repeat=True)
        return min(before, most)

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        names = [self._keys.due(lane) for lane in lanes]
        found = await self._state.get().server.read(
            [("ZRANGE", name, 0, 0, "WITHSCORES") for name in names]
        )
        return [rows.first_score(entries) for entries in found]

    async def tally(self, labels: Sequence[str], /) -> Sequence[Tally]:
        names = [self._keys.tally(label) for label in labels]
        found = await self._state.get().server.read([("HGETALL", name) for name in names])
        return [rows.tally_from(values) for values in found]

    async def append(self, appends: Sequence[Append], /) -> Sequence[Appended]:
        opened, keys = self._state.get(), self._keys

        async def send(some: list[Append]) -> list[Appended]:
            answers = await opened.server.run(
                output.APPEND,
                [key for one in some for key in (keys.job(one.job_id), keys.output(one.job_id))],
                [keys.prefix, opened.writer, *(arg for one in some for arg in output.append(one))],
                # A repetition is recognised by its position.
                repeat=all(one.position is not None for one in some),
            )
            return [*map(output.appended, answers)]

        places = scripts.in_portions(range(len(appends)), lambda place: len(appends[place].data))
        return await append_in_portions(appends, places, send)

    async def begin_epoch(self, job_id: JobId, epoch: int, /) -> None:
        names = [self._keys.job(job_id), self._keys.output(job_id)]
        await self._state.get().server.run(output.BEGIN_EPOCH, names, [epoch], repeat=True)

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        server, found = self._state.get().server, list[OutputPart | None]()
        for some in scripts.in_portions(reads, lambda one: one.max_bytes):
            names = [self._keys.output(one.job_id) for one in some]
            args = [arg for one in some for arg in (one.stream, one.position, one.max_bytes)]
            answers = await server.run(output.READ, names, args, repeat=True)
            found += map(output.part, answers)
        return found

    async def outputs(self, ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        names = [self._keys.output(job_id) for job_id in ids]
        found = await self._state.get().server.read([("HGETALL", name) for name in names])
        return [output.streams_in(values) for values in found]

    async def inspect(self) -> Sequence[Finding]:
        return await inspect(self._state.get().server, self._keys.schema)

    def changes(self) -> AsyncGenerator[Sequence[JobId]]:
        """Yield ids of jobs that other processes changed; the first batch is empty."""
        opened = self._state.get()
        changes = ChangeSubscription(opened.server, self._keys.changes, opened.writer)
        return changes.follow(self._notice)

    async def now(self) -> datetime:
        """Return the server's time."""
        seconds, microseconds = await self._state.get().server.command("TIME")
        return from_microseconds(int(seconds) * 1_000_000 + int(microseconds)).astimezone(UTC)

    async def _stored(self, jobs: Sequence[Job], holders: Sequence[str]) -> Sequence[Job]:
        """Return what is stored for each job, given the ids of those that already existed."""
        stored = list(jobs)
        places = [place for place, holder in enumerate(holders) if holder]
        found = await self.get([JobId(holders[place]) for place in places])
        for place, job in zip(places, found, strict=True):
            # None if the job was deleted in the meantime; then the new job can be added.
            stored[place] = job if job is not None else (await self.insert([jobs[place]]))[0]
        return stored

    def _index(self, which: Selection) -> str:
        """Return the shortest index that contains every matching job."""
        if which.label is not None:
            return self._keys.labelled(which.label)
        if which.user_id is not None:
            return self._keys.owned(which.user_id)
        if which.type is not None and which.status is JobStatus.COMPLETED:
            return self._keys.completed(which.type)
        return self._keys.all


class _OpenServer:
    """The state that exists only while the store is open."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        #: Identifies the changes that this process published itself.
        self.writer = uuid4().hex


def _wanted(which: Selection) -> list[str]:
    values = (which.user_id, which.type, which.status)
    wanted = ["" if value is None else f"={value}" for value in values]
    return [*wanted, "" if which.members else BATCH_PREFIX]


def from_url(url: str) -> RedisStore:
    """Make a store from `redis://host:port/database?namespace=asyncjobs` or a similar URL."""
    return RedisStore(url)
