"""The rules of batches: what they count, and when and how they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncjobs.core import batches, lifecycle
from asyncjobs.core.job import (
    BATCH_TYPE,
    BATCHES_LANE,
    Delivery,
    Job,
    JobError,
    JobStatus,
    Progress,
    parse_job_id,
)
from asyncjobs.core.labels import label_of_batch, tallies_of, tally_changes, total_of
from asyncjobs.core.submission import Terms, submit_again
from asyncjobs.errors import IllegalMove
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import LATER, NOW, begun, sample_submission

ERROR = JobError(code="bad", message="It was bad.")
AFTER_PATIENCE = NOW + batches.PATIENCE


def batch(total: int, **changes: Any) -> Job:
    """Make a batch of so many jobs, none of which is stored."""
    return batches.batch_of(sample_submission(**changes), total)


def tally(**numbers: int) -> Mapping[str, int]:
    """Return the counters of so many jobs of each status."""
    ended = sum(numbers.get(status, 0) for status in JobStatus if status.terminal)
    return {"progress": 100 * ended, "total": sum(numbers.values())} | numbers


def failed_job(number: int) -> Job:
    error = JobError(code="bad", message=f"Number {number} was bad.")
    return lifecycle.fail(begun(sample_job()), NOW, token="t", error=error)


def followed(job: Job, numbers: Mapping[str, int], *failed: Job) -> Job:
    moved = batches.follow(job, numbers, failed, LATER)
    assert moved is not None
    return moved


def test_a_batch_begins_at_once_without_a_lease_in_its_own_lane() -> None:
    job = batch(3, queue="slow", timeout=timedelta(seconds=5), callback_url="https://x.example")
    assert (job.type, job.delivery, job.status) == (BATCH_TYPE, Delivery.BATCH, "processing")
    assert (job.lane, job.due_at, job.lease, job.timeout) == (BATCHES_LANE, NOW, None, None)
    assert (job.callback_url, job.payload) == ("https://x.example", None)
    assert job.counts is not None
    assert (job.counts.total, job.counts.stored) == (3, 0)
    assert job.detail is not None
    assert (job.detail.current, job.detail.total, job.detail.unit) == (0, 3, "jobs")


def test_the_ids_of_jobs_are_valid_differ_and_are_the_same_each_time() -> None:
    one, other = sample_job().id, sample_job().id
    ids = [batches.member_id(name, index) for name in (one, other) for index in range(50)]
    assert len({*ids}) == 100
    assert all(parse_job_id(job_id) == job_id for job_id in ids)
    assert ids == [batches.member_id(name, index) for name in (one, other) for index in range(50)]


def test_a_job_of_a_batch_ends_by_its_deadline_and_outlasts_it() -> None:
    whole = batch(1, deadline=NOW + timedelta(hours=1))
    given = sample_submission(
        deadline=NOW + timedelta(hours=2),
        retention=timedelta(minutes=5),
        tags=("a",),
        given_title="Given",
        callback_url="https://x.example",
        idempotency_key="k",
        fingerprint="f",
    )
    member = batches.member_of(whole, given, 7)
    assert (member.id, member.batch) == (batches.member_id(whole.id, 7), whole.id)
    assert member.deadline == whole.deadline
    assert member.retention == timedelta(hours=1, minutes=5)
    assert (member.tags, member.given_title, member.callback_url) == ((), None, None)
    assert (member.idempotency_key, member.fingerprint) == (None, None)
    forever = batches.member_of(whole, given.changed(retention=None), 7)
    assert forever.retention is None


def test_the_fingerprint_depends_on_the_type_and_on_each_payload() -> None:
    known = [
        batches.fingerprint(kind, payloads)
        for kind in ("a", "b")
        for payloads in ([], ["1"], ["1", "2"], ["2", "1"])
    ]
    assert len({*known}) == len(known)


@pytest.mark.parametrize(
    ("numbers", "asked", "status", "message"),
    [
        ({"completed": 3}, False, "completed", None),
        ({"completed": 3}, True, "completed", None),
        ({"completed": 2, "failed": 1}, False, "failed", "1 of 3 jobs failed."),
        ({"completed": 2, "failed": 1}, True, "cancelled", None),
        ({"cancelled": 1, "failed": 2}, False, "failed", "2 of 3 jobs failed, 1 cancelled."),
        ({"completed": 2, "cancelled": 1}, False, "failed", "1 of 3 jobs was cancelled."),
        ({"completed": 1, "cancelled": 2}, False, "failed", "2 of 3 jobs were cancelled."),
        ({"cancelled": 3}, True, "cancelled", None),
        ({"completed": 2, "pending": 1}, False, "processing", None),
        ({"completed": 2, "processing": 1}, True, "processing", None),
        ({"completed": 2}, False, "processing", None),
        ({}, False, "processing", None),
    ],
)
def test_a_batch_ends_with_its_last_job(
    numbers: dict[str, int], asked: bool, status: str, message: str | None
) -> None:
    job = batch(3)
    if asked:
        job = lifecycle.cancel(job, NOW)
    moved = batches.follow(job, tally(**numbers), (), LATER) or job
    assert moved.status == status
    assert moved.counts is not None
    found = {name: getattr(moved.counts, name) for name in JobStatus}
    assert found == {name: numbers.get(name, 0) for name in JobStatus}
    if status == "failed":
        assert moved.error == JobError(code="batch_failed", message=message or "")
    if status == "completed":
        assert moved.result == {"total": 3, "completed": 3}


def test_a_batch_of_one_job_fails_with_a_sentence_about_one_job() -> None:
    done = followed(batch(1), tally(failed=1), failed_job(1))
    assert done.error is not None
    assert done.error.message == "1 of 1 job failed."


def test_a_batch_without_jobs_is_completed() -> None:
    done = followed(batch(0), {})
    assert (done.status, done.progress, done.result) == (
        "completed",
        100,
        {"total": 0, "completed": 0},
    )


def test_a_batch_whose_jobs_have_not_changed_is_not_written() -> None:
    numbers = {**tally(pending=1, processing=1, completed=1), "progress": 140}
    job = followed(batch(3), numbers)
    assert (job.progress, job.revision) == (46, 3)
    assert batches.follow(job, numbers, (), LATER + timedelta(hours=1)) is None
    again = followed(job, {**numbers, "progress": 155})
    assert (again.progress, again.version) == (51, job.version + 1)


def test_a_batch_that_goes_on_is_due_again_at_the_next_look() -> None:
    look_at = LATER + timedelta(seconds=5)
    moved = batches.follow(batch(2), tally(pending=2), (), LATER, look_at)
    assert moved is not None
    assert (moved.lane, moved.due_at) == (BATCHES_LANE, look_at)


def test_a_batch_that_was_asked_to_stop_is_due_at_once() -> None:
    later = batches.follow(batch(2), tally(pending=2), (), NOW, LATER)
    assert later is not None
    asked = lifecycle.cancel(later, NOW + timedelta(seconds=1))
    assert (asked.status, asked.due_at) == ("processing", asked.cancel_requested_at)


def test_a_batch_names_its_first_failed_jobs_in_the_order_of_their_discovery() -> None:
    jobs = [failed_job(number) for number in range(8)]
    job = batch(10)
    assert not batches.lacks_failures(job, tally(completed=1))
    assert batches.lacks_failures(job, tally(failed=1))
    job = followed(job, tally(failed=1), jobs[3])
    assert not batches.lacks_failures(job, tally(failed=1))
    job = followed(job, tally(failed=8), *jobs)
    assert job.counts is not None
    named = [failure.job_id for failure in job.counts.failures]
    assert named == [jobs[number].id for number in (3, 0, 1, 2, 4)]
    assert job.counts.failures[0].message == "Number 3 was bad."
    assert not batches.lacks_failures(job, tally(failed=8))


def test_a_batch_whose_jobs_were_not_all_stored_fails_after_a_while() -> None:
    job = followed(batch(3), tally(completed=1, failed=1), failed_job(1))
    assert job.counts is not None
    assert job.counts.grown_at == LATER
    early = AFTER_PATIENCE + timedelta(seconds=59)
    assert batches.follow(job, tally(completed=1, failed=1), (), early) is None
    late = batches.follow(job, tally(completed=1, failed=1), (), LATER + batches.PATIENCE)
    assert late is not None
    assert late.error == batches.INCOMPLETE
    empty = batches.follow(batch(3), {}, (), AFTER_PATIENCE)
    assert empty is not None
    assert empty.error == batches.INCOMPLETE


def test_a_batch_with_missing_jobs_waits_for_those_that_go_on() -> None:
    job = followed(batch(3), tally(completed=1, processing=1))
    assert batches.follow(job, tally(completed=1, processing=1), (), job.deadline) is None


def test_a_cancelled_batch_with_missing_jobs_is_cancelled() -> None:
    asked = lifecycle.cancel(followed(batch(3), tally(pending=1)), LATER)
    done = batches.follow(asked, tally(cancelled=1), (), LATER + batches.PATIENCE)
    assert done is not None
    assert done.status == "cancelled"


def test_jobs_that_were_deleted_by_hand_still_count() -> None:
    job = followed(batch(3), tally(completed=2))
    assert batches.follow(job, {}, (), LATER) is None
    late = batches.follow(job, {}, (), LATER + batches.PATIENCE)
    assert late is not None
    assert late.counts is not None
    assert (late.status, late.counts.completed) == ("failed", 2)


def test_a_batch_whose_counters_are_lost_ends_with_the_jobs_that_are_left() -> None:
    job = followed(batch(6), tally(completed=3, processing=3))
    job = followed(job, tally(failed=1, processing=2))
    assert job.counts is not None
    assert (job.counts.completed, job.counts.failed, job.counts.processing) == (3, 1, 2)
    done = followed(job, tally(failed=3))
    assert done.counts is not None
    assert (done.status, done.counts.completed, done.counts.failed) == ("failed", 3, 3)
    lost = batches.follow(
        followed(batch(6), tally(completed=3, processing=3)),
        tally(completed=3),
        (),
        LATER + batches.PATIENCE,
    )
    assert lost is not None
    assert lost.error == batches.INCOMPLETE


def test_a_batch_with_more_jobs_than_it_was_given_ends() -> None:
    assert followed(batch(2), tally(completed=2, failed=1), failed_job(1)).status == "failed"
    assert followed(batch(2), tally(completed=3)).status == "completed"


def test_a_batch_is_never_overdue_since_it_ends_with_its_jobs() -> None:
    job = batch(3)
    assert lifecycle.overdue(job, job.deadline + timedelta(days=1)) is None
    assert lifecycle.overdue(lifecycle.cancel(job, NOW), job.deadline + timedelta(days=1)) is None


def _end(job: Job) -> Job:
    return followed(job, tally(completed=2))


def _ask_to_stop(job: Job) -> Job:
    return lifecycle.cancel(job, NOW)


def _pass_the_deadline(job: Job) -> Job:
    return job.changed(deadline=NOW)


def test_an_open_batch_grows() -> None:
    job = followed(batch(2), tally(completed=1, processing=1))
    grown = batches.grow(job, LATER + timedelta(seconds=1), 2)
    assert grown.counts is not None
    assert (grown.counts.total, grown.counts.stored, grown.progress) == (4, 2, 25)
    assert grown.counts.grown_at == LATER + timedelta(seconds=1)
    assert batches.follow(grown, tally(completed=2), (), LATER) is not None
    assert followed(grown, tally(completed=2)).status == "processing"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_end, "it has ended"),
        (_ask_to_stop, "it was asked to stop"),
        (_pass_the_deadline, "its deadline has passed"),
    ],
)
def test_a_batch_that_is_not_open_refuses_jobs(change: Callable[[Job], Job], reason: str) -> None:
    with pytest.raises(IllegalMove, match=reason):
        batches.grow(change(batch(2)), LATER, 1)


def test_other_jobs_are_no_batches() -> None:
    with pytest.raises(IllegalMove, match="it is not one"):
        batches.grow(sample_job(), NOW, 1)
    with pytest.raises(IllegalMove, match="it is not a batch"):
        lifecycle.count(begun(sample_job()), batches.counts_of(batch(1)), Progress())


class Batch(RuleBasedStateMachine):
    """One batch, its jobs, the counters of the store, and a loop that looks at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.batch = batch(0 + 3)
        self.stored: list[Job] = []
        self.lost: set[int] = set()
        self.tallies: list[Mapping[str, Mapping[str, int]]] = []

    @precondition(lambda self: not self.batch.status.terminal)
    @rule()
    def store_a_job(self) -> None:
        index = len(self.stored)
        if index < batches.counts_of(self.batch).total:
            submission = batches.member_of(self.batch, sample_submission(), index)
            job = lifecycle.submit(submission)
            self.stored.append(job)
            self.tallies.append(tallies_of(job))

    @rule(number=st.integers(1, 3))
    def add(self, number: int) -> None:
        try:
            self.batch = batches.grow(self.batch, self.now, number)
        except IllegalMove:
            assert self.batch.status.terminal or self.batch.cancel_requested_at is not None

    @rule(index=st.integers(0, 9), move=st.sampled_from(["start", "report", "done", "bad", "no"]))
    def move_a_job(self, index: int, move: str) -> None:
        if index >= len(self.stored):
            return
        before = self.stored[index]
        moves: dict[str, Callable[[Job], Job]] = {
            "start": begun,
            "report": lambda job: lifecycle.report(job, Progress(percent=50), token="t"),
            "done": lambda job: lifecycle.complete(job, NOW, token="t", result=b"1"),
            "bad": lambda job: lifecycle.fail(job, NOW, token="t", error=ERROR),
            "no": lambda job: lifecycle.cancel(job, NOW),
        }
        try:
            after = moves[move](before)
        except IllegalMove:
            return
        self.stored[index] = after
        self.tallies.append(tally_changes(before, after))

    @rule()
    def cancel(self) -> None:
        try:
            self.batch = lifecycle.cancel(self.batch, self.now)
        except IllegalMove:
            return

    @rule(seconds=st.integers(1, 400))
    def look(self, seconds: int) -> None:
        if self.batch.status.terminal:
            return
        self.now += timedelta(seconds=seconds)
        label = label_of_batch(self.batch.id)
        numbers = total_of(self.tallies).get(label, {})
        failed = [job for job in self.stored if job.status == "failed"][:5]
        before = batches.counts_of(self.batch)
        moved = batches.follow(self.batch, numbers, failed, self.now)
        self.batch = moved or self.batch
        counts = batches.counts_of(self.batch)
        for status in JobStatus:
            assert getattr(counts, status) == sum(job.status == status for job in self.stored)
        assert counts.ended >= before.ended
        assert len(counts.failures) == min(counts.failed, 5)
        if counts.ended == counts.total:
            assert self.batch.status.terminal

    @invariant()
    def an_ended_batch_has_no_job_that_goes_on(self) -> None:
        if self.batch.status.terminal:
            assert all(job.status.terminal for job in self.stored)
            complete = len(self.stored) == batches.counts_of(self.batch).total
            done = all(job.status == "completed" for job in self.stored)
            assert (self.batch.status == "completed") == (complete and done)


TestBatch = Batch.TestCase
TestBatch.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_retried_batch_names_the_old_one() -> None:
    old = followed(batch(1, given_title="Old", tags=("a",)), tally(failed=1), failed_job(1))
    new = batches.batch_of(submit_again(old, Terms(LATER, Delivery.PULL)), 1)
    assert (new.retry_of, new.title, new.tags, new.delivery) == (
        old.id,
        "Old",
        ("a",),
        Delivery.BATCH,
    )
