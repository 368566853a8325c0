"""Every legal move of a job, and nothing else: pure functions from a job to the next job.

`TRANSITIONS` is the only authority on legal moves. A move returns a new job with the next revision
(and the next version if a client can see the change), or raises `IllegalMove` or `LostLease` and
changes nothing. Time, tokens and randomness are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, assert_never

from asyncjobs.core.files import announced, recorded
from asyncjobs.core.job import (
    ATTEMPT_ERRORS,
    BATCHES_LANE,
    CALLBACKS_LANE,
    MAINTENANCE_LANE,
    RESERVED_PREFIX,
    AttemptError,
    BatchCounts,
    Callback,
    Delivery,
    Job,
    JobError,
    JobFile,
    JobStatus,
    Lease,
    Progress,
    Retry,
    ScheduleState,
    State,
    Submission,
    schedule_lane,
    suspects_lane,
)
from asyncjobs.errors import IllegalMove, LostLease, UnreadableJob

PENDING, PROCESSING = JobStatus.PENDING, JobStatus.PROCESSING
COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED


class Move(StrEnum):
    """The moves of a job."""

    START = "start"
    EXTEND = "extend"
    REPORT = "report"
    ANNOUNCE_FILE = "announce_file"
    RECORD_FILE = "record_file"
    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"
    RELEASE = "release"
    REQUEUE = "requeue"
    CANCEL = "cancel"
    STOP = "stop"
    EXPIRE = "expire"
    LOSE = "lose"
    CALL_BACK = "call_back"
    RESCHEDULE = "reschedule"


#: Move -> status before -> possible statuses after. Everything else is illegal.
TRANSITIONS: Mapping[Move, Mapping[JobStatus, frozenset[JobStatus]]] = MappingProxyType(
    {
        Move.START: {PENDING: frozenset({PROCESSING})},
        Move.EXTEND: {PROCESSING: frozenset({PROCESSING})},
        Move.REPORT: {PROCESSING: frozenset({PROCESSING})},
        Move.ANNOUNCE_FILE: {PROCESSING: frozenset({PROCESSING})},
        Move.RECORD_FILE: {PROCESSING: frozenset({PROCESSING})},
        Move.COMPLETE: {PROCESSING: frozenset({COMPLETED})},
        Move.FAIL: {PROCESSING: frozenset({FAILED})},
        Move.RETRY: {PROCESSING: frozenset({PENDING})},
        Move.RELEASE: {PROCESSING: frozenset({PENDING, FAILED})},
        Move.REQUEUE: {PENDING: frozenset({PENDING})},
        Move.CANCEL: {PENDING: frozenset({CANCELLED}), PROCESSING: frozenset({PROCESSING})},
        Move.STOP: {PROCESSING: frozenset({CANCELLED})},
        Move.EXPIRE: {PENDING: frozenset({FAILED}), PROCESSING: frozenset({FAILED})},
        Move.LOSE: {PROCESSING: frozenset({PENDING, FAILED})},
        Move.CALL_BACK: {end: frozenset({end}) for end in (COMPLETED, FAILED, CANCELLED)},
        Move.RESCHEDULE: {PENDING: frozenset({PENDING})},
    }
)

#: Moves that clients cannot see; they keep the version.
INVISIBLE = frozenset(
    {Move.EXTEND, Move.ANNOUNCE_FILE, Move.REQUEUE, Move.CALL_BACK, Move.RESCHEDULE}
)

#: The lane of jobs that an engine delivered to a worker without their handler, as during a rolling
#: deploy. They are dispatched again when they are due.
UNHANDLED_LANE = f"{RESERVED_PREFIX}unhandled"

#: How long after its end a job may owe a callback; after that it is given up.
CALLBACK_PATIENCE = timedelta(days=7)

#: How many attempt errors a job keeps; the oldest are dropped.
MAX_ATTEMPT_ERRORS = 10

DEADLINE_EXCEEDED = JobError(
    code="deadline_exceeded", message="The job did not finish before its deadline."
)
TIMED_OUT = JobError(code="timeout", message="The job exceeded its time limit.")
WORKER_LOST = JobError(
    code="worker_lost", message="The processes that worked on the job were lost."
)


# The state of a new job, without `run_at`.
_NEW_STATE = {
    name: field.default for name, field in State.model_fields.items() if not field.is_required()
}

_IS_RECORD = "it is the record of a schedule"

# A job is delivered by one machine's clock and started by another's.
_CLOCKS_DIFFER = timedelta(seconds=1)


def submit(
    submission: Submission, *, run_at: datetime | None = None, hold: timedelta = timedelta(0)
) -> Job:
    """Return the pending job of a submission, due at once or at a later `run_at`.

    `hold` is how long other processes leave a job alone that is due at once: the process that
    accepted it is about to start it.
    """
    at_once = run_at is None or run_at <= submission.created_at
    start_at = submission.created_at if at_once or run_at is None else run_at
    job = Job.of({**_NEW_STATE, **submission.__dict__, "run_at": start_at})
    return _scheduled(job, start_at + hold if at_once else None)


def submit_schedule(submission: Submission, schedule: ScheduleState) -> Job:
    """Return the record of a schedule, which is due at the next tick and never run."""
    run_at = submission.created_at
    return _scheduled(
        Job.of({**_NEW_STATE, **submission.__dict__, "run_at": run_at, "schedule": schedule})
    )


def start(job: Job, now: datetime, lease: Lease | None) -> Job:
    """Begin the next attempt. External work has no lease; only timeout and deadline bound it."""
    if job.schedule is not None:
        raise IllegalMove(job.id, Move.START, job.status, _IS_RECORD)
    if now >= job.deadline:
        raise IllegalMove(job.id, Move.START, job.status, "its deadline has passed")
    if now < job.run_at - _CLOCKS_DIFFER:
        raise IllegalMove(job.id, Move.START, job.status, "its start time has not come")
    return _move(
        job,
        Move.START,
        PROCESSING,
        attempt=job.attempt + 1,
        progress=0,
        detail=None,
        started_at=now,
        lease=lease,
    )


def extend(job: Job, now: datetime, *, token: str, until: datetime) -> Job:
    """Renew the lease, but never far beyond the end of the attempt.

    A handler that ignores its timeout must not keep the job by its heartbeat. After that end the
    lease is no longer extended; it lapses, and another worker can take the job.
    """
    lease = _fence(job, Move.EXTEND, token)
    if lease is None:
        raise IllegalMove(job.id, Move.EXTEND, job.status, "it has no lease")
    furthest = attempt_end(job) + (until - now)
    renewed = lease.changed(until=max(lease.until, min(until, furthest)))
    return _move(job, Move.EXTEND, PROCESSING, lease=renewed)


def report(
    job: Job,
    progress: Progress | None = None,
    *,
    token: str | None,
    title: str | None = None,
    metadata_json: bytes | None = None,
) -> Job:
    """Record progress, title and metadata of the attempt; None leaves a value as it is."""
    _fence(job, Move.REPORT, token)
    return _move(job, Move.REPORT, PROCESSING, **_reported(progress, title, metadata_json))


def count(
    job: Job, counts: BatchCounts, progress: Progress, *, look_at: datetime | None = None
) -> Job:
    """Record the state of a batch's jobs; the batch is due again at `look_at`."""
    if job.delivery is not Delivery.BATCH:
        raise IllegalMove(job.id, Move.REPORT, job.status, "it is not a batch")
    changes = {"counts": counts, "progress": progress.percent, "detail": progress.detail}
    moved = _move(job, Move.REPORT, PROCESSING, **changes)
    if look_at is not None:
        vars(moved)["due_at"] = look_at
    return moved


