"""The rules of batches: the ids of their jobs, what they count, and when and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from asyncjobs.core import lifecycle
from asyncjobs.core.job import (
    BATCH_TYPE,
    BatchCounts,
    BatchFailure,
    Delivery,
    Detail,
    Job,
    JobError,
    JobId,
    JobStatus,
    Progress,
    Submission,
    job_id_of,
)
from asyncjobs.core.labels import PROGRESS, TOTAL, Tally
from asyncjobs.errors import IllegalMove

#: The most payloads of one call.
MAX_PAYLOADS = 100_000

#: How many failed jobs a batch names; the others are listed by the batch and the status.
MAX_FAILURES = 5

#: How long a batch waits for jobs that it was given but that were not stored.
PATIENCE = timedelta(minutes=5)

INCOMPLETE = JobError(
    code="batch_incomplete", message="Not all jobs of the batch were stored, so they never ran."
)

#: The moves that a batch refuses, as errors name them.
ADD = "accept jobs"
RUN_AGAIN = "be run again"


def member_id(batch: JobId, place: int | JobId) -> JobId:
    """Return the id of a batch's job: the same whenever it is inserted.

    Its place is its index, or the job that it runs again. Without the batch's id it cannot be
    guessed, like any other id.
    """
    return job_id_of(sha256(f"{batch}/{place}".encode()).hexdigest()[:32])


def fingerprint(kind: str, payloads: Iterable[str]) -> str:
    """Return the fingerprint of a batch, given its type and the fingerprints of its payloads."""
    whole = sha256(f"{kind}\n".encode())
    for payload in payloads:
        whole.update(payload.encode())
    return whole.hexdigest()


def batch_of(submission: Submission, total: int) -> Job:
    """Return the new job of a batch with a number of jobs, which begins at once.

    The submission is like that of one of its jobs, but has a description and a callback URL.
    """
    own = submission.changed(
        type=BATCH_TYPE,
        payload_json=b"null",
        delivery=Delivery.BATCH,
        timeout=None,
        estimated_duration=None,
    )
    counts = BatchCounts(total=total, grown_at=own.created_at)
    pending = lifecycle.submit(own).changed(counts=counts)
    started = lifecycle.start(pending, own.created_at, None)
    return started.changed(detail=_progress(counts, 0).detail)


def member_of(batch: Job, submission: Submission, place: int | JobId) -> Submission:
    """Return the submission of a batch's job at a place.

    It ends by the deadline of the batch, and is kept for at least as long as the batch. What
    people see, the tags, the idempotency key and the callback belong to the batch.
    """
    kept = submission.retention
    return submission.changed(
        id=member_id(batch.id, place),
        batch=batch.id,
        deadline=min(submission.deadline, batch.deadline),
        retention=None if kept is None else kept + (batch.deadline - submission.created_at),
        idempotency_key=None,
        fingerprint=None,
        callback_url=None,
        given_title=None,
        given_metadata_json=None,
        tags=(),
    )


def grow(job: Job, now: datetime, number: int) -> Job:
    """Return a batch that was given more jobs; raise `IllegalMove` if it accepts none."""
    counts = counts_of(job)
    if job.status.terminal:
        raise IllegalMove(job.id, ADD, job.status, "it has ended")
    if job.cancel_requested_at is not None:
        raise IllegalMove(job.id, ADD, job.status, "it was asked to stop")
    if now >= job.deadline:
        raise IllegalMove(job.id, ADD, job.status, "its deadline has passed")
    grown = counts.changed(total=counts.total + number, grown_at=now)
    return lifecycle.count(job, grown, _progress(grown, job.progress * counts.total))


def lacks_failures(job: Job, tally: Tally) -> bool:
    """Return whether a batch must name more of its failed jobs."""
    named = len(counts_of(job).failures)
    return named < MAX_FAILURES and tally.get(JobStatus.FAILED, 0) > named


def follow(
    job: Job, tally: Tally, failed: Sequence[Job], now: datetime, look_at: datetime | None = None
) -> Job | None:
    """Return a batch in the state that its jobs give it; None if that is unchanged.

    The tally is newer than the batch, and `failed` has some of the failed jobs, the first to fail
    first. A batch that has not ended is due again at `look_at`.
    """
    before = counts_of(job)
    counts, done = _counted(before, tally, failed, now), tally.get(PROGRESS, 0)
    if (
        tally.get(TOTAL, 0) < before.stored
    ):  # the store has lost counters, with jobs deleted by hand
        done = max(done, job.progress * before.total)
    progress = _progress(counts, done)
    if counts.ended >= counts.total:
        return _end(job, counts, progress, now)
    if counts.ended == counts.stored and counts.grown_at and now - counts.grown_at >= PATIENCE:
        return _end(job, counts, progress, now, INCOMPLETE)
    if counts == before and progress.percent == job.progress:
        return None
    return lifecycle.count(job, counts, progress, look_at=look_at)


def is_incomplete(job: Job) -> bool:
    """Return whether a batch has ended although not all of its jobs were stored."""
    return job.error is not None and job.error.code == INCOMPLETE.code


def counts_of(job: Job) -> BatchCounts:
    """Return the counts of a batch; raise `IllegalMove` for another job."""
    if job.delivery is not Delivery.BATCH or job.counts is None:
        raise IllegalMove(job.id, "be used as a batch", job.status, "it is not one")
    return job.counts


def _counted(
    before: BatchCounts, tally: Tally, failed: Sequence[Job], now: datetime
) -> BatchCounts:
    known = {failure.job_id for failure in before.failures}
    found = [
        BatchFailure(job_id=job.id, code=job.error.code, message=job.error.message)
        for job in failed
        if job.error is not None and job.id not in known
    ]
    numbers = {status.value: tally.get(status.value, 0) for status in JobStatus}
    if tally.get(TOTAL, 0) < before.stored:
        # Only ended jobs are deleted by hand, and what they counted is all that is known of them.
        for status in JobStatus:
            if status.terminal:
                numbers[status.value] = max(numbers[status.value], getattr(before, status.value))
    return before.changed(
        **numbers,
        failures=(*before.failures, *found)[:MAX_FAILURES],
        grown_at=now if tally.get(TOTAL, 0) > before.stored else before.grown_at,
    )


def _progress(counts: BatchCounts, done: int) -> Progress:
    """Return the progress of a batch, given the sum of the progress of its jobs in percent."""
    percent = min(done // counts.total, 100) if counts.total else 100
    return Progress(
        percent=percent, detail=Detail(current=counts.ended, total=counts.total, unit="jobs")
    )


def _end(
    job: Job, counts: BatchCounts, progress: Progress, now: datetime, error: JobError | None = None
) -> Job:
    last = job.changed(counts=counts, progress=progress.percent, detail=progress.detail)
    if counts.total <= counts.completed == counts.ended:
        numbers = {"total": counts.total, "completed": counts.completed}
        result = json.dumps(numbers, separators=(",", ":")).encode()
        return lifecycle.complete(last, now, token=None, result=result)
    if job.cancel_requested_at is not None:
        return lifecycle.stop(last, now, token=None)
    return lifecycle.fail(last, now, token=None, error=error or _failed(counts))


def _failed(counts: BatchCounts) -> JobError:
    jobs = "1 job" if counts.total == 1 else f"{counts.total} jobs"
    if not counts.failed:
        verb = "was" if counts.cancelled == 1 else "were"
        message = f"{counts.cancelled} of {jobs} {verb} cancelled."
    else:
        also = f", {counts.cancelled} cancelled" if counts.cancelled else ""
        message = f"{counts.failed} of {jobs} failed{also}."
    return JobError(code="batch_failed", message=message)
