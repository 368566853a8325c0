"""Polls that come far too fast are refused; those who wait are not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.errors import TooManyPolls
from asyncjobs.http import security
from asyncjobs.http.security import Limiter, PollLimit

# The machine may be busy with other things.


JOB, OTHER = new_job_id(), new_job_id()

# Quarters of a second, so that no rounding blurs what is exactly allowed.
poll_limits = st.builds(
    PollLimit, st.integers(1, 6), st.integers(1, 12).map(lambda quarters: quarters / 4)
)
pauses = st.lists(st.integers(0, 8).map(lambda quarters: quarters / 4), max_size=40)


class Model:
    """The same limit as a bucket of tokens, which fills up as time passes."""

    def __init__(self, limit: PollLimit) -> None:
        self.limit = limit
        self.tokens = float(limit.burst)
        self.at = 0.0

    def allows(self, now: float) -> bool:
        gained = (now - self.at) / self.limit.every
        self.tokens = min(float(self.limit.burst), self.tokens + gained)
        self.at = now
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


def wait_told(limiter: Limiter, now: float, job_id: JobId = JOB) -> int | None:
    try:
        limiter.count(job_id, now)
    except TooManyPolls as error:
        return error.seconds
    return None


def moments(pauses: Iterable[float]) -> list[float]:
    now, found = 0.0, list[float]()
    for pause in pauses:
        now += pause
        found.append(now)
    return found


@pytest.mark.parametrize(("burst", "every"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -0.5)])
def test_a_limit_that_allows_nothing_is_refused(burst: int, every: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        PollLimit(burst, every)


@given(limit=poll_limits, now=st.floats(-1e9, 1e9))
def test_the_first_poll_is_answered(limit: PollLimit, now: float) -> None:
    assert wait_told(Limiter(limit), now) is None


@given(limit=poll_limits, pauses=pauses)
def test_polls_are_answered_as_a_bucket_of_tokens_allows(
    limit: PollLimit, pauses: list[float]
) -> None:
    limiter, model = Limiter(limit), Model(limit)
    for now in moments(pauses):
        assert (wait_told(limiter, now) is None) == model.allows(now), now


@given(limit=poll_limits, pauses=pauses)
def test_in_no_window_more_are_answered_than_the_burst_and_what_time_adds(
    limit: PollLimit, pauses: list[float]
) -> None:
    limiter = Limiter(limit)
    answered = [now for now in moments(pauses) if wait_told(limiter, now) is None]
    for (first, begin), (last, end) in combinations(enumerate(answered), 2):
        assert last - first + 1 <= limit.burst + (end - begin) / limit.every


@given(limit=poll_limits, pauses=pauses)
def test_who_waits_as_told_is_answered(limit: PollLimit, pauses: list[float]) -> None:
    limiter, now = Limiter(limit), 0.0
    for pause in pauses:
        now += pause
        told = wait_told(limiter, now)
        if told is not None:
            assert told >= 1
            now += told
            assert wait_told(limiter, now) is None


def test_who_is_refused_a_thousand_times_waits_no_longer_for_that() -> None:
    limiter = Limiter(PollLimit(burst=2, every=1.0))
    assert [wait_told(limiter, 0.0) for _ in range(1002)] == [None, None, *[1] * 1000]
    assert wait_told(limiter, 1.0) is None


def test_who_keeps_the_pace_is_never_refused() -> None:
    limiter = Limiter(PollLimit(burst=1, every=0.5))
    assert {wait_told(limiter, tick / 2) for tick in range(500)} == {None}


def test_jobs_are_counted_apart() -> None:
    limiter = Limiter(PollLimit(burst=1, every=60.0))
    assert wait_told(limiter, 0.0) is None
    assert wait_told(limiter, 0.0) == 60
    assert wait_told(limiter, 0.0, OTHER) is None


def test_the_jobs_asked_about_least_lately_are_forgotten_so_memory_is_bounded() -> None:
    limiter = Limiter(PollLimit(burst=1, every=60.0))
    wait_told(limiter, 0.0)
    wait_told(limiter, 0.0, OTHER)
    for number in range(security._MAX_TRACKED_JOBS - 1):
        wait_told(limiter, 0.0, JobId(str(number)))
        assert wait_told(limiter, 0.0) == 60  # a refused poll keeps it in mind, too
    assert len(limiter._empty_at) == security._MAX_TRACKED_JOBS
    assert wait_told(limiter, 0.0, OTHER) is None
