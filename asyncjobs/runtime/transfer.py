"""Copies all jobs of one store into another, exactly: with payloads, results, keys and counters.

A copy may be broken off at any moment and begun again. What is there is compared, not assumed; what
is missing is inserted in the order of the source, since jobs that are due at the same moment are
due in that order; what has changed in the source since is written over. The source is only read.

Neither store is to be served meanwhile. The end of a move is a second reading of both: the jobs of
each are counted and summed up, and only what is the same to the last bit has been moved.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from asyncjobs.core.encoding import encode_state, encode_submission, to_microseconds
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.errors import ConfigurationError, TransferRefused
from asyncjobs.protocols import Change, Listing, Selection, Store, StoreClock, power_of
from asyncjobs.records.clock import SystemClock

_PAGE = 500
_MOST_JOBS = 200
# Of payloads and results in memory at once, as far as those of the batch before let one guess.
_MOST_BYTES = 16 * 1024 * 1024

#: Told after each batch: what is done ("copy", "verify"), how many jobs of how many.
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Digest:
    """How many jobs there are, and a checksum of all that is known of them, in any order."""

    jobs: int = 0
    checksum: int = 0

    def plus(self, jobs: Sequence[Job]) -> Digest:
        """Take jobs in. A sum, since an exclusive or would not see a pair of equal jobs."""
        total = sum(int.from_bytes(_fingerprint(job), "big") for job in jobs)
        return Digest(self.jobs + len(jobs), (self.checksum + total) % 2**256)

    def __str__(self) -> str:
        return f"{self.checksum:064x}"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move has done: `copied` jobs were missing in the target, `updated` ones were older.

    `unreadable` ones are damaged in the source, and were left out.
    """

    digest: Digest
    copied: int
    updated: int
    unreadable: Sequence[str]


@dataclass
class Plan:
    """What is to be moved: the ids in the source, the oldest first, and what runs there."""

    ids: list[JobId]
    present: int
    running: int
    unreadable: list[str]


async def plan(source: Store, target: Store) -> Plan:
    """Look at both open stores; change nothing.

    Raises `TransferRefused` if the target has jobs that the source does not have: it must be empty,
    or hold what an earlier run has copied.
    """
    clock = power_of(source, StoreClock)
    now = SystemClock().now() if clock is None else await clock.now()
    ids: list[JobId] = []
    running = 0
    with _unreadable_jobs() as unreadable:
        async for jobs in _pages(source):
            ids += [job.id for job in jobs]
            running += sum(_runs(job, now) for job in jobs)
    # A page that was read while jobs were deleted may have shown one twice.
    ids = list(dict.fromkeys(reversed(ids)))
    known, present = set(ids), 0
    strangers: list[JobId] = []
    async for jobs in _pages(target):
        strangers += [job.id for job in jobs if job.id not in known]
        present += len(jobs)
    if strangers:
        raise TransferRefused(
            f"the target has jobs of its own, such as {strangers[0]}; move into an empty store"
        )
    return Plan(ids, present, running, unreadable)


async def copy(source: Store, target: Store, planned: Plan, tell: Tell) -> Moved:
    """Copy what is missing, then verify; raise `TransferRefused` where the two are not the same.

    A job that runs is copied as it is. Its attempt writes its outcome to the source, if anywhere;
    in the target it is begun again when its lease has lapsed.
    """
    copied = updated = done = 0
    async with aclosing(_whole(source, planned.ids)) as batches:
        async for jobs in batches:
            ids = [job.id for job in jobs]
            pairs = list(zip(jobs, await target.get(ids), strict=True))
            missing = [job for job, found in pairs if found is None]
            await _insert(target, missing)
            older = [(job, found) for job, found in pairs if found and not same(job, found)]
            await _overwrite(target, older)
            copied, updated, done = copied + len(missing), updated + len(older), done + len(jobs)
            tell("copy", done, len(planned.ids))
    digest = await verify(source, target, tell)
    return Moved(digest, copied, updated, planned.unreadable)


