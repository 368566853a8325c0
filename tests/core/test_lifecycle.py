"""Every status, every move, every guard."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from pydantic import ValidationError

from asyncjobs.core import lifecycle
from asyncjobs.core.job import (
    CALLBACKS_LANE,
    MAINTENANCE_LANE,
    Callback,
    Delivery,
    Detail,
    Job,
    JobError,
    JobFile,
    JobStatus,
    Lease,
    Policy,
    Progress,
    Retry,
    ScheduleState,
    schedule_lane,
    suspects_lane,
)
from asyncjobs.core.lifecycle import INVISIBLE, TRANSITIONS, Move
from asyncjobs.errors import IllegalMove, LostLease, UnreadableJob
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, sample_error, sample_submission

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
LEASE = Lease(worker="host:1", token="t", until=NOW + 30 * SECOND)
ERROR = JobError(code="bad", message="It was bad.")
PATIENT = Retry(max_attempts=3, initial_delay=10 * SECOND, factor=2, max_delay=15 * SECOND)
FILE = JobFile(name="export.csv", key="job_1/1-a", attempt=1)
SAVED = FILE.changed(size=3, digest="0f")
SCHEDULE = ScheduleState(definition="{}", next_at=NOW + MINUTE)
AFTER_ALL = NOW + timedelta(days=2)


def processing(**changes: object) -> Job:
    return lifecycle.start(sample_job(retry=PATIENT, **changes), NOW, LEASE)


def asked_to_stop() -> Job:
    return lifecycle.cancel(processing(), NOW)


# Every move, with a job that meets every condition except the status.
MOVES: dict[Move, Callable[[Job], Job]] = {
    Move.START: lambda job: lifecycle.start(job, NOW, LEASE),
    Move.EXTEND: lambda job: lifecycle.extend(job, NOW, token="t", until=NOW + MINUTE),
    Move.REPORT: lambda job: lifecycle.report(job, Progress(percent=5), token="t"),
    Move.ANNOUNCE_FILE: lambda job: lifecycle.announce_file(job, FILE, token="t", limit=9),
    Move.RECORD_FILE: lambda job: lifecycle.record_file(job, NOW, SAVED, token="t"),
    Move.COMPLETE: lambda job: lifecycle.complete(job, NOW, token="t", result=b"1"),
    Move.FAIL: lambda job: lifecycle.fail(job, NOW, token="t", error=ERROR),
    Move.RETRY: lambda job: lifecycle.retry(job, NOW, token="t", jitter=0.5),
    Move.RELEASE: lambda job: lifecycle.release(job, NOW, token="t"),
    Move.REQUEUE: lifecycle.requeue,
    Move.CANCEL: lambda job: lifecycle.cancel(job, NOW),
    Move.STOP: lambda job: lifecycle.stop(job, NOW, token="t"),
    Move.EXPIRE: lambda job: lifecycle.expire(job, AFTER_ALL),
    Move.LOSE: lambda job: lifecycle.lose(job, AFTER_ALL),
    Move.CALL_BACK: lambda job: lifecycle.call_back(job, NOW),
    Move.RESCHEDULE: lambda job: lifecycle.reschedule(job, SCHEDULE.changed(last_at=NOW)),
}

URL = "https://hooks.example.com/ended"


def job_in(status: JobStatus, move: Move) -> Job:
    """Make a job of that status that meets every other condition of the move."""
    running = asked_to_stop() if move is Move.STOP else processing(callback_url=URL)
    if move is Move.RECORD_FILE:
        running = running.changed(files=(FILE,))
    match status:
        case JobStatus.PENDING:
            schedule = SCHEDULE if move is Move.RESCHEDULE else None
            return sample_job(retry=PATIENT).changed(schedule=schedule)
        case JobStatus.PROCESSING:
            return running
        case JobStatus.COMPLETED:
            return lifecycle.complete(running, NOW, token="t", result=b"1")
        case JobStatus.FAILED:
            return lifecycle.fail(running, NOW, token="t", error=ERROR)
        case JobStatus.CANCELLED:
            return lifecycle.cancel(sample_job(callback_url=URL), NOW)


@pytest.mark.parametrize("move", Move)
@pytest.mark.parametrize("status", JobStatus)
def test_a_move_is_allowed_only_from_the_statuses_in_the_table(
    status: JobStatus, move: Move
) -> None:
    job = job_in(status, move)
    before = job.model_copy()
    allowed = TRANSITIONS[move].get(status, frozenset())
    if not allowed:
        with pytest.raises(IllegalMove) as refused:
            MOVES[move](job)
        assert (refused.value.move, refused.value.status) == (move, status)
    else:
        moved = MOVES[move](job)
        assert moved.status in allowed
        assert moved.revision == job.revision + 1
        assert moved.version == job.version + (move not in INVISIBLE)
    assert job == before


def test_terminal_statuses_allow_no_visible_move() -> None:
    for status in JobStatus:
        moves = {move for move in Move if status in TRANSITIONS[move]}
        assert (moves == {Move.CALL_BACK}) == status.terminal
    assert Move.CALL_BACK in INVISIBLE
    for end, after in TRANSITIONS[Move.CALL_BACK].items():
        assert after == {end}


FENCED = (
    Move.EXTEND,
    Move.REPORT,
    Move.ANNOUNCE_FILE,
    Move.RECORD_FILE,
    Move.COMPLETE,
    Move.FAIL,
    Move.RETRY,
    Move.RELEASE,
    Move.STOP,
)


@pytest.mark.parametrize("move", FENCED)
def test_only_the_holder_of_the_lease_may_write(move: Move) -> None:
    job = job_in(JobStatus.PROCESSING, move)
    assert job.lease is not None
    taken_over = job.model_copy(update={"lease": job.lease.model_copy(update={"token": "another"})})
    with pytest.raises(LostLease):
        MOVES[move](taken_over)


# submit


def test_a_submitted_job_is_due_at_once_in_the_lane_of_its_queue() -> None:
    job = sample_job(queue="high")
    assert (job.status, job.lane, job.due_at, job.run_at) == (JobStatus.PENDING, "high", NOW, NOW)
    assert (job.revision, job.version) == (1, 1)


def test_a_held_job_is_due_for_other_processes_after_a_delay() -> None:
    job = lifecycle.submit(sample_submission(), hold=30 * SECOND)
    assert (job.due_at, job.run_at) == (NOW + 30 * SECOND, NOW)


def test_a_delayed_job_is_due_at_its_run_at_and_is_not_held() -> None:
    job = lifecycle.submit(sample_submission(), run_at=NOW + MINUTE, hold=30 * SECOND)
    assert (job.due_at, job.run_at) == (NOW + MINUTE, NOW + MINUTE)


def test_a_run_at_in_the_past_means_now() -> None:
    job = lifecycle.submit(sample_submission(), run_at=NOW - MINUTE)
    assert (job.due_at, job.run_at) == (NOW, NOW)


def test_no_job_is_due_later_than_its_deadline() -> None:
    job = lifecycle.submit(sample_submission(deadline=NOW + SECOND), hold=MINUTE)
    assert job.due_at == NOW + SECOND
    assert lifecycle.start(job, NOW, LEASE).due_at == NOW + SECOND


@pytest.mark.parametrize(
    ("delivery", "lane", "due_at"),
    [
        (Delivery.PULL, "default", NOW),
        (Delivery.PUSH, MAINTENANCE_LANE, NOW),
        (Delivery.EXTERNAL, MAINTENANCE_LANE, NOW + timedelta(hours=24)),
    ],
)
def test_the_lane_and_due_time_of_a_waiting_job_depend_on_its_delivery(
    delivery: Delivery, lane: str, due_at: datetime
) -> None:
    job = sample_job(delivery=delivery)
    assert (job.lane, job.due_at) == (lane, due_at)


# start, extend, report


def test_an_attempt_begins_with_a_lease_and_no_progress() -> None:
    job = lifecycle.start(sample_job(), NOW, LEASE)
    assert (job.attempt, job.lease, job.started_at, job.progress) == (1, LEASE, NOW, 0)
    assert (job.lane, job.due_at) == (MAINTENANCE_LANE, LEASE.until)


def test_no_attempt_begins_after_the_deadline() -> None:
    job = sample_job(deadline=NOW + MINUTE)
    for late in (job.deadline, job.deadline + SECOND):
        with pytest.raises(IllegalMove, match="deadline"):
            lifecycle.start(job, late, LEASE)
    last_moment = job.deadline - timedelta(microseconds=1)
    assert lifecycle.start(job, last_moment, LEASE).status is JobStatus.PROCESSING


def test_no_attempt_begins_more_than_a_second_before_run_at() -> None:
    job = lifecycle.submit(sample_submission(), run_at=NOW + MINUTE)
    early = NOW + MINUTE - SECOND
    with pytest.raises(IllegalMove, match="start time has not come"):
        lifecycle.start(job, early - timedelta(microseconds=1), LEASE)
    assert lifecycle.start(job, early, LEASE).started_at == early


def test_extending_renews_the_lease_without_a_new_version() -> None:
    job = processing()
    renewed = lifecycle.extend(job, NOW + 10 * SECOND, token="t", until=NOW + 40 * SECOND)
    assert renewed.lease is not None
    assert renewed.lease.until == renewed.due_at == NOW + 40 * SECOND
    assert renewed.version == job.version


def test_a_lease_ends_soon_after_the_attempt_should_have() -> None:
    job = processing(timeout=20 * SECOND)
    late = NOW + 25 * SECOND
    renewed = lifecycle.extend(job, late, token="t", until=late + 30 * SECOND)
    assert renewed.lease is not None
    assert renewed.lease.until == NOW + 50 * SECOND
    later = NOW + 45 * SECOND
    again = lifecycle.extend(renewed, later, token="t", until=later + 30 * SECOND)
    assert again.lease == renewed.lease


def test_a_lease_never_shrinks() -> None:
    renewed = lifecycle.extend(processing(), NOW, token="t", until=NOW + SECOND)
    assert renewed.lease == LEASE


def test_external_jobs_have_no_lease_to_extend() -> None:
    job = lifecycle.start(sample_job(delivery=Delivery.EXTERNAL), NOW, None)
    with pytest.raises(LostLease):
        lifecycle.extend(job, NOW, token="t", until=NOW + MINUTE)
    with pytest.raises(IllegalMove, match="no lease"):
        lifecycle.extend(job, NOW, token=None, until=NOW + MINUTE)  # type: ignore[arg-type]


def test_a_progress_report_is_visible() -> None:
    progress = Progress(percent=40, detail=Detail(message="packing"))
    job = lifecycle.report(processing(), progress, token="t")
    assert (job.progress, job.detail) == (40, progress.detail)


def test_a_new_title_and_new_metadata_are_visible_and_stay_with_a_retry() -> None:
    before = processing().changed(given_title="Given", progress=3)
    job = lifecycle.report(before, token="t", title="New", metadata_json=b'{"a":1}')
    assert (job.title, job.metadata, job.progress) == ("New", {"a": 1}, 3)
    assert job.version == before.version + 1
    again = lifecycle.retry(job, NOW, token="t", jitter=0)
    assert (again.title, again.metadata, again.given_title) == ("New", {"a": 1}, "Given")


def test_only_the_attempt_that_has_the_lease_sets_a_title() -> None:
    with pytest.raises(LostLease):
        lifecycle.report(processing(), token="another", title="New")


def test_an_unwritten_report_is_merged_into_the_next_move() -> None:
    job = lifecycle.catch_up(processing(), Progress(percent=40))
    failed = lifecycle.fail(job, NOW, token="t", error=ERROR)
    assert (failed.progress, failed.version) == (40, 3)


# ends


def test_a_completed_job_has_its_result_and_full_progress() -> None:
    job = lifecycle.complete(processing(), NOW + SECOND, token="t", result=b'{"n":1}')
    assert (job.result, job.progress, job.completed_at) == ({"n": 1}, 100, NOW + SECOND)
    assert (job.lease, job.lane) == (None, MAINTENANCE_LANE)
    assert job.due_at == job.expires_at == NOW + SECOND + timedelta(hours=24)


def test_a_job_without_retention_is_never_due_again() -> None:
    job = lifecycle.complete(processing(retention=None), NOW, token="t", result=b"1")
    assert (job.expires_at, job.due_at) == (None, None)


def test_cancel_ends_a_waiting_job_and_requests_a_running_one_to_stop() -> None:
    waiting = lifecycle.cancel(sample_job(), NOW)
    assert (waiting.status, waiting.completed_at) == (JobStatus.CANCELLED, NOW)
    running = lifecycle.cancel(processing(), NOW)
    assert (running.status, running.cancel_requested_at) == (JobStatus.PROCESSING, NOW)


def test_a_stop_request_is_recorded_once() -> None:
    with pytest.raises(IllegalMove, match="already asked to stop"):
        lifecycle.cancel(asked_to_stop(), NOW)


def test_a_job_stops_only_after_a_stop_request() -> None:
    with pytest.raises(IllegalMove, match="no cancellation was requested"):
        lifecycle.stop(processing(), NOW, token="t")


def test_a_job_with_a_stop_request_does_not_return_to_pending() -> None:
    for move in (Move.RELEASE, Move.RETRY, Move.LOSE):
        with pytest.raises(IllegalMove, match="asked to stop"):
            MOVES[move](asked_to_stop().model_copy(update={"retry": PATIENT}))


def test_a_job_does_not_expire_before_its_deadline() -> None:
    with pytest.raises(IllegalMove, match="deadline has not passed"):
        lifecycle.expire(sample_job(), NOW)


def test_the_deadline_fails_a_job_under_any_lease() -> None:
    job = lifecycle.expire(processing(), AFTER_ALL)
    assert (job.status, job.error) == (JobStatus.FAILED, lifecycle.DEADLINE_EXCEEDED)


# waiting again


@pytest.mark.parametrize(("failures", "longest"), [(0, 10), (1, 15)])
def test_the_pause_before_a_retry_grows_up_to_its_bound(failures: int, longest: int) -> None:
    job = processing().model_copy(update={"failures": failures})
    again = lifecycle.retry(job, NOW, token="t", jitter=0.5)
    assert again.run_at == again.due_at == NOW + longest * SECOND / 2
    assert (again.failures, again.lease, again.lane) == (failures + 1, None, "default")


def test_a_retry_pause_that_overflows_is_the_longest_pause() -> None:
    policy = Retry(max_attempts=10_000, factor=10, max_delay=MINUTE)
    job = processing().model_copy(update={"retry": policy, "failures": 5000})
    assert lifecycle.retry(job, NOW, token="t", jitter=1).run_at == NOW + MINUTE


def test_the_last_attempt_is_not_retried() -> None:
    job = processing().model_copy(update={"failures": 2})
    with pytest.raises(IllegalMove, match="no attempts"):
        lifecycle.retry(job, NOW, token="t", jitter=0)


def test_a_released_job_costs_no_attempt_and_is_due_at_once() -> None:
    job = lifecycle.release(processing(), NOW + SECOND, token="t")
    assert (job.failures, job.losses, job.due_at) == (0, 0, NOW + SECOND)


def test_a_requeued_job_keeps_its_place_without_a_new_version() -> None:
    taken = sample_job().model_copy(update={"due_at": NOW + MINUTE})
    put_back = lifecycle.requeue(taken)
    assert (put_back.due_at, put_back.version) == (NOW, taken.version)


# schedules


def record(**state: object) -> Job:
    submission = sample_submission(delivery=Delivery.SCHEDULE, idempotency_key="nightly")
    return lifecycle.submit_schedule(submission, SCHEDULE.changed(**state))


def test_the_record_of_a_schedule_is_due_at_its_next_tick_in_its_own_lane() -> None:
    job = record()
    assert (job.status, job.lane) == (JobStatus.PENDING, schedule_lane("nightly"))
    assert job.due_at == NOW + MINUTE
    assert record(paused=True).due_at is None


def test_a_record_is_rescheduled_without_a_new_version() -> None:
    later = SCHEDULE.changed(last_at=NOW + MINUTE, next_at=NOW + 2 * MINUTE)
    moved = lifecycle.reschedule(record(), later)
    assert (moved.schedule, moved.due_at, moved.version) == (later, NOW + 2 * MINUTE, 1)
    held = lifecycle.reschedule(record(), later, waits_until=NOW + SECOND)
    assert held.due_at == NOW + SECOND
    paused = lifecycle.reschedule(record(), later.changed(paused=True), waits_until=NOW)
    assert paused.due_at is None


def test_a_record_is_neither_started_nor_cancelled() -> None:
    for move in (Move.START, Move.CANCEL):
        with pytest.raises(IllegalMove, match="record of a schedule"):
            MOVES[move](record())


def test_only_the_record_of_a_schedule_is_rescheduled() -> None:
    with pytest.raises(IllegalMove, match="not a schedule"):
        lifecycle.reschedule(sample_job(), SCHEDULE)


def test_a_callback_under_way_is_held_without_a_new_version() -> None:
    ended = lifecycle.complete(processing(callback_url=URL), NOW, token="t", result=b"1")
    held = lifecycle.hold_callback(ended, NOW + MINUTE)
    assert (held.lane, held.due_at, held.version) == (CALLBACKS_LANE, NOW + MINUTE, ended.version)
    assert (held.callback, lifecycle.owes_callback(held)) == (ended.callback, True)
    told = lifecycle.call_back(held, NOW)
    with pytest.raises(IllegalMove, match="no callback is due"):
        lifecycle.hold_callback(told, NOW + MINUTE)
    with pytest.raises(IllegalMove):
        lifecycle.hold_callback(processing(), NOW)


def test_a_job_without_handler_waits_in_its_own_lane_until_requeued() -> None:
    waiting = sample_job(delivery=Delivery.PUSH)
    left = lifecycle.leave_unhandled(waiting, NOW + MINUTE)
    assert (left.lane, left.due_at) == (lifecycle.UNHANDLED_LANE, NOW + MINUTE)
    assert (left.version, left.run_at) == (waiting.version, waiting.run_at)
    again = lifecycle.requeue(left, NOW + 2 * MINUTE)
    assert (again.lane, again.due_at) == (MAINTENANCE_LANE, NOW + 2 * MINUTE)
    assert lifecycle.leave_unhandled(waiting, NOW + timedelta(days=9)).due_at == waiting.deadline
    with pytest.raises(IllegalMove):
        lifecycle.leave_unhandled(processing(), NOW)


def test_each_lost_worker_costs_a_delivery_and_the_last_one_fails_the_job() -> None:
    job = processing(max_deliveries=2)
    again = lifecycle.lose(job, LEASE.until)
    assert (again.status, again.losses, again.failures) == (JobStatus.PENDING, 1, 0)
    later = Lease(worker="host:2", token="u", until=NOW + MINUTE)
    lost = lifecycle.lose(lifecycle.start(again, NOW + 30 * SECOND, later), NOW + MINUTE)
    assert (lost.status, lost.error, lost.losses) == (
        JobStatus.FAILED,
        lifecycle.WORKER_LOST,
        2,
    )


def test_a_valid_lease_is_not_lost() -> None:
    with pytest.raises(IllegalMove, match="lapsed"):
        lifecycle.lose(processing(), LEASE.until - timedelta(microseconds=1))
    with pytest.raises(IllegalMove, match="lapsed"):
        lifecycle.lose(lifecycle.start(sample_job(), NOW, None), AFTER_ALL)


@pytest.mark.parametrize(
    ("losses", "max_deliveries", "suspect"),
    [(0, 1, False), (0, 2, False), (1, 2, True), (1, 3, False), (2, 3, True), (2, 4, False)],
)
def test_a_job_with_one_delivery_left_waits_in_the_suspects_lane(
    losses: int, max_deliveries: int, *, suspect: bool
) -> None:
    job = sample_job(queue="high", max_deliveries=max_deliveries).changed(losses=losses)
    assert lifecycle.is_suspect(job) is suspect
    assert lifecycle.requeue(job).lane == (suspects_lane("high") if suspect else "high")


# overdue jobs


def test_a_failed_attempt_is_retried_up_to_the_limit() -> None:
    first = processing()
    again = lifecycle.settle_failure(first, NOW, token="t", error=ERROR, jitter=0.1)
    assert again.status is JobStatus.PENDING
    last = first.model_copy(update={"failures": 2})
    failed = lifecycle.settle_failure(last, NOW, token="t", error=ERROR, jitter=0.1)
    assert (failed.status, failed.error) == (JobStatus.FAILED, ERROR)


def test_a_retry_that_would_begin_after_the_deadline_is_a_failure() -> None:
    job = processing(deadline=NOW + 5 * SECOND)
    failed = lifecycle.settle_failure(job, NOW, token="t", error=ERROR, jitter=0.9)
    assert (failed.status, failed.error) == (JobStatus.FAILED, ERROR)


def test_a_job_with_a_stop_request_is_cancelled_on_failure_or_release() -> None:
    job = asked_to_stop()
    failed = lifecycle.settle_failure(job, NOW, token="t", error=ERROR, jitter=0)
    assert failed.status is JobStatus.CANCELLED
    assert lifecycle.settle_release(job, NOW, token="t").status is JobStatus.CANCELLED
    assert lifecycle.settle_release(processing(), NOW, token="t").status is JobStatus.PENDING
    assert lifecycle.settle_loss(job, NOW, token="t").status is JobStatus.CANCELLED
    assert lifecycle.settle_loss(processing(), NOW, token="t").status is JobStatus.PENDING


def test_no_job_is_overdue_before_its_time() -> None:
    assert lifecycle.overdue(sample_job(), NOW) is None
    assert lifecycle.overdue(processing(), LEASE.until - SECOND) is None
    assert lifecycle.overdue(job_in(JobStatus.COMPLETED, Move.START), AFTER_ALL) is None


def test_each_kind_of_overdue_job_makes_its_move() -> None:
    external = lifecycle.start(sample_job(delivery=Delivery.EXTERNAL), NOW, None)
    too_long = NOW + timedelta(minutes=15)
    cases = [
        (sample_job(), AFTER_ALL, JobStatus.FAILED, lifecycle.DEADLINE_EXCEEDED),
        (processing(), AFTER_ALL, JobStatus.FAILED, lifecycle.DEADLINE_EXCEEDED),
        (processing(), LEASE.until, JobStatus.PENDING, None),
        (asked_to_stop(), LEASE.until, JobStatus.CANCELLED, None),
        (external, too_long, JobStatus.FAILED, lifecycle.TIMED_OUT),
        (lifecycle.cancel(external, NOW), too_long, JobStatus.CANCELLED, None),
    ]
    for job, now, status, error in cases:
        moved = lifecycle.overdue(job, now)
        assert moved is not None
        assert (moved.status, moved.error) == (status, error)


def test_only_terminal_jobs_are_forgotten_after_their_retention() -> None:
    done = lifecycle.complete(processing(), NOW, token="t", result=b"1")
    assert done.expires_at is not None
    assert lifecycle.forgettable(done, done.expires_at)
    assert not lifecycle.forgettable(done, done.expires_at - SECOND)
    assert not lifecycle.forgettable(sample_job(), AFTER_ALL)
    kept = lifecycle.complete(processing(retention=None), NOW, token="t", result=b"1")
    assert not lifecycle.forgettable(kept, AFTER_ALL)


def test_an_attempt_ends_by_its_timeout_or_by_the_deadline() -> None:
    assert lifecycle.attempt_end(processing(timeout=MINUTE)) == NOW + MINUTE
    assert lifecycle.attempt_end(processing(timeout=None)) == NOW + timedelta(hours=24)
    assert lifecycle.attempt_end(processing(deadline=NOW + SECOND)) == NOW + SECOND
    assert lifecycle.attempt_end(sample_job()) == NOW + timedelta(hours=24)


# callbacks


def ended(**submission: object) -> Job:
    job = processing(callback_url=URL, **submission)
    return lifecycle.complete(job, NOW, token="t", result=b"1")


def test_a_job_with_a_callback_url_is_due_in_the_callbacks_lane() -> None:
    job = ended()
    assert (job.lane, job.due_at, lifecycle.owes_callback(job)) == (CALLBACKS_LANE, NOW, True)
    assert processing(callback_url=URL).callback is None


def test_a_job_whose_callback_was_delivered_waits_for_its_retention() -> None:
    told = lifecycle.call_back(ended(), NOW + SECOND)
    assert (told.lane, told.due_at) == (MAINTENANCE_LANE, NOW + timedelta(hours=24))
    assert told.callback is not None
    assert (told.callback.calls, told.callback.told_at) == (1, NOW + SECOND)
    with pytest.raises(IllegalMove):
        lifecycle.call_back(told, NOW + SECOND)


def test_a_failed_callback_is_retried_or_given_up() -> None:
    again = lifecycle.call_back(ended(), NOW, error="away", again_at=NOW + MINUTE)
    assert (again.lane, again.due_at) == (CALLBACKS_LANE, NOW + MINUTE)
    over = lifecycle.call_back(again, NOW + MINUTE, error="away still")
    assert (over.lane, over.callback) == (MAINTENANCE_LANE, Callback(calls=2, error="away still"))


def test_a_callback_is_given_up_if_the_next_call_would_be_too_late() -> None:
    late = lifecycle.callback_end(ended())
    given_up = lifecycle.call_back(ended(), NOW, error="away", again_at=late)
    assert not lifecycle.owes_callback(given_up)
    assert lifecycle.owes_callback(
        lifecycle.call_back(ended(), NOW, error="away", again_at=late - SECOND)
    )


def test_a_pending_callback_extends_the_retention_up_to_a_limit() -> None:
    job, told = ended(), lifecycle.call_back(ended(), NOW)
    day = NOW + timedelta(hours=24)
    assert lifecycle.forgettable(told, day)
    assert not lifecycle.forgettable(job, day)
    assert not lifecycle.forgettable(job, lifecycle.callback_end(job) - SECOND)
    assert lifecycle.forgettable(job, lifecycle.callback_end(job))


def test_a_job_without_retention_is_kept_with_a_pending_callback() -> None:
    job = ended(retention=None)
    assert lifecycle.owes_callback(job)
    for kept in (job, lifecycle.call_back(job, NOW)):
        assert lifecycle.forgettable_from(kept) is None
        assert not lifecycle.forgettable(kept, lifecycle.callback_end(job) + SECOND)


def test_a_queue_cannot_have_the_name_of_the_callbacks_lane() -> None:
    with pytest.raises(ValidationError):
        Policy(queue=CALLBACKS_LANE)


# errors of attempts


def raised(job: Job) -> list[int]:
    return [error.attempt for error in job.attempt_errors]


def test_the_error_of_an_attempt_is_stored_with_the_next_move() -> None:
    job = processing()
    noted = lifecycle.note_error(job, sample_error(1))
    assert noted.attempt_errors == [sample_error(1)]
    assert noted == job.changed(errors_json=noted.errors_json)
    failed = lifecycle.fail(noted, NOW, token="t", error=ERROR)
    assert (failed.errors_json, failed.revision) == (noted.errors_json, job.revision + 1)


def test_only_the_newest_errors_are_kept_one_per_attempt() -> None:
    job = processing()
    for attempt in [*range(1, 30), 29]:
        job = lifecycle.note_error(job, sample_error(attempt))
    assert raised(job) == list(range(20, 30))


def test_unreadable_stored_errors_do_not_prevent_the_next_move() -> None:
    job = processing().changed(errors_json=b"[{")
    with pytest.raises(UnreadableJob):
        raised(job)
    assert raised(lifecycle.note_error(job, sample_error(2))) == [2]
