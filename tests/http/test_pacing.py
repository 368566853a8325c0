from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import Job, JobStatus, Progress
from asyncjobs.core import lifecycle
from asyncjobs.http.headers import Pacing, retry_after
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW


def asked_after(estimate: float | None, pacing: Pacing | None = None) -> int | None:
    expected = None if estimate is None else timedelta(seconds=estimate)
    return retry_after(sample_job(), NOW, pacing or Pacing(), expected)


def running(progress: int) -> Job:
    started = lifecycle.start(sample_job(), NOW, None)
    return lifecycle.report(started, Progress(percent=progress), token=None)


def delayed(seconds: float) -> Job:
    job = sample_job()
    return job.model_copy(update={"run_at": NOW + timedelta(seconds=seconds)})


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [(None, 2), (0, 2), (0.1, 2), (20, 2), (20.1, 3), (35, 4), (50, 5), (86400, 5)],
)
def test_a_tenth_of_what_is_expected_is_waited_within_the_bounds(
    estimate: float | None, expected: int
) -> None:
    assert asked_after(estimate) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 2), (3.2, 4), (3600, 5)])
def test_a_job_that_begins_later_is_left_alone_until_then(seconds: float, expected: int) -> None:
    assert retry_after(delayed(seconds), NOW, Pacing(), None) == expected


@pytest.mark.parametrize(
    ("elapsed", "progress", "expected", "answer"),
    [
        (0, 0, None, 1),
        (30, 50, None, 6),  # a minute as a whole
        (30, 50, 600, 6),  # what is seen goes before what was expected
        (57, 95, None, 3),  # nearly done
        (60, 100, None, 6),  # done, and yet not ended
        (5, 0, 80, 8),
        (79, 0, 80, 1),
        (200, 0, 80, 20),  # longer than expected
        (-5, 10, None, 1),  # clocks differ
    ],
)
def test_a_running_job_is_asked_about_by_what_is_left_of_it(
    elapsed: float, progress: int, expected: float | None, answer: int
) -> None:
    length = None if expected is None else timedelta(seconds=expected)
    now = NOW + timedelta(seconds=elapsed)
    assert retry_after(running(progress), now, Pacing(1, 60), length) == answer


def test_nobody_has_to_ask_again_about_a_terminal_job(
    job_of_each_status: dict[JobStatus, Job],
) -> None:
    answers = {
        status.terminal: retry_after(job, NOW, Pacing(), None) is None
        for status, job in job_of_each_status.items()
    }
    assert answers == {True: True, False: False}


def test_other_bounds_can_be_set() -> None:
    assert asked_after(None, Pacing(least=1, most=1)) == 1
    assert asked_after(3600, Pacing(least=1, most=60)) == 60


@pytest.mark.parametrize(("least", "most"), [(0, 5), (-1, 5), (3, 2)])
def test_bounds_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"got {least} and {most}"):
        Pacing(least, most)


@given(
    st.none() | st.floats(min_value=0, max_value=1e8),
    st.floats(min_value=-1e6, max_value=1e6),
    st.integers(0, 100),
)
def test_the_answer_is_always_within_the_bounds(
    estimate: float | None, moment: float, progress: int
) -> None:
    length = None if estimate is None else timedelta(seconds=estimate)
    for job, now in ((delayed(moment), NOW), (running(progress), NOW + timedelta(seconds=moment))):
        assert retry_after(job, now, Pacing(), length) in range(2, 6)
