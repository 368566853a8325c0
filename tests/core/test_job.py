"""Values of jobs: ids, trace ids, encodings, and text that cannot be stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from asyncjobs.core.job import Job, JobStatus, Policy, Progress, new_job_id, parse_job_id
from asyncjobs.settings import Settings
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import full_job


def test_new_ids_are_valid_and_distinct() -> None:
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
def test_malformed_ids_are_rejected(text: str) -> None:
    assert parse_job_id(text) is None


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(sample_job(), "status", JobStatus.FAILED)  # noqa: B010  # the subject of the test


def test_payload_and_result_are_decoded_anew_at_each_access() -> None:
    job = full_job()
    assert job.payload == {"text": "Grüße, 世界 🌍", "nul": "\0"}
    assert job.payload is not job.payload
    assert job.result == {"rows": 100.0}
    assert sample_job().result is None


@pytest.mark.parametrize("percent", [-1, 101])
def test_progress_is_a_percentage(percent: int) -> None:
    with pytest.raises(ValidationError):
        Progress(percent=percent)


def test_the_default_limits_match_the_documentation() -> None:
    policy, settings = Policy(), Settings()
    assert policy.timeout == timedelta(minutes=15)
    assert policy.deadline == policy.retention == timedelta(hours=24)
    assert (policy.retry.max_attempts, policy.max_deliveries) == (1, 3)
    assert (policy.max_payload_bytes, policy.max_result_bytes) == (1024**2, 8 * 1024**2)
    assert settings.lease == timedelta(seconds=30)


@pytest.mark.parametrize("job", [full_job(), sample_job()], ids=["full", "plain"])
def test_changed_returns_the_same_copy_as_pydantic(job: Job) -> None:
    changes: dict[str, Any] = {"revision": 7, "lane": "other", "due_at": None, "progress": 3}
    copy, theirs = job.changed(**changes), job.model_copy(update=changes)
    assert copy == theirs
    assert copy.model_dump() == theirs.model_dump()
    assert repr(copy) == repr(theirs)
    assert copy.changed() == copy != job
    with pytest.raises(ValidationError):
        copy.lane = "it is frozen, too"


def test_max_deliveries_is_3_and_max_releases_is_100_by_default() -> None:
    job = sample_job()
    assert (job.max_deliveries, job.max_releases) == (3, 100)
