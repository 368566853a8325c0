"""Accepts jobs and batches: checks payloads and stores a job for each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import anyio.lowlevel

from asyncjobs.core import batches
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Delivery, Job, JobId, JobStatus, Submission
from asyncjobs.core.labels import TOTAL, label_of_batch
from asyncjobs.core.submission import (
    Accepted,
    Caller,
    EnqueueOptions,
    Terms,
    check_key,
    make_submission,
    same_payload,
    submission_of,
    submit_again,
)
from asyncjobs.errors import (
    ConfigurationError,
    FieldIssue,
    IdempotencyConflict,
    IllegalMove,
    InvalidPayload,
)
from asyncjobs.protocols import Selection
from asyncjobs.runtime.batches import pages_of
from asyncjobs.runtime.runtime import Runtime

P = TypeVar("P")

# How many payloads are checked before other tasks get a turn.
_PAYLOADS_PER_TURN = 200

# How many jobs of a batch are stored in one call.
_PORTION = 500

# A pause after which the batch may have ended because the rest of its jobs was missing.
_LONG_PAUSE = batches.PATIENCE / 2


async def accept_jobs(
    runtime: Runtime,
    kind: JobType[P, Any],
    payloads: Sequence[P],
    caller: Caller,
    options: EnqueueOptions,
    connection: object = None,
    /,
) -> Sequence[Accepted]:
    """Store jobs of one type in a single call of the store; see `AsyncJobs.enqueue`."""
    if options.callback_url is not None:
        runtime.callbacks.check(options.callback_url)
    terms = _terms(runtime, kind)
    spans, queue = runtime.hooks.spans, kind.policy.queue
    with spans.submitting(kind.name, queue, options.traceparent) as traceparent:
        if traceparent != options.traceparent:
            options = replace(options, traceparent=traceparent)
        submissions: list[Submission] = []
        for payload in payloads:
            submissions.append(make_submission(kind, payload, caller, options, terms))
            if not len(submissions) % _PAYLOADS_PER_TURN:
                await anyio.lowlevel.checkpoint()
        jobs = await runtime.accept(submissions, options.begins(terms.now), connection)
    return [
        _accepted(kind, submission, job) for submission, job in zip(submissions, jobs, strict=True)
    ]


def _accepted(kind: JobType[Any, Any], submission: Submission, job: Job) -> Accepted:
    if job.id == submission.id:
        return Accepted(job, replayed=False)
    if not same_payload(kind, job, submission):
        raise IdempotencyConflict(submission.idempotency_key or "", job.id)
    return Accepted(job, replayed=True)


async def accept_batch(
    runtime: Runtime,
    kind: JobType[P, Any],
    payloads: Sequence[P],
    caller: Caller,
    options: EnqueueOptions,
    connection: object = None,
    /,
) -> Accepted:
    """Store a batch, then its jobs in portions; see `AsyncJobs.enqueue_batch`."""
    _check_batches(runtime)
    check_key(caller.idempotency_key)
    if options.callback_url is not None:
        runtime.callbacks.check(options.callback_url)
    terms = _terms(runtime, kind)
    with runtime.hooks.spans.submitting(
        kind.name, kind.policy.queue, options.traceparent
    ) as traceparent:
        options = replace(options, traceparent=traceparent)
        members = await _checked_members(kind, payloads, caller.user_id, options, terms)
        mark = None
        if caller.idempotency_key is not None:
            mark = await _mark(kind, payloads)
        own = submission_of(kind, (b"null", mark), caller, options, terms)
        batch = await _insert_batch(runtime, batches.batch_of(own, len(members)), connection)
        replayed = batch.id != own.id
        if replayed:
            await _check_same(runtime, kind, batch, mark, members)
            members = await _missing(runtime, batch, members)
        await _insert_members(runtime, batch, members, options.begins(terms.now), connection)
        # What is inserted in a transaction cannot be changed before the commit.
        if not payloads and connection is None:
            batch = await _end_empty(runtime, batch)
    return Accepted(batch, replayed=replayed)


async def add_to_batch(
    runtime: Runtime, batch_id: JobId, kind: JobType[P, Any], payloads: Sequence[P]
) -> Job:
    """Give more jobs to a batch that has not ended; see `BatchHandle.add`."""
    _check_batches(runtime)
    batch = await runtime.repository.find(batch_id)
    batches.counts_of(batch)
    terms = _terms(runtime, kind)
    with runtime.hooks.spans.submitting(kind.name, kind.policy.queue, None) as traceparent:
        options = EnqueueOptions(traceparent=traceparent)
        members = await _checked_members(kind, payloads, batch.user_id, options, terms)
        if not members:
            return batch
        # Written before the jobs, so that the batch does not end without them.
        batch = await runtime.repository.advance(
            batch, lambda job, now: batches.grow(job, now, len(members))
        )
        first = batches.counts_of(batch).total - len(members)
        given = {first + index: one for index, one in members.items()}
        await _insert_members(runtime, batch, given, terms.now)
    return batch


async def retry_batch(runtime: Runtime, old: Job) -> Job:
    """Store a new batch of the failed and cancelled jobs of one that has ended.

    A repetition returns the batch that exists, and stores those of its jobs that are missing. If
    that batch has ended without them, they become another batch.
    """
    _check_batches(runtime)
    terms = Terms(runtime.repository.now(), old.delivery)
    with runtime.hooks.spans.submitting(old.type, old.queue, None) as traceparent:
        own = submit_again(old, terms, traceparent)
        ids = [job_id async for job_id in _unsuccessful(runtime, old.id)][::-1]
        if not ids:
            reason = "none of its jobs failed or was cancelled"
            if batches.is_incomplete(old):
                reason = f"{reason}; submit those that were not stored as another batch"
            raise IllegalMove(old.id, batches.RUN_AGAIN, old.status, reason)
        batch = await _insert_batch(runtime, batches.batch_of(own, len(ids)))
        while batch.id != own.id:
            ids = await _not_retried(runtime, batch, ids)
            if not ids or not batch.status.terminal:
                break
            own = own.changed(idempotency_key=f"{own.idempotency_key}:{batch.id}")
            batch = await _insert_batch(runtime, batches.batch_of(own, len(ids)))
        inserted_at = runtime.repository.now()
        for start in range(0, len(ids), _PORTION):
            inserted_at = await _still_open(runtime, batch, inserted_at)
            found = await runtime.repository.get(ids[start : start + _PORTION])
            again = [
                # Its retention is already that of a batch's job.
                batches.member_of(batch, submit_again(job, terms, traceparent), job.id).changed(
                    retention=job.retention
                )
                for job in found
                if job is not None
            ]
            await _insert_portion(runtime, again, terms.now)
    return batch


async def _not_retried(runtime: Runtime, batch: Job, ids: list[JobId]) -> list[JobId]:
    """Return those of some jobs that an earlier call should have stored again in this batch."""
    if batch.status.terminal and not batches.is_incomplete(batch):
        return []
    counted = await _stored(runtime, batch)
    if counted >= batches.counts_of(batch).total:
        return []
    which = Selection(batch=batch.id)
    async with aclosing(pages_of(runtime.repository, which)) as pages:
        stored = [job.retry_of async for page in pages for job in page]
    retried = frozenset(stored)
    missing = [one for one in ids if one not in retried]
    # Jobs are stored in this order: those that were deleted since come first.
    return missing[max(0, counted - len(stored)) :]


def _terms(runtime: Runtime, kind: JobType[Any, Any]) -> Terms:
    now, delivery = runtime.repository.now(), runtime.dispatcher.delivery
    return Terms(now, delivery, expected_duration(runtime, kind))


def _check_batches(runtime: Runtime) -> None:
    if not runtime.repository.counts:
        raise ConfigurationError(
            "The store of this queue cannot count jobs by label, which batches need: "
            "use a store with the power Tallies."
        )


async def _checked_members(
    kind: JobType[P, Any],
    payloads: Sequence[P],
    user_id: str | None,
    options: EnqueueOptions,
    terms: Terms,
) -> dict[int, Submission]:
    """Return the submissions of a batch's jobs by index; errors name the payload's index."""
    if len(payloads) > batches.MAX_PAYLOADS:
        found = f"at most {batches.MAX_PAYLOADS:,} per call, got {len(payloads):,}"
        raise InvalidPayload([FieldIssue("payloads", found)])
    members: dict[int, Submission] = {}
    caller = Caller(user_id)
    for index, payload in enumerate(payloads):
        try:
            members[index] = make_submission(kind, payload, caller, options, terms)
        except InvalidPayload as error:
            issues = [FieldIssue.at((index, *_path(one)), one.message) for one in error.issues]
            raise InvalidPayload(issues) from error
        if not len(members) % _PAYLOADS_PER_TURN:
            await anyio.lowlevel.checkpoint()
    return members


def _path(issue: FieldIssue) -> tuple[str, ...]:
    return (issue.field,) if issue.field else ()


async def _mark(kind: JobType[P, Any], payloads: Sequence[P]) -> str:
    """Return the fingerprint of a batch: its number of jobs, its type, and hashes of its payloads.

    The last hash makes no difference between orders in which a set may be written.
    """
    exact: list[str] = []
    unordered: list[str] = []
    for payload in payloads:
        exact.append(kind.fingerprint(payload))
        unordered.append(kind.fingerprint(payload, ordered=False))
        if not len(exact) % _PAYLOADS_PER_TURN:
            await anyio.lowlevel.checkpoint()
    hashes = [batches.fingerprint(kind.name, found) for found in ((), exact, unordered)]
    return ":".join([str(len(payloads)), *hashes])


async def _insert_batch(runtime: Runtime, batch: Job, connection: object = None) -> Job:
    """Store a batch; return it, or the one with the same idempotency key."""
    if connection is not None:
        [stored] = await runtime.repository.insert_within(connection, [batch])
    else:
        [stored] = await runtime.repository.insert([batch])
    return stored


async def _insert_members(
    runtime: Runtime,
    batch: Job,
    members: Mapping[int, Submission],
    run_at: datetime,
    connection: object = None,
) -> None:
    """Insert jobs of a batch in portions, each in one call of the store."""
    inserted_at = runtime.repository.now()
    indices = [*members]
    for start in range(0, len(indices), _PORTION):
        if connection is None:
            inserted_at = await _still_open(runtime, batch, inserted_at)
        some = indices[start : start + _PORTION]
        given = [batches.member_of(batch, members[index], index) for index in some]
        await _insert_portion(runtime, given, run_at, connection)


async def _still_open(runtime: Runtime, batch: Job, inserted_at: datetime) -> datetime:
    """Return the time; raise `IllegalMove` if the batch ended in a pause since the last insert."""
    now = runtime.repository.now()
    if now - inserted_at > _LONG_PAUSE:
        found = await runtime.repository.find(batch.id)
        if found.status.terminal:
            raise IllegalMove(batch.id, batches.ADD, found.status, "it has ended")
    return now


async def _insert_portion(
    runtime: Runtime, given: Sequence[Submission], run_at: datetime, connection: object = None
) -> None:
    for alike in _alike(given):
        await runtime.accept(alike, run_at, connection)
    await anyio.lowlevel.checkpoint()


def _alike(submissions: Iterable[Submission]) -> Iterable[Sequence[Submission]]:
    """Group submissions by what `Runtime.accept` expects to be the same for all."""
    groups: dict[object, list[Submission]] = {}
    for one in submissions:
        groups.setdefault((one.type, one.queue, one.delivery), []).append(one)
    return groups.values()


async def _check_same(
    runtime: Runtime,
    kind: JobType[Any, Any],
    batch: Job,
    mark: str | None,
    members: dict[int, Submission],
) -> None:
    """Raise `IdempotencyConflict` unless a stored batch has the same type and payloads.

    The values of its jobs decide. Of jobs that are not stored, only the fingerprint is known.
    """
    if batch.fingerprint == mark:
        return
    known, given = ((text or "").split(":") for text in (batch.fingerprint, mark))
    same = known[:2] == given[:2]
    indices = [*members]
    for start in range(0, len(indices) if same else 0, _PORTION):
        some = indices[start : start + _PORTION]
        stored = await runtime.repository.get([batches.member_id(batch.id, one) for one in some])
        same = same and all(
            known[-1] == given[-1]
            if job is None
            else job.type == kind.name and same_payload(kind, job, members[index])
            for index, job in zip(some, stored, strict=True)
        )
    if not same:
        raise IdempotencyConflict(batch.idempotency_key or "", batch.id)


async def _missing(
    runtime: Runtime, batch: Job, members: dict[int, Submission]
) -> dict[int, Submission]:
    """Return the jobs that an earlier submission of the batch did not store."""
    if batch.status.terminal:
        return {}
    counted, total = await _stored(runtime, batch), batches.counts_of(batch).total
    if counted >= total:
        return {}
    missing: list[int] = []
    for start in range(0, total, _PORTION):
        some = range(start, min(start + _PORTION, total))
        stored = await runtime.repository.get([batches.member_id(batch.id, one) for one in some])
        missing += [index for index, job in zip(some, stored, strict=True) if job is None]
    # Jobs are stored in the order of their indices: those that were deleted since come first.
    deleted = max(0, counted - (total - len(missing)))
    return {index: members[index] for index in missing[deleted:] if index in members}


async def _stored(runtime: Runtime, batch: Job) -> int:
    """Return how many jobs of a batch were stored, even if they were deleted since.

    It is read before the jobs, so that none that is stored meanwhile counts as deleted.
    """
    [tally] = await runtime.repository.tally([label_of_batch(batch.id)])
    return max(tally.get(TOTAL, 0), batches.counts_of(batch).stored)


async def _end_empty(runtime: Runtime, batch: Job) -> Job:
    def end(job: Job, now: datetime) -> Job:
        return batches.follow(job, {}, (), now) or job

    try:
        return await runtime.repository.advance(batch, end)
    except IllegalMove:  # another process has ended it
        return await runtime.repository.find(batch.id)


async def _unsuccessful(runtime: Runtime, batch: JobId) -> AsyncGenerator[JobId]:
    for status in (JobStatus.CANCELLED, JobStatus.FAILED):
        which = Selection(batch=batch, status=status)
        async with aclosing(pages_of(runtime.repository, which)) as pages:
            async for page in pages:
                for job in page:
                    yield job.id


def expected_duration(runtime: Runtime, what: JobType[Any, Any] | Job) -> timedelta | None:
    """Return how long a job takes, by its handler's estimate and the latest jobs."""
    if isinstance(what, Job):
        if what.delivery is Delivery.BATCH:  # as long as its jobs, which its progress shows
            return None
        return runtime.estimates.of(what.type, what.estimated_duration)
    return runtime.estimates.of(what.name, what.estimate)
