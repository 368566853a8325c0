from __future__ import annotations

import json
from datetime import timedelta

import pytest

from asyncjobs import Job, JobStatus
from asyncjobs.http.documents import (
    AcceptedDocument,
    JobDocument,
    encode_accepted,
    encode_job,
    with_pace,
)
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import JobLinks, Mount
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW


def links_of(job: Job) -> JobLinks:
    return Mount().links(Request("POST"), job.id)


def names(model: type[AcceptedDocument | JobDocument]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_the_document_of_a_job_has_exactly_the_fields_of_its_model(job: Job) -> None:
    assert json.loads(with_pace(encode_job(job), None)).keys() == names(JobDocument)


def test_the_document_of_a_job_is_one_of_its_model(job: Job) -> None:
    text = with_pace(encode_job(job), 3, 17)
    document = JobDocument.model_validate_json(text, strict=True)
    assert json.loads(document.model_dump_json(by_alias=True)) == json.loads(text)
    assert (document.retry_after, document.position) == (3, 17)


def test_the_names_of_the_wire_are_in_camel_case() -> None:
    assert {"jobId", "errorCode", "createdAt", "startedAt", "completedAt", "traceId"} <= names(
        JobDocument
    )
    assert {"status", "jobId", "statusUrl", "estimatedDuration"} <= names(AcceptedDocument)


def test_a_failed_job_tells_a_sentence_and_a_code(
    job_of_each_status: dict[JobStatus, Job],
) -> None:
    document = json.loads(encode_job(job_of_each_status[JobStatus.FAILED]))
    assert (document["error"], document["errorCode"]) == ("The disk is full.", "disk_full")


def test_a_running_job_tells_how_far_it_is(job_of_each_status: dict[JobStatus, Job]) -> None:
    document = json.loads(encode_job(job_of_each_status[JobStatus.PROCESSING]))
    assert document["progress"] == 50
    assert document["detail"] == {"message": "writing", "current": 1, "total": 2, "unit": "rows"}


def test_times_are_utc_in_iso_8601(job: Job) -> None:
    assert json.loads(encode_job(job))["createdAt"] == NOW.isoformat().replace("+00:00", "Z")


def test_a_result_is_passed_on_byte_for_byte(job_of_each_status: dict[JobStatus, Job]) -> None:
    odd = b'{"z": 1.10, "a":  "\\u00e9"}'
    job = job_of_each_status[JobStatus.COMPLETED].model_copy(update={"result_json": odd})
    assert encode_job(job).endswith(b'"result":' + odd + b"}")


def test_neither_payload_nor_owner_nor_lease_is_on_the_wire(job: Job) -> None:
    secret = job.model_copy(update={"user_id": "the-owner", "payload_json": b'"the-payload"'})
    text = encode_job(secret)
    assert b"the-owner" not in text
    assert b"the-payload" not in text
    assert b"the-token" not in text


@pytest.mark.parametrize(("seconds", "written"), [(30, b"30"), (0.5, b"0.5"), (90.0, b"90")])
def test_whole_seconds_have_no_fraction(seconds: float, written: bytes) -> None:
    job = sample_job(estimated_duration=timedelta(seconds=seconds))
    assert b'"estimatedDuration":' + written + b"," in encode_job(job)
    accepted = encode_accepted(job, links_of(job))
    assert accepted.endswith(b'"estimatedDuration":' + written + b"}")


def test_the_document_of_a_202_is_one_of_its_model() -> None:
    job = sample_job(estimated_duration=timedelta(seconds=30))
    links = links_of(job)
    text = encode_accepted(job, links)
    assert json.loads(text).keys() == names(AcceptedDocument)
    document = AcceptedDocument.model_validate_json(text, strict=True)
    assert (document.status, document.job_id) == ("accepted", job.id)
    assert document.status_url == links.status


def test_an_estimate_that_is_not_known_is_left_out_of_the_202() -> None:
    job = sample_job()
    document = json.loads(encode_accepted(job, links_of(job)))
    assert document.keys() == names(AcceptedDocument) - {"estimatedDuration"}
