"""Invariants of any sequence of moves, legal or not, by any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncjobs.core import lifecycle
from asyncjobs.core.job import (
    CALLBACKS_LANE,
    MAINTENANCE_LANE,
    Job,
    JobError,
    JobStatus,
    Lease,
    Progress,
    Retry,
)
from asyncjobs.errors import IllegalMove, LostLease
from asyncjobs.testing import ManualClock, sample_job

TOKENS = st.sampled_from(["a", "b", "c"])
ERROR = JobError(code="bad", message="It was bad.")
# A call to the callback URL changes these, beside its own record.
CALLED = ("revision", "lane", "due_at")


class Life(RuleBasedStateMachine):
    """One job, three workers, and a clock that only moves forward."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.job = sample_job()
        self.ended: Job | None = None

    @initialize(
        attempts=st.integers(1, 4),
        deliveries=st.integers(1, 3),
        timeout=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(minutes=9)),
        url=st.sampled_from([None, "https://hooks.example.com/ended"]),
    )
    def submit(
        self, attempts: int, deliveries: int, timeout: timedelta | None, url: str | None
    ) -> None:
        now = self.clock.now()
        self.job = sample_job(
            created_at=now,
            deadline=now + timedelta(minutes=10),
            retry=Retry(max_attempts=attempts),
            max_deliveries=deliveries,
            timeout=timeout,
            callback_url=url,
        )

    def make(self, move: Callable[[Job, datetime], Job | None]) -> None:
        before = self.job
        try:
            after = move(before, self.clock.now())
        except (IllegalMove, LostLease):
            return
        if after is None:
            return
        if before.status.terminal:
            assert after.version == before.version
        assert after.revision == before.revision + 1
        assert after.version - before.version in {0, 1}
        assert after.attempt >= before.attempt
        self.job = after
        if after.status.terminal and self.ended is None:
            self.ended = after

    @rule(by=st.timedeltas(timedelta(0), timedelta(minutes=2)))
    def time_passes(self, by: timedelta) -> None:
        self.clock.advance(by)

    @rule(token=TOKENS, seconds=st.integers(1, 60))
    def start(self, token: str, seconds: int) -> None:
        until = self.clock.now() + timedelta(seconds=seconds)
        lease = Lease(worker=token, token=token, until=until)
        self.make(lambda job, now: lifecycle.start(job, now, lease))

    @rule(token=TOKENS, seconds=st.integers(1, 60))
    def extend(self, token: str, seconds: int) -> None:
        until = self.clock.now() + timedelta(seconds=seconds)
        self.make(lambda job, now: lifecycle.extend(job, now, token=token, until=until))

    @rule(token=TOKENS, percent=st.integers(0, 100))
    def report(self, token: str, percent: int) -> None:
        progress = Progress(percent=percent)
        self.make(lambda job, _: lifecycle.report(job, progress, token=token))

    @rule(token=TOKENS)
    def complete(self, token: str) -> None:
        self.make(lambda job, now: lifecycle.complete(job, now, token=token, result=b"1"))

    @rule(token=TOKENS, jitter=st.floats(0, 1, exclude_max=True))
    def raise_in_the_handler(self, token: str, jitter: float) -> None:
        self.make(
            lambda job, now: lifecycle.settle_failure(
                job, now, token=token, error=ERROR, jitter=jitter
            )
        )

    @rule(token=TOKENS)
    def shut_down(self, token: str) -> None:
        self.make(lambda job, now: lifecycle.settle_release(job, now, token=token))

    @rule()
    def cancel(self) -> None:
        self.make(lifecycle.cancel)

    @rule(token=TOKENS)
    def stop(self, token: str) -> None:
        self.make(lambda job, now: lifecycle.stop(job, now, token=token))

    @rule()
    def requeue(self) -> None:
        self.make(lambda job, _: lifecycle.requeue(job))

    @rule()
    def leave_unhandled(self) -> None:
        self.make(lambda job, now: lifecycle.leave_unhandled(job, now + timedelta(seconds=10)))

    @rule(error=st.none() | st.just("away"), pause=st.none() | st.integers(0, 8 * 86400))
    def call_back(self, error: str | None, pause: int | None) -> None:
        after = None if pause is None else timedelta(seconds=pause)
        self.make(
            lambda job, now: lifecycle.call_back(
                job, now, error=error, again_at=None if after is None else now + after
            )
        )

    @rule()
    def look_after(self) -> None:
        self.make(lifecycle.overdue)

    @invariant()
    def an_end_is_final(self) -> None:
        if self.ended is not None:
            called = {name: getattr(self.job, name) for name in (*CALLED, "callback")}
            assert self.job == self.ended.model_copy(update=called)

    @invariant()
    def a_callback_is_owed_from_the_end_until_it_was_told_or_given_up(self) -> None:
        job = self.job
        assert (job.callback is not None) == (job.status.terminal and job.callback_url is not None)
        owes = lifecycle.owes_callback(job)
        assert (job.lane == CALLBACKS_LANE) == owes
        if owes:
            assert job.due_at is not None
            assert job.due_at <= lifecycle.callback_end(job)
            assert job.callback is not None
            assert job.callback.told_at is None

    @invariant()
    def somebody_must_look_by_the_deadline(self) -> None:
        if not self.job.status.terminal:
            assert self.job.due_at is not None
            assert self.job.due_at <= self.job.deadline

    @invariant()
    def fields_fit_the_status(self) -> None:
        job = self.job
        assert (job.lease is not None) == (job.status is JobStatus.PROCESSING)
        assert (job.completed_at is not None) == job.status.terminal
        assert (job.result_json is not None) == (job.status is JobStatus.COMPLETED)
        assert (job.error is not None) == (job.status is JobStatus.FAILED)
        assert (job.lane in {MAINTENANCE_LANE, CALLBACKS_LANE}) == (
            job.status is not JobStatus.PENDING
        )
        assert job.failures < job.retry.max_attempts
        assert job.losses <= job.max_deliveries
        assert job.attempt <= job.revision

    @invariant()
    def a_reader_leaves_nothing_overdue(self) -> None:
        """Applying the rule for overdue jobs repeatedly soon changes nothing more."""
        job: Job | None = self.job
        for _ in range(3):
            if job is None:
                return
            job = lifecycle.overdue(job, self.clock.now())
        assert job is None


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=40)