def announce_file(job: Job, file: JobFile, *, token: str | None, limit: int) -> Job:
    """List a file without a size, which clients do not see, before its content is stored.

    Raises `TooManyFiles` beyond the limit.
    """
    _fence(job, Move.ANNOUNCE_FILE, token)
    files = announced(job.files, file, limit=limit)
    return _move(job, Move.ANNOUNCE_FILE, PROCESSING, files=files)


def record_file(job: Job, now: datetime, file: JobFile, *, token: str | None) -> Job:
    """List a file whose content is stored, in place of one of the same name."""
    _fence(job, Move.RECORD_FILE, token)
    files = recorded(job.files, file.changed(saved_at=now))
    if files is None:
        raise IllegalMove(job.id, Move.RECORD_FILE, job.status, "the file was not announced")
    return _move(job, Move.RECORD_FILE, PROCESSING, files=files)


def complete(job: Job, now: datetime, *, token: str | None, result: bytes) -> Job:
    """Record the result, a JSON text."""
    _fence(job, Move.COMPLETE, token)
    return _end(job, Move.COMPLETE, COMPLETED, now, result_json=result, progress=100)


def fail(job: Job, now: datetime, *, token: str | None, error: JobError) -> Job:
    """Record that the job failed for good."""
    _fence(job, Move.FAIL, token)
    return _end(job, Move.FAIL, FAILED, now, error=error)


