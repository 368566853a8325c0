"""The stored form of a job is complete, and stores nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    from_microseconds,
    sequence_of,
    to_microseconds,
)
from asyncjobs.core.job import Delivery, Job, JobStatus, Retry
from asyncjobs.errors import InvalidQuery
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import full_job


def written(job: Job) -> Job:
    due_at = None if job.due_at is None else to_microseconds(job.due_at)
    wide = (job.payload_json, job.result_json, job.errors_json)
    columns = Columns(*wide, job.revision, job.lane, due_at)
    return decode(job.id, encode_submission(job), encode_state(job), columns)


@pytest.mark.parametrize("job", [full_job(), sample_job()], ids=["full", "plain"])
def test_a_job_is_read_as_it_was_written(job: Job) -> None:
    assert written(job) == job


def test_the_texts_hold_no_wide_field_and_no_column() -> None:
    job = full_job()
    texts = encode_submission(job) + encode_state(job)
    for absent in (b"payload", b"result", b"errors", b"revision", b"lane", b"due_at"):
        assert absent not in texts


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_kept_to_the_microsecond(moment: datetime) -> None:
    assert from_microseconds(to_microseconds(moment)) == moment


@given(st.datetimes(), st.datetimes())
def test_encoded_times_sort_in_their_order(one: datetime, other: datetime) -> None:
    first, second = one.replace(tzinfo=UTC), other.replace(tzinfo=UTC)
    assert (first < second) == (to_microseconds(first) < to_microseconds(second))


def test_a_cursor_encodes_a_sequence_number() -> None:
    assert sequence_of(None, 3) is None
    assert sequence_of("042", 3) == 42
    for cursor in ("", "nonsense", "-1", "1234", "٤"):
        with pytest.raises(InvalidQuery):
            sequence_of(cursor, 3)


def test_defaults_that_the_texts_leave_out_never_change() -> None:
    required = {"id", "type", "trace_id", "deadline", "created_at", "run_at"}
    defaults = {
        name: field.default
        for name, field in Job.model_fields.items()
        if not field.exclude and field.default is not None
    }
    assert {name for name, field in Job.model_fields.items() if field.is_required()} == required
    # Changing one of these defaults would change jobs that are already stored.
    assert {name: value for name, value in defaults.items() if name not in required} == {
        "queue": "default",
        "delivery": Delivery.PULL,
        "retry": Retry(
            max_attempts=1,
            initial_delay=timedelta(seconds=1),
            factor=2,
            max_delay=timedelta(minutes=5),
        ),
        "max_deliveries": 3,
        "max_releases": 100,
        "tags": (),
        "files": (),
        "status": JobStatus.PENDING,
        "progress": 0,
        "attempt": 0,
        "failures": 0,
        "losses": 0,
        "releases": 0,
        "version": 1,
    }
