"""Values: ids, trace ids, encodings, and what may not be written into them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncjobs.core.encoding import (
    Columns,
    decode,
    encode_state,
    encode_submission,
    from_microseconds,
    to_microseconds,
)
from asyncjobs.core.job import Job, JobStatus, Policy, Progress, new_job_id, parse_job_id
from asyncjobs.core.tracing import new_trace_id, trace_id_of
from asyncjobs.settings import Settings
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import full_job


def test_new_ids_are_ids_and_never_the_same() -> None:
    made = {new_job_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(parse_job_id(one) == one for one in made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job_",
        "8e03978e-40d5-43dd-bc93-6894a57f9324",
        "job_8E03978E-40D5-43DD-BC93-6894A57F9324",
        "job_8e03978e-40d5-13dd-bc93-6894a57f9324",
        "job_8e03978e-40d5-43dd-7c93-6894a57f9324",
        "job_8e03978e-40d5-43dd-bc93-6894a57f9324\n",
        "job_8e03978e-40d5-43dd-bc93-6894a57f932٤",
    ],
)
def test_what_no_job_can_have_is_no_id(text: str) -> None:
    assert parse_job_id(text) is None


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(sample_job(), "status", JobStatus.FAILED)  # noqa: B010  # what is tested


def test_payload_and_result_are_new_values_at_each_look() -> None:
    job = full_job()
    assert job.payload == {"text": "Grüße, 世界 🌍", "nul": "\0"}
    assert job.payload is not job.payload
    assert job.result == {"rows": 100.0}
    assert sample_job().result is None


@pytest.mark.parametrize("percent", [-1, 101])
def test_progress_is_a_percentage(percent: int) -> None:
    with pytest.raises(ValidationError):
        Progress(percent=percent)


def test_the_limits_are_those_the_documentation_promises() -> None:
    policy, settings = Policy(), Settings()
    assert policy.timeout == timedelta(minutes=15)
    assert policy.deadline == policy.retention == timedelta(hours=24)
    assert (policy.retry.max_attempts, policy.max_deliveries) == (1, 3)
    assert (policy.max_payload_bytes, policy.max_result_bytes) == (1024**2, 8 * 1024**2)
    assert settings.lease == timedelta(seconds=30)


def written(job: Job) -> Job:
    due_at = None if job.due_at is None else to_microseconds(job.due_at)
    columns = Columns(job.payload_json, job.result_json, job.revision, job.lane, due_at)
    return decode(job.id, encode_submission(job), encode_state(job), columns)


@pytest.mark.parametrize("job", [full_job(), sample_job()], ids=["full", "plain"])
def test_a_job_is_read_as_it_was_written(job: Job) -> None:
    assert written(job) == job


@pytest.mark.parametrize("job", [full_job(), sample_job()], ids=["full", "plain"])
def test_a_changed_copy_is_what_pydantic_makes_of_it(job: Job) -> None:
    changes: dict[str, Any] = {"revision": 7, "lane": "other", "due_at": None, "progress": 3}
    copy, theirs = job.changed(**changes), job.model_copy(update=changes)
    assert copy == theirs
    assert copy.model_dump() == theirs.model_dump()
    assert repr(copy) == repr(theirs)
    assert copy.changed() == copy != job
    with pytest.raises(ValidationError):
        copy.lane = "it is frozen, too"


def test_the_texts_hold_nothing_wide_and_no_column() -> None:
    job = full_job()
    texts = encode_submission(job) + encode_state(job)
    for absent in (b"payload", b"result", b"revision", b"lane", b"due_at"):
        assert absent not in texts


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_are_kept_to_the_microsecond(moment: datetime) -> None:
    assert from_microseconds(to_microseconds(moment)) == moment


@given(st.datetimes(), st.datetimes())
def test_moments_keep_their_order(one: datetime, other: datetime) -> None:
    first, second = one.replace(tzinfo=UTC), other.replace(tzinfo=UTC)
    assert (first < second) == (to_microseconds(first) < to_microseconds(second))


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f" 00-{TRACE}-b7ad6b7169203331-00 ", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_trace_id_is_taken_from_a_well_formed_traceparent(
    traceparent: str | None, trace_id: str | None
) -> None:
    assert trace_id_of(traceparent) == trace_id


def test_a_made_trace_id_is_well_formed() -> None:
    assert trace_id_of(f"00-{new_trace_id()}-b7ad6b7169203331-01") is not None
