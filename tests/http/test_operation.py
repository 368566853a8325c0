"""A job in the words of Azure's long-running operations, status by status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import Job, JobError, JobStatus
from asyncjobs.http.documents import STATES, OperationDocument, encode_operation
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import JobLinks, Mount
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, full_job

# The machine may be busy with other things.


Jobs = dict[JobStatus, Job]

TERMINAL = {"Succeeded", "Failed", "Canceled"}


def links_of(job: Job, mount: Mount | None = None) -> JobLinks:
    request = Request("GET", headers={"host": "api.example.com"}, scheme="https")
    return (mount or Mount()).links(request, job.id)


def document(job: Job, mount: Mount | None = None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(encode_operation(job, links_of(job, mount)))
    return parsed


def test_each_status_has_azures_own_word() -> None:
    assert {str(status): word for status, word in STATES.items()} == {
        "pending": "NotStarted",
        "processing": "Running",
        "completed": "Succeeded",
        "failed": "Failed",
        "cancelled": "Canceled",
    }


def test_in_every_status_the_document_is_as_it_is_described(job: Job) -> None:
    found = document(job)
    read = OperationDocument.model_validate(found)
    described = {field.alias or name for name, field in OperationDocument.model_fields.items()}
    assert set(found) <= described
    assert (read.id, read.kind, read.percent_complete) == (job.id, "export", job.progress)
    assert read.status == STATES[job.status]


def test_a_poller_stops_at_a_terminal_status_and_not_before(job: Job) -> None:
    assert (document(job)["status"] in TERMINAL) == job.status.terminal


def test_success_brings_the_result_and_where_it_is(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.COMPLETED]
    found = document(job)
    assert found["result"] == {"rows": 2}
    assert found["resourceLocation"] == f"https://api.example.com/api/jobs/{job.id}/result"
    assert found["error"] is None


@pytest.mark.parametrize("status", [one for one in JobStatus if one is not JobStatus.COMPLETED])
def test_without_success_there_is_no_result(status: JobStatus, job_of_each_status: Jobs) -> None:
    assert not {"result", "resourceLocation"} & set(document(job_of_each_status[status]))


def test_a_failure_says_why(job_of_each_status: Jobs) -> None:
    found = document(job_of_each_status[JobStatus.FAILED])
    assert found["error"] == {"code": "disk_full", "message": "The disk is full."}


def test_a_cancelled_job_says_so_as_its_error(job_of_each_status: Jobs) -> None:
    found = document(job_of_each_status[JobStatus.CANCELLED])
    assert found["error"] == {"code": "job_cancelled", "message": "The job was cancelled."}


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.PROCESSING])
def test_what_goes_on_has_no_error(status: JobStatus, job_of_each_status: Jobs) -> None:
    assert document(job_of_each_status[status])["error"] is None


def test_the_last_action_is_the_latest_that_is_known(job_of_each_status: Jobs) -> None:
    moments = {status: document(job) for status, job in job_of_each_status.items()}
    began, later = "2030-01-01T12:00:00.123456Z", "2030-01-01T12:00:03.123456Z"
    assert {status: one["lastActionDateTime"] for status, one in moments.items()} == {
        JobStatus.PENDING: began,
        JobStatus.PROCESSING: began,
        JobStatus.COMPLETED: later,
        JobStatus.FAILED: later,
        JobStatus.CANCELLED: later,
    }
    assert {one["createdDateTime"] for one in moments.values()} == {began}


def test_a_job_done_without_a_result_has_null(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.COMPLETED].model_copy(update={"result_json": None})
    assert document(job)["result"] is None


def test_with_a_base_url_the_result_is_there(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.COMPLETED]
    found = document(job, Mount("/jobs", "https://jobs.example.com"))
    assert found["resourceLocation"] == f"https://jobs.example.com/jobs/{job.id}/result"


def test_nothing_of_the_submission_or_of_the_workers_gets_out() -> None:
    text = encode_operation(full_job(), links_of(full_job())).decode()
    for secret in ("世界", "ann@example.com", "8e03978e", "host:1", "ffffffff", "high"):
        assert secret not in text


@given(
    status=st.sampled_from(JobStatus),
    progress=st.integers(0, 100),
    words=st.text(st.characters(exclude_categories=["Cs"])),
    result=st.none()
    | st.recursive(
        st.integers() | st.text(st.characters(max_codepoint=0xD7FF)),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_whatever_a_job_holds_its_document_is_valid_and_keeps_it(
    status: JobStatus, progress: int, words: str, result: Any
) -> None:
    changes: dict[str, Any] = {
        "status": status,
        "progress": progress,
        "started_at": NOW,
        "error": JobError(code="x", message=words) if status is JobStatus.FAILED else None,
        "result_json": json.dumps(result).encode() if status is JobStatus.COMPLETED else None,
    }
    found = document(sample_job().model_copy(update=changes))
    OperationDocument.model_validate(found)
    if status is JobStatus.FAILED:
        assert found["error"]["message"] == words
    if status is JobStatus.COMPLETED:
        assert found["result"] == result