async def verify(source: Store, target: Store, tell: Tell) -> Digest:
    """Read all of both stores and compare; raise `TransferRefused` where they differ."""
    with _unreadable_jobs():  # they were named before
        ours = [job.id async for jobs in _pages(source) for job in jobs]
    theirs = [job.id async for jobs in _pages(target) for job in jobs]
    total = len(ours) + len(theirs)
    read = await digest_of(source, ours, lambda done: tell("verify", done, total))
    wrote = await digest_of(target, theirs, lambda done: tell("verify", read.jobs + done, total))
    if read != wrote:
        raise TransferRefused(
            f"the source has {read.jobs} of checksum {str(read)[:12]}, the target {wrote.jobs} of "
            f"{str(wrote)[:12]}; stop all processes that use either, and run the move again"
        )
    return wrote


async def digest_of(store: Store, ids: Sequence[JobId], tell: Callable[[int], None]) -> Digest:
    """Sum up jobs of an open store."""
    digest = Digest()
    async for jobs in _whole(store, ids):
        digest = digest.plus(jobs)
        tell(digest.jobs)
    return digest


def same(one: Job, other: Job) -> bool:
    """Tell whether two jobs are the same in all that is kept of them."""
    return _fingerprint(one) == _fingerprint(other)


async def _insert(target: Store, jobs: Sequence[Job]) -> None:
    stored = await target.insert(jobs) if jobs else ()
    for job, found in zip(jobs, stored, strict=True):
        if found.id != job.id:
            raise TransferRefused(
                f"the target has {found.id} under the idempotency key of {job.id}"
            )


async def _overwrite(target: Store, pairs: Sequence[tuple[Job, Job]]) -> None:
    """Bring jobs up to date that were copied before the source changed them."""
    for job, found in pairs:
        if found.revision > job.revision:
            raise TransferRefused(f"job {job.id} has already gone on in the target")
    changes = [Change(job, found.revision) for job, found in pairs]
    if changes and not all(await target.replace(changes)):
        raise TransferRefused("the target is in use; stop all processes that use it")


async def _whole(store: Store, ids: Sequence[JobId]) -> AsyncGenerator[list[Job]]:
    """Read jobs with payload and result; those that were deleted meanwhile are left out."""
    start, most = 0, 16
    while start < len(ids):
        found = await store.get(ids[start : start + most])
        jobs = [job for job in found if job is not None]
        start += most
        size = sum(len(job.payload_json) + len(job.result_json or b"") for job in jobs)
        most = max(1, min(_MOST_JOBS, 2 * most, most * _MOST_BYTES // max(size, 1)))
        if jobs:
            yield jobs


async def _pages(store: Store) -> AsyncGenerator[Sequence[Job]]:
    """Yield all jobs, the newest first, without payloads and results."""
    listing = power_of(store, Listing)
    if listing is None:
        raise ConfigurationError("Jobs can only be moved between stores that can list them.")
    after = None
    while True:
        page = await listing.list(Selection(), limit=_PAGE, after=after)
        yield page.jobs
        if (after := page.next) is None:
            return


def _runs(job: Job, now: datetime) -> bool:
    return job.status is JobStatus.PROCESSING and job.lease is not None and job.lease.until > now


def _fingerprint(job: Job) -> bytes:
    """Hash all that a store keeps of a job; each part behind its length, so that none can shift."""
    due_at = "" if job.due_at is None else to_microseconds(job.due_at)
    columns = f"{job.revision} {due_at} {job.lane}".encode()
    result = b"-" if job.result_json is None else b"+" + job.result_json
    hashed = sha256()
    for part in (encode_submission(job), job.payload_json, encode_state(job), result, columns):
        hashed.update(b"%d " % len(part))
        hashed.update(part)
    return hashed.digest()


@contextmanager
def _unreadable_jobs() -> Generator[list[str]]:
    """Note the jobs that a store's list passes over because it cannot read them.

    A list has no place for what is no job; the log is where stores tell of it. A move must know,
    lest it calls itself whole.
    """
    found: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(str(getattr(record, "job_id", "?")))

    handler = Note(logging.ERROR)
    logger = logging.getLogger("asyncjobs")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