def retry(job: Job, now: datetime, *, token: str | None, jitter: float) -> Job:
    """Return the job to pending after a failed attempt; `jitter` is random in [0, 1)."""
    _fence(job, Move.RETRY, token)
    failures = job.failures + 1
    if not has_attempts_left(job):
        raise IllegalMove(job.id, Move.RETRY, job.status, "no attempts are left")
    run_at = now + jitter * _longest_pause(job.retry, failures)
    return _wait_again(job, Move.RETRY, run_at, failures=failures)


def release(job: Job, now: datetime, *, token: str) -> Job:
    """Return the job to pending because this worker shuts down; fail it after `max_releases`.

    Without that limit, a job that shuts down its worker would do so to one worker after another.
    """
    _fence(job, Move.RELEASE, token)
    releases = job.releases + 1
    if releases > job.max_releases:
        return _end(job, Move.RELEASE, FAILED, now, error=WORKER_LOST, releases=releases)
    return _wait_again(job, Move.RELEASE, now, releases=releases)


def requeue(job: Job, waits_until: datetime | None = None) -> Job:
    """Return a job that was taken but not started to its place in the queue.

    With `waits_until` it is due at that time, and not before.
    """
    moved = _move(job, Move.REQUEUE, PENDING)
    return moved if waits_until is None else _scheduled(moved, waits_until)


def leave_unhandled(job: Job, until: datetime) -> Job:
    """Make a waiting job due at `until` in `UNHANDLED_LANE`; `requeue` moves it back."""
    moved = _move(job, Move.REQUEUE, PENDING)
    vars(moved)["lane"], vars(moved)["due_at"] = UNHANDLED_LANE, min(until, job.deadline)
    return moved


def cancel(job: Job, now: datetime) -> Job:
    """Cancel a waiting job at once; ask a running one to stop. A second request is illegal."""
    if job.schedule is not None:
        raise IllegalMove(job.id, Move.CANCEL, job.status, _IS_RECORD)
    if job.cancel_requested_at is not None:
        raise IllegalMove(job.id, Move.CANCEL, job.status, "it was already asked to stop")
    match job.status:
        case JobStatus.PENDING:
            return _end(job, Move.CANCEL, CANCELLED, now, cancel_requested_at=now)
        case JobStatus.PROCESSING:
            return _move(job, Move.CANCEL, PROCESSING, cancel_requested_at=now)
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            raise IllegalMove(job.id, Move.CANCEL, job.status)
        case _:
            assert_never(job.status)


def stop(job: Job, now: datetime, *, token: str | None) -> Job:
    """Record that the work stopped after a cancel request."""
    _fence(job, Move.STOP, token)
    if job.cancel_requested_at is None:
        raise IllegalMove(job.id, Move.STOP, job.status, "no cancellation was requested")
    return _end(job, Move.STOP, CANCELLED, now)


