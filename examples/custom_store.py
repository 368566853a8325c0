"""A custom store: jobs as files in a folder that several processes of one machine share.

Each job has two files: `<id>.submission` is written once, `<id>.state` is replaced as a whole. A
lock makes each call one step. Entries in `due` and `keys` may be stale after a crash, so they are
checked.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import anyio

from asyncjobs import Job, JobId
from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    to_microseconds,
)
from asyncjobs.errors import ConfigurationError, StoreUnavailable, UnreadableJob
from asyncjobs.protocols import Change
from asyncjobs.stores.reading import readable

T = TypeVar("T")


class Record(NamedTuple):
    """A state file: a line of JSON with the first four fields, then a line for each other field."""

    order: int
    revision: int
    lane: str
    due_at: int | None
    state: bytes
    errors: bytes
    result: bytes

    @classmethod
    def of(cls, job: Job, order: int) -> Self:
        due_at = None if job.due_at is None else to_microseconds(job.due_at)
        wide = job.errors_json or b"", job.result_json or b""
        return cls(order, job.revision, job.lane, due_at, encode_state(job), *wide)


class FolderStore:
    """Durability `disk`: a process may be killed at any point; a power failure may cost writes."""

    powers: frozenset[type] = frozenset()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __aenter__(self) -> Self:
        await self._step(lambda _: None)
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        return await self._step(lambda lock: [self._insert(job, lock) for job in jobs])

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        return await self._step(lambda _: [self._read(job_id) for job_id in ids])

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._step(lambda _: [self._replace(change) for change in changes])

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._step(lambda _: self._take(lanes, now, until, limit))

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._step(lambda _: [self._delete(job_id) for job_id in ids])

    async def _step(self, work: Callable[[int], T]) -> T:
        """Run `work` while no other task, thread or process uses the folder."""
        return await anyio.to_thread.run_sync(self._locked, work)

    def _locked(self, work: Callable[[int], T]) -> T:
        try:
            (self._folder / "due").mkdir(parents=True, exist_ok=True)
            (self._folder / "keys").mkdir(exist_ok=True)
            with (self._folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file or process ends
                return work(lock.fileno())
        except OSError as error:
            raise StoreUnavailable(str(self._folder), str(error)) from error

    def _insert(self, job: Job, lock: int) -> Job:
        key = self._key(job.user_id, job.type, job.idempotency_key)
        same = JobId(key.read_text()) if key and key.exists() else job.id
        if stored := self._read(job.id) or self._read(same):
            return stored
        os.truncate(lock, order := os.fstat(lock).st_size + 1)  # the lock's length counts the jobs
        submission = encode_submission(job) + b"\n" + job.payload_json
        self._file(job.id, "submission").write_bytes(submission)
        if key:
            key.write_text(job.id)
        self._write(job.id, Record.of(job, order), before=None)
        return job

    def _replace(self, change: Change) -> bool:
        stored, job = self._record(change.job.id), change.job
        if stored is None or stored.revision != change.expected_revision:
            return False
        new = Record.of(job, stored.order)
        new = new._replace(errors=new.errors or stored.errors, result=new.result or stored.result)
        self._write(job.id, new, before=stored)
        return True

    def _take(self, lanes: Sequence[str], now: datetime, until: datetime, limit: int) -> list[Job]:
        taken: list[JobId] = []
        last = f"{to_microseconds(now):020}~"  # "~" comes after the names' " "
        for entry in sorted((self._folder / "due").iterdir()):
            if len(taken) == limit or entry.name > last:
                break
            job_id = JobId(entry.name.rpartition(" ")[2])
            record = self._record(job_id)
            if record is None or self._entry(job_id, record) != entry:
                entry.unlink()  # the job has moved on, or is gone
            elif record.lane in lanes:
                taken.append(job_id)
                later = record._replace(due_at=to_microseconds(until))
                self._write(job_id, later, before=record)
        # Read after all are moved: an unreadable job is logged, and does not block the others.
        return readable(taken, self._decode)

    def _delete(self, job_id: JobId) -> bool:
        if (record := self._record(job_id)) is None:
            return False
        # Reads the fields from the text, so that an unreadable job can be deleted, too.
        path = self._file(job_id, "submission")
        said = json.loads(path.read_bytes().partition(b"\n")[0])
        key = self._key(said.get("user_id"), said["type"], said.get("idempotency_key"))
        entry = self._entry(job_id, record)
        for one in filter(None, (self._file(job_id, "state"), path, entry, key)):
            one.unlink(missing_ok=True)
        return True

    def _read(self, job_id: JobId) -> Job | None:
        return self._decode(job_id) if self._file(job_id, "state").exists() else None

    def _decode(self, job_id: JobId) -> Job:
        """Return a job that exists; raise `UnreadableJob` if this version cannot read it."""
        record = self._record(job_id)
        if record is None:
            raise UnreadableJob(job_id)
        submission, _, payload = self._file(job_id, "submission").read_bytes().partition(b"\n")
        wide = payload, record.result or None, record.errors or None  # JSON is never empty
        found = Columns(*wide, record.revision, record.lane, record.due_at)
        return decode(job_id, submission, record.state, found)

    def _record(self, job_id: JobId) -> Record | None:
        if not (path := self._file(job_id, "state")).exists():
            return None
        head, *texts = path.read_bytes().split(b"\n", 3)
        return Record(*json.loads(head), *texts)

    def _write(self, job_id: JobId, record: Record, *, before: Record | None) -> None:
        """Write the state. The new entry in `due` comes first; the old one is removed last."""
        if entry := self._entry(job_id, record):
            entry.touch()
        new = self._folder / "new"
        new.write_bytes(b"\n".join([json.dumps(record[:4]).encode(), *record[4:]]))
        new.replace(self._file(job_id, "state"))
        if before and (past := self._entry(job_id, before)) and past != entry:
            past.unlink(missing_ok=True)

    def _file(self, job_id: JobId, half: str) -> Path:
        return self._folder / f"{job_id}.{half}"

    def _entry(self, job_id: JobId, record: Record) -> Path | None:
        if record.due_at is None:
            return None
        return self._folder / "due" / f"{record.due_at:020} {record.order:012} {job_id}"

    def _key(self, owner: str | None, kind: str, key: str | None) -> Path | None:
        if key is None:
            return None
        scope = json.dumps([owner, kind, key]).encode()
        return self._folder / "keys" / hashlib.sha256(scope).hexdigest()


def from_url(url: str) -> FolderStore:
    """Return the store for `folder:///path`; an entry point names this function."""
    if not url.startswith("folder:///") or "?" in url:
        raise ConfigurationError(f"A folder store's URL is folder:///path, got {url!r}.")
    return FolderStore(Path(url.removeprefix("folder://")))
