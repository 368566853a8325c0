"""A store of one's own: jobs as files in a folder that the processes of a machine share.

Each job is two files: `<id>.submission` is written once, `<id>.state` replaced as a whole. One lock
makes each call one step. Entries in `due` and `keys`, stale after a crash perhaps, are checked.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar

import anyio

from asyncjobs import Job, JobId
from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    to_microseconds,
)
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.protocols import Change

T = TypeVar("T")


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
        return await self._step(lambda _: [self._read(job_id)[0] for job_id in ids])

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        return await self._step(lambda _: [self._replace(change) for change in changes])

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        return await self._step(lambda _: self._take(lanes, now, until, limit))

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        return await self._step(lambda _: [self._delete(job_id) for job_id in ids])

    async def _step(self, work: Callable[[int], T]) -> T:
        """Do something while no other task, thread or process does anything here."""
        return await anyio.to_thread.run_sync(self._locked, work)

    def _locked(self, work: Callable[[int], T]) -> T:
        try:
            (self._folder / "due").mkdir(parents=True, exist_ok=True)
            (self._folder / "keys").mkdir(exist_ok=True)
            with (self._folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, and so with the process
                return work(lock.fileno())
        except OSError as error:
            raise StoreUnavailable(str(self._folder), str(error)) from error

    def _insert(self, job: Job, lock: int) -> Job:
        key = self._key(job)
        same = JobId(key.read_text()) if key and key.exists() else job.id
        if stored := self._read(job.id)[0] or self._read(same)[0]:
            return stored
        os.truncate(lock, order := os.fstat(lock).st_size + 1)  # the lock's length counts the jobs
        submission = encode_submission(job) + b"\n" + job.payload_json
        self._file(job.id, "submission").write_bytes(submission)
        if key:
            key.write_text(job.id)
        self._write(job, order, before=None)
        return job

    def _replace(self, change: Change) -> bool:
        stored, order = self._read(change.job.id)
        if stored is None or stored.revision != change.expected_revision:
            return False
        self._write(stored.updated(change.job), order, before=stored)
        return True

    def _take(self, lanes: Sequence[str], now: datetime, until: datetime, limit: int) -> list[Job]:
        taken: list[Job] = []
        last = f"{to_microseconds(now):020}~"  # "~" comes after the names' " "
        for entry in sorted((self._folder / "due").iterdir()):
            if len(taken) == limit or entry.name > last:
                break
            job, order = self._read(JobId(entry.name.rpartition(" ")[2]))
            if job is None or self._entry(job, order) != entry:
                entry.unlink()  # the job has moved on, or is gone
            elif job.lane in lanes:
                taken.append(job.model_copy(update={"due_at": until}))
                self._write(taken[-1], order, before=job)
        return taken

    def _delete(self, job_id: JobId) -> bool:
        job, order = self._read(job_id)
        both = self._file(job_id, "state"), self._file(job_id, "submission")
        for path in filter(None, (*both, self._entry(job, order), self._key(job)) if job else ()):
            path.unlink(missing_ok=True)
        return job is not None

    def _read(self, job_id: JobId) -> tuple[Job | None, int]:
        if not (path := self._file(job_id, "state")).exists():
            return None, 0
        head, state, errors, result = path.read_bytes().split(b"\n", 3)
        submission, payload = self._file(job_id, "submission").read_bytes().split(b"\n", 1)
        order, *columns = json.loads(head)
        found = Columns(payload, result or None, errors or None, *columns)  # JSON is never empty
        return decode(job_id, submission, state, found), order

    def _write(self, job: Job, order: int, *, before: Job | None) -> None:
        """Write the state: first where to find the job next, last forget where it was found."""
        if entry := self._entry(job, order):
            entry.touch()
        due_at = None if job.due_at is None else to_microseconds(job.due_at)
        head = json.dumps([order, job.revision, job.lane, due_at]).encode()
        wide = [job.errors_json or b"", job.result_json or b""]
        new = self._folder / "new"
        new.write_bytes(b"\n".join([head, encode_state(job), *wide]))
        new.replace(self._file(job.id, "state"))
        if before and (past := self._entry(before, order)) and past != entry:
            past.unlink(missing_ok=True)

    def _file(self, job_id: JobId, half: str) -> Path:
        return self._folder / f"{job_id}.{half}"

    def _entry(self, job: Job, order: int) -> Path | None:
        if job.due_at is None:
            return None
        return self._folder / "due" / f"{to_microseconds(job.due_at):020} {order:012} {job.id}"

    def _key(self, job: Job) -> Path | None:
        if job.idempotency_key is None:
            return None
        scope = json.dumps([job.user_id, job.type, job.idempotency_key]).encode()
        return self._folder / "keys" / hashlib.sha256(scope).hexdigest()


def from_url(url: str) -> FolderStore:
    """Make the store for `folder:///path`; an entry point leads here."""
    if not url.startswith("folder:///"):
        raise ConfigurationError(f"A folder store's URL is folder:///path, got {url!r}.")
    return FolderStore(Path(url.removeprefix("folder://")))