def expire(job: Job, now: datetime) -> Job:
    """Fail a job whose deadline has passed, even if a worker holds its lease."""
    if now < job.deadline:
        raise IllegalMove(job.id, Move.EXPIRE, job.status, "its deadline has not passed")
    return _end(job, Move.EXPIRE, FAILED, now, error=DEADLINE_EXCEEDED)


def lose(job: Job, now: datetime) -> Job:
    """Take a job from a worker whose lease has lapsed; fail it if this was its last delivery."""
    if job.status is PROCESSING and (job.lease is None or now < job.lease.until):
        raise IllegalMove(job.id, Move.LOSE, job.status, "its lease has not lapsed")
    return _lose(job, now)


def call_back(
    job: Job, now: datetime, *, error: str | None = None, again_at: datetime | None = None
) -> Job:
    """Record a call to the job's callback URL; without `error` the call succeeded.

    After an error the URL is called again at `again_at`. The callback is given up if that is None
    or not before `callback_end`. The outcome of the job does not change.
    """
    if job.status.terminal and not owes_callback(job):
        raise IllegalMove(job.id, Move.CALL_BACK, job.status, "no callback is due")
    before = job.callback or Callback()
    if again_at is not None and again_at >= callback_end(job):
        again_at = None
    callback = Callback(
        calls=before.calls + 1,
        next_at=None if error is None else again_at,
        told_at=now if error is None else None,
        error=error,
    )
    return _move(job, Move.CALL_BACK, job.status, callback=callback)


def hold_callback(job: Job, until: datetime) -> Job:
    """Keep other processes from calling a job's callback URL until `until`, during a call."""
    if job.status.terminal and not owes_callback(job):
        raise IllegalMove(job.id, Move.CALL_BACK, job.status, "no callback is due")
    moved = _move(job, Move.CALL_BACK, job.status)
    vars(moved)["due_at"] = until
    return moved


def reschedule(record: Job, schedule: ScheduleState, *, waits_until: datetime | None = None) -> Job:
    """Change the state of the record of a schedule; with `waits_until` it is due at that time."""
    moved = _move(record, Move.RESCHEDULE, PENDING, schedule=schedule)
    if record.schedule is None:
        raise IllegalMove(record.id, Move.RESCHEDULE, record.status, "it is not a schedule")
    return moved if waits_until is None else _scheduled(moved, waits_until)


def overdue(job: Job, now: datetime) -> Job | None:
    """Return the job after a move that is overdue, such as a missed deadline; None if none is.

    Any reader may write it, under compare-and-swap. The end of a terminal job's retention is not a
    move: see `forgettable`. A batch is never overdue: it ends when its jobs have, and their
    deadlines are not after its own.
    """
    if job.status.terminal or job.delivery is Delivery.BATCH:
        return None
    lapsed = job.status is PROCESSING and now >= (
        job.lease.until if job.lease else attempt_end(job)
    )
    if lapsed and job.cancel_requested_at is not None:
        return stop(job, now, token=job.lease.token if job.lease else None)
    if now >= job.deadline:
        return expire(job, now)
    if not lapsed:
        return None
    if job.lease is None:
        return fail(job, now, token=None, error=TIMED_OUT)
    return lose(job, now)


def forgettable(job: Job, now: datetime) -> bool:
    """Return whether a finished job's retention has ended and it no longer owes a callback."""
    moment = forgettable_from(job)
    return moment is not None and now >= moment


def forgettable_from(job: Job) -> datetime | None:
    """Return when a finished job becomes forgettable if it is not written again; None: never."""
    if not job.status.terminal or job.expires_at is None:
        return None
    return max(job.expires_at, callback_end(job)) if owes_callback(job) else job.expires_at


