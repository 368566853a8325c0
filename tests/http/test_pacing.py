from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import Job, JobStatus, lifecycle
from asyncjobs.http.pacing import Pacing, retry_after
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW


def asked_after(estimate: float | None, pacing: Pacing | None = None) -> int:
    seconds = None if estimate is None else timedelta(seconds=estimate)
    return retry_after(sample_job(estimated_duration=seconds), NOW, pacing or Pacing())


def delayed(seconds: float) -> Job:
    job = sample_job()
    return job.model_copy(update={"run_at": NOW + timedelta(seconds=seconds)})


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [(None, 2), (0, 2), (0.1, 2), (20, 2), (20.1, 3), (35, 4), (50, 5), (86400, 5)],
)
def test_a_tenth_of_the_estimate_is_waited_within_the_bounds(
    estimate: float | None, expected: int
) -> None:
    assert asked_after(estimate) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 2), (3.2, 4), (3600, 5)])
def test_a_job_that_begins_later_is_left_alone_until_then(seconds: float, expected: int) -> None:
    assert retry_after(delayed(seconds), NOW, Pacing()) == expected


def test_the_pause_before_a_retry_is_no_late_beginning(
    job_of_each_status: dict[JobStatus, Job],
) -> None:
    running = job_of_each_status[JobStatus.PROCESSING]
    again = lifecycle.release(running, NOW, token="the-token")
    waiting = again.model_copy(update={"run_at": NOW + timedelta(minutes=5)})
    assert retry_after(waiting, NOW, Pacing()) == 3


def test_other_bounds_can_be_set() -> None:
    assert asked_after(None, Pacing(least=1, most=1)) == 1
    assert asked_after(3600, Pacing(least=1, most=60)) == 60


@pytest.mark.parametrize(("least", "most"), [(0, 5), (-1, 5), (3, 2)])
def test_bounds_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"got {least} and {most}"):
        Pacing(least, most)


@given(st.none() | st.floats(min_value=0, max_value=1e8), st.floats(min_value=-1e6, max_value=1e6))
def test_the_answer_is_always_within_the_bounds(estimate: float | None, starts: float) -> None:
    length = None if estimate is None else timedelta(seconds=estimate)
    job = delayed(starts).model_copy(update={"estimated_duration": length})
    assert 2 <= retry_after(job, NOW, Pacing()) <= 5
