"""Copies all jobs of one store into another, exactly: with payloads, results, keys and counters.

A transfer may be interrupted at any time and started again. Jobs that are already in the target are
compared with the source, and overwritten if the source has changed. Missing jobs are inserted in
the order of the source, because jobs with the same due time run in that order. The source is only
read.

No process may use either store during a transfer. At the end both stores are read again: the
transfer is complete only if the number of jobs and a checksum over all their data are equal.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from asyncjobs.core.encoding import encode_state, encode_submission, to_microseconds
from asyncjobs.core.job import Delivery, Job, JobId
from asyncjobs.core.labels import label_of_batch, new_labels, tally_changes
from asyncjobs.errors import ConfigurationError, TransferRefused
from asyncjobs.protocols import Change, Listing, Selection, Store, StoreClock, Tallies, power_of
from asyncjobs.records.clock import SystemClock

_PAGE_SIZE = 500
_MAX_BATCH_JOBS = 200
# Payloads and results in memory at once, estimated from the batch before.
_MAX_BATCH_BYTES = 16 * 1024 * 1024

#: Called after each batch with the phase ("copy" or "verify"), the jobs done and the total.
ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Digest:
    """The number of jobs and a checksum of all of their data, independent of their order."""

    jobs: int = 0
    checksum: int = 0

    def plus(self, jobs: Sequence[Job]) -> Digest:
        """Return the digest with more jobs. It is a sum: XOR would not see a pair of equal jobs."""
        total = sum(int.from_bytes(_fingerprint(job), "big") for job in jobs)
        return Digest(self.jobs + len(jobs), (self.checksum + total) % 2**256)

    def __str__(self) -> str:
        return f"{self.checksum:064x}"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """The result of a transfer: `copied` jobs were missing in the target, `updated` ones older.

    `unreadable` lists jobs that are damaged in the source. They were left out.
    """

    digest: Digest
    copied: int
    updated: int
    unreadable: Sequence[str]


@dataclass
class TransferPlan:
    """The jobs to copy, the oldest first, and how many exist in the target or run in the source."""

    ids: list[JobId]
    present: int
    running: int
    unreadable: list[str]


async def plan_transfer(source: Store, target: Store) -> TransferPlan:
    """Compare two open stores; change nothing.

    Raises `TransferRefused` if the target has jobs that the source does not have: it must be empty,
    or hold the copies of an earlier run.
    """
    clock = power_of(source, StoreClock)
    now = SystemClock().now() if clock is None else await clock.now()
    ids: list[JobId] = []
    running = 0
    with _unreadable_jobs() as unreadable:
        async for jobs in _pages(source):
            ids += [job.id for job in jobs]
            running += sum(_has_live_lease(job, now) for job in jobs)
    # A page that is read while jobs are deleted may contain a job twice.
    ids = list(dict.fromkeys(reversed(ids)))
    known, present = set(ids), 0
    others: list[JobId] = []
    async for jobs in _pages(target):
        others += [job.id for job in jobs if job.id not in known]
        present += len(jobs)
    if others:
        raise TransferRefused(
            f"the target has other jobs, such as {others[0]}; transfer into an empty store"
        )
    return TransferPlan(ids, present, running, unreadable)


async def copy_jobs(
    source: Store, target: Store, planned: TransferPlan, report: ReportProgress
) -> TransferResult:
    """Copy missing jobs, then verify; raise `TransferRefused` if the stores differ.

    A running job is copied as it is. Its attempt writes its outcome to the source; in the target
    the job starts again when its lease has lapsed.
    """
    copied = updated = done = 0
    open_batches: list[Job] = []
    async with aclosing(_complete_jobs(source, planned.ids)) as batches:
        async for jobs in batches:
            ids = [job.id for job in jobs]
            pairs = list(zip(jobs, await target.get(ids), strict=True))
            missing = [job for job, found in pairs if found is None]
            await _insert(target, missing)
            older = [(job, found) for job, found in pairs if found and not same_job(job, found)]
            await _overwrite(target, older)
            copied, updated, done = copied + len(missing), updated + len(older), done + len(jobs)
            report("copy", done, len(planned.ids))
            open_batches += [
                job for job in jobs if job.delivery is Delivery.BATCH and not job.status.terminal
            ]
    for start in range(0, len(open_batches), _MAX_BATCH_JOBS):
        await _copy_tallies(source, target, open_batches[start : start + _MAX_BATCH_JOBS])
    digest = await verify(source, target, report)
    return TransferResult(digest, copied, updated, planned.unreadable)


async def verify(source: Store, target: Store, report: ReportProgress) -> Digest:
    """Read both stores completely and compare; raise `TransferRefused` if they differ."""
    with _unreadable_jobs():  # reported by the plan
        source_ids = [job.id async for jobs in _pages(source) for job in jobs]
    target_ids = [job.id async for jobs in _pages(target) for job in jobs]
    total = len(source_ids) + len(target_ids)
    read = await digest_of(source, source_ids, lambda done: report("verify", done, total))
    wrote = await digest_of(
        target, target_ids, lambda done: report("verify", read.jobs + done, total)
    )
    if read != wrote:
        raise TransferRefused(
            f"the source has {read.jobs} jobs (checksum {str(read)[:12]}), the target {wrote.jobs} "
            f"({str(wrote)[:12]}); stop all processes that use them and run the transfer again"
        )
    return wrote


async def digest_of(store: Store, ids: Sequence[JobId], report: Callable[[int], None]) -> Digest:
    """Return the digest of some jobs of an open store."""
    digest = Digest()
    async for jobs in _complete_jobs(store, ids):
        digest = digest.plus(jobs)
        report(digest.jobs)
    return digest


def same_job(one: Job, other: Job) -> bool:
    """Return whether two jobs are equal in everything that a store keeps."""
    return _fingerprint(one) == _fingerprint(other)


async def _insert(target: Store, jobs: Sequence[Job]) -> None:
    stored = await target.insert(jobs) if jobs else ()
    for job, found in zip(jobs, stored, strict=True):
        if found.id != job.id:
            raise TransferRefused(
                f"in the target, job {found.id} has the idempotency key of job {job.id}"
            )


async def _overwrite(target: Store, pairs: Sequence[tuple[Job, Job]]) -> None:
    """Update jobs that the source has changed since an earlier run copied them."""
    for job, found in pairs:
        if found.revision > job.revision:
            raise TransferRefused(f"job {job.id} has already changed in the target")
    changes = [
        Change(job, found.revision, new_labels(found, job), tally_changes(found, job))
        for job, found in pairs
    ]
    if changes and not all(await target.replace(changes)):
        raise TransferRefused("the target is in use; stop all processes that use it")


async def _copy_tallies(source: Store, target: Store, batches: Sequence[Job]) -> None:
    """Give the target what the source counted for jobs that were deleted before the transfer."""
    labels = [label_of_batch(job.id) for job in batches]
    counting, counted = power_of(source, Tallies), power_of(target, Tallies)
    if counting is None or counted is None:
        return
    changes: list[Change] = []
    wanted, found = await counting.tally(labels), await counted.tally(labels)
    for job, label, right, wrong in zip(batches, labels, wanted, found, strict=True):
        lacking = {name: right.get(name, 0) - wrong.get(name, 0) for name in {**right, **wrong}}
        if lacking := {name: number for name, number in sorted(lacking.items()) if number}:
            changes.append(Change(job, job.revision, tallies={label: lacking}))
    if changes and not all(await target.replace(changes)):
        raise TransferRefused("the target is in use; stop all processes that use it")


async def _complete_jobs(store: Store, ids: Sequence[JobId]) -> AsyncGenerator[list[Job]]:
    """Yield jobs with their wide data, in batches; deleted jobs are left out."""
    start, batch = 0, 16
    while start < len(ids):
        found = await store.get(ids[start : start + batch])
        jobs = [job for job in found if job is not None]
        start += batch
        size = sum(job.wide_bytes for job in jobs)
        batch = max(1, min(_MAX_BATCH_JOBS, 2 * batch, batch * _MAX_BATCH_BYTES // max(size, 1)))
        if jobs:
            yield jobs


async def _pages(store: Store) -> AsyncGenerator[Sequence[Job]]:
    """Yield all jobs, the newest first, without payloads and results."""
    listing = power_of(store, Listing)
    if listing is None:
        raise ConfigurationError("Jobs can only be transferred between stores that can list jobs.")
    after = None
    while True:
        page = await listing.list(Selection(), limit=_PAGE_SIZE, after=after)
        yield page.jobs
        if (after := page.next) is None:
            return


def _has_live_lease(job: Job, now: datetime) -> bool:
    return job.lease is not None and job.lease.until > now


def _fingerprint(job: Job) -> bytes:
    """Hash everything that a store keeps of a job, each part after its length."""
    due_at = "" if job.due_at is None else to_microseconds(job.due_at)
    columns = f"{job.revision} {due_at} {job.lane}".encode()
    wide = [b"-" if text is None else b"+" + text for text in (job.result_json, job.errors_json)]
    hashed = sha256()
    for part in (encode_submission(job), job.payload_json, encode_state(job), *wide, columns):
        hashed.update(b"%d " % len(part))
        hashed.update(part)
    return hashed.digest()


@contextmanager
def _unreadable_jobs() -> Generator[list[str]]:
    """Collect the ids of jobs that a store's list leaves out because it cannot read them.

    Stores only log them. A transfer must know them, since it is not complete without them.
    """
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(str(getattr(record, "job_id", "?")))

    handler = Collector(logging.ERROR)
    logger = logging.getLogger("asyncjobs")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