def owes_callback(job: Job) -> bool:
    """Return whether the job has ended and its callback URL must still be called."""
    return job.callback is not None and job.callback.next_at is not None


def callback_end(job: Job) -> datetime:
    """Return when a finished job stops owing its callback."""
    return (job.completed_at or job.deadline) + CALLBACK_PATIENCE


def settle_failure(
    job: Job, now: datetime, *, token: str | None, error: JobError, jitter: float
) -> Job:
    """Record a failed attempt: stopped after a cancel request, retried if allowed, else failed."""
    if job.status is PROCESSING and job.cancel_requested_at is not None:
        return stop(job, now, token=token)
    if has_attempts_left(job):
        again = retry(job, now, token=token, jitter=jitter)
        if again.run_at < job.deadline:
            return again
    return fail(job, now, token=token, error=error)


def settle_release(job: Job, now: datetime, *, token: str) -> Job:
    """Record an attempt ended by a shutdown: stopped after a cancel request, else given back."""
    if job.status is PROCESSING and job.cancel_requested_at is not None:
        return stop(job, now, token=token)
    return release(job, now, token=token)


def settle_loss(job: Job, now: datetime, *, token: str) -> Job:
    """Record an attempt whose child process died: stopped after a cancel request, else lost.

    Like `lose`, but the worker that holds the lease calls it, without waiting for it to lapse.
    """
    _fence(job, Move.LOSE, token)
    if job.cancel_requested_at is not None:
        return stop(job, now, token=token)
    return _lose(job, now)


def catch_up(
    job: Job,
    last: Progress | None = None,
    *,
    title: str | None = None,
    metadata_json: bytes | None = None,
) -> Job:
    """Add unwritten reports to the move that follows. Not a move itself."""
    changes = _reported(last, title, metadata_json)
    return job.changed(**changes) if changes else job


def note_error(job: Job, error: AttemptError) -> Job:
    """Add the error of an attempt to the move that follows. Not a move itself."""
    try:
        earlier = job.attempt_errors
    except UnreadableJob:
        earlier = []  # unreadable errors must not keep the attempt from ending
    kept = [one for one in earlier if one.attempt != error.attempt]
    newest = [*kept, error][-MAX_ATTEMPT_ERRORS:]
    return job.changed(errors_json=ATTEMPT_ERRORS.dump_json(newest))


def has_attempts_left(job: Job) -> bool:
    """Return whether another attempt follows if the current one fails."""
    return job.failures + 1 < job.retry.max_attempts


def attempt_end(job: Job) -> datetime:
    """Return when the current attempt must end: by its timeout or the job's deadline."""
    if job.started_at is None or job.timeout is None:
        return job.deadline
    return min(job.started_at + job.timeout, job.deadline)


def _reported(
    progress: Progress | None, title: str | None, metadata_json: bytes | None
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if progress is not None:
        changes["progress"], changes["detail"] = progress.percent, progress.detail
    if title is not None:
        changes["new_title"] = title
    if metadata_json is not None:
        changes["new_metadata_json"] = metadata_json
    return changes


def _lose(job: Job, now: datetime) -> Job:
    losses = job.losses + 1
    if losses >= job.max_deliveries:
        return _end(job, Move.LOSE, FAILED, now, error=WORKER_LOST, losses=losses)
    return _wait_again(job, Move.LOSE, now, losses=losses)


def _fence(job: Job, move: Move, token: str | None) -> Lease | None:
    """Return the lease; check the status first, because it gives the more useful error."""
    if job.status not in TRANSITIONS[move]:
        raise IllegalMove(job.id, move, job.status)
    if (job.lease.token if job.lease else None) != token:
        raise LostLease(job.id)
    return job.lease


def _end(job: Job, move: Move, to: JobStatus, now: datetime, **changes: Any) -> Job:
    expires_at = None if job.retention is None else now + job.retention
    callback = None if job.callback_url is None else Callback(next_at=now)
    changes |= {"completed_at": now, "expires_at": expires_at, "callback": callback}
    return _move(job, move, to, lease=None, **changes)


def _wait_again(job: Job, move: Move, run_at: datetime, **changes: Any) -> Job:
    """Return the job to pending; raise `IllegalMove` after a cancel request."""
    if job.status is PROCESSING and job.cancel_requested_at is not None:
        raise IllegalMove(job.id, move, job.status, "it was asked to stop")
    return _move(job, move, PENDING, run_at=run_at, lease=None, progress=0, detail=None, **changes)


def _move(job: Job, move: Move, to: JobStatus, **changes: Any) -> Job:
    if to not in TRANSITIONS[move].get(job.status, ()):
        raise IllegalMove(job.id, move, job.status)
    changes["status"] = to
    changes["revision"] = job.revision + 1
    if move not in INVISIBLE:
        changes["version"] = job.version + 1
    return _scheduled(job.changed(**changes))


def _scheduled(job: Job, waits_until: datetime | None = None) -> Job:
    """Set lane and due_at in place: no other code has a reference to this new job yet."""
    vars(job)["lane"], vars(job)["due_at"] = _schedule(job, waits_until)
    return job


def _schedule(job: Job, waits_until: datetime | None) -> tuple[str, datetime | None]:
    """Return lane and due_at: which loop must look at the job next, and when."""
    match job.status:
        case JobStatus.PENDING:
            return _schedule_waiting(job, waits_until)
        case JobStatus.PROCESSING if job.delivery is Delivery.BATCH:
            # After a cancel request it is due at once, to cancel the jobs of the batch.
            look_at = waits_until or job.cancel_requested_at or job.run_at
            return BATCHES_LANE, min(look_at, job.deadline)
        case JobStatus.PROCESSING:
            lapse = job.lease.until if job.lease else attempt_end(job)
            return MAINTENANCE_LANE, min(lapse, job.deadline)
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            if job.callback is not None and job.callback.next_at is not None:
                return CALLBACKS_LANE, job.callback.next_at
            return MAINTENANCE_LANE, job.expires_at
        case _:
            assert_never(job.status)


def _schedule_waiting(job: Job, waits_until: datetime | None) -> tuple[str, datetime | None]:
    if job.delivery is Delivery.EXTERNAL:
        return MAINTENANCE_LANE, job.deadline
    if job.schedule is not None:
        due_at = _next_look(job.schedule, waits_until, job.due_at)
        return schedule_lane(job.idempotency_key or ""), due_at
    lane = pull_lane(job) if job.delivery is Delivery.PULL else MAINTENANCE_LANE
    return lane, min(waits_until or job.run_at, job.deadline)


def _next_look(
    schedule: ScheduleState, waits_until: datetime | None, due_at: datetime | None
) -> datetime | None:
    """Return when the record of a schedule is due, which was due at `due_at`."""
    if schedule.paused:
        return None
    if waits_until is None and schedule.enqueuing_since is not None:
        # Its job may not be stored: whatever else changes, the tick is finished first.
        return due_at or schedule.enqueuing_since
    return waits_until or schedule.next_at


def may_be_stored_started(job: Job) -> bool:
    """Return whether the process that accepts a new job may store it as already started.

    If that process dies before the handler begins, the job still loses one delivery. A job with a
    single delivery is therefore not stored this way.
    """
    return job.delivery is Delivery.PULL and job.max_deliveries > 1


def pull_lane(job: Job) -> str:
    """Return the lane in which a job waits for our workers: its queue or the suspects' lane."""
    return suspects_lane(job.queue) if is_suspect(job) else job.queue


def is_suspect(job: Job) -> bool:
    """Return whether a job has lost a worker and fails if it loses one more."""
    return job.losses > 0 and job.losses + 1 >= job.max_deliveries


def _longest_pause(policy: Retry, failures: int) -> timedelta:
    try:
        return min(policy.initial_delay * policy.factor ** (failures - 1), policy.max_delay)
    except OverflowError:
        return policy.max_delay
