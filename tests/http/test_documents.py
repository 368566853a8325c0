"""Documents have exactly the members of their models, and are encoded once per revision."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from asyncjobs import Job, JobError, JobStatus
from asyncjobs.core.job import JobFile, new_job_id
from asyncjobs.http.documents import (
    AcceptedDocument,
    DocumentCache,
    JobDocument,
    ListDocument,
    ListedDocument,
    OperationDocument,
    encode_list,
    operation_status,
    with_pace,
    with_token,
)
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import JobLinks, Mount
from asyncjobs.protocols import Page
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, full_job, sample_file

Jobs = dict[JobStatus, Job]

#: Server-only values of `full_job()`, and of the jobs of each status.
SECRETS = ("世界", "ann@example.com", "8e03978e", "host:1", "the-token", "ffffffff", "high")


#: Members that only some jobs have.
SOME_HAVE = {"batch", "batchId", "files", "outputs", "token", "tokenUrl", "tokenExpiresAt"}


def links_of(job: Job, mount: Mount | None = None) -> JobLinks:
    request = Request("GET", headers={"host": "api.example.com"}, scheme="https")
    return (mount or Mount()).links(request, job.id)


def names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def texts_of(job: Job) -> list[bytes]:
    """Return all documents of a job."""
    links = links_of(job)
    return [
        AcceptedDocument.encode(job, links),
        with_pace(JobDocument.encode(job), 3, 17),
        OperationDocument.encode(job, links),
        encode_list(Page([job]), lambda _: links, None),
    ]


def test_no_document_contains_a_server_only_value(job: Job) -> None:
    for text in (*texts_of(job), *texts_of(full_job())):
        assert [secret for secret in SECRETS if secret in text.decode()] == []


def test_names_are_in_camel_case() -> None:
    assert {"jobId", "errorCode", "createdAt", "traceId", "version"} <= names(JobDocument)
    assert {"status", "jobId", "statusUrl", "estimatedDuration"} <= names(AcceptedDocument)


def test_times_are_utc_in_iso_8601(job: Job) -> None:
    created = json.loads(JobDocument.encode(job))["createdAt"]
    assert created == NOW.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(("seconds", "written"), [(30, b"30"), (0.5, b"0.5"), (90.0, b"90")])
def test_whole_seconds_have_no_fraction(seconds: float, written: bytes) -> None:
    job = sample_job(estimated_duration=timedelta(seconds=seconds))
    member = b'"estimatedDuration":' + written + b","
    assert member in JobDocument.encode(job)
    assert member in AcceptedDocument.encode(job, links_of(job))


def test_a_subclass_adds_members_that_are_read_by_name() -> None:
    class OwnedDocument(JobDocument):
        user_id: str | None

    job = sample_job(user_id="ann")
    assert OwnedDocument.members(job) == {**JobDocument.members(job), "userId": "ann"}


class TestAcceptedDocument:
    def test_it_has_the_members_of_its_model(self) -> None:
        job = sample_job(estimated_duration=timedelta(seconds=30))
        links = links_of(job)
        text = with_token(AcceptedDocument.encode(job, links), "a.b.c", links.token, NOW)
        assert json.loads(text).keys() == names(AcceptedDocument)
        document = AcceptedDocument.model_validate_json(text, strict=True)
        assert (document.status, document.job_id) == ("accepted", job.id)
        assert (document.status_url, document.result_url) == (links.status, links.result)
        assert (document.events_url, document.cancel_url) == (links.events, links.cancel)

    def test_an_unknown_estimate_is_left_out(self) -> None:
        job = sample_job()
        document = json.loads(AcceptedDocument.encode(job, links_of(job)))
        usual = names(AcceptedDocument) - {"token", "tokenUrl", "tokenExpiresAt"}
        assert document.keys() == usual - {"estimatedDuration"}


class TestJobDocument:
    def test_it_has_the_members_of_its_model(self, job: Job) -> None:
        text = with_pace(JobDocument.encode(job, links_of(job)), 3, 17)
        document = JobDocument.model_validate_json(text, strict=True)
        assert json.loads(text).keys() == names(JobDocument) - SOME_HAVE
        dumped = document.model_dump_json(by_alias=True, exclude_unset=True)
        assert json.loads(dumped) == json.loads(text)
        assert (document.retry_after, document.position) == (3, 17)

    def test_files_are_listed_with_their_urls_once_their_content_is_stored(self) -> None:
        job = sample_job()
        file = sample_file(job, name="März 50%.csv", size=0)
        job = job.changed(files=(JobFile(name="next.csv", key=f"{job.id}/1-b"), file))
        document = json.loads(JobDocument.encode(job, links_of(job, Mount("/v1/jobs"))))
        url = f"/v1/jobs/{job.id}/files/M%C3%A4rz%2050%25.csv"
        assert document["files"] == [
            {"name": "März 50%.csv", "size": 0, "mediaType": file.media_type, "url": url}
        ]
        assert file.path == url.removeprefix("/v1/jobs/")
        [alone] = json.loads(JobDocument.encode(job))["files"]
        assert "url" not in alone
        assert "files" not in json.loads(JobDocument.encode(job.changed(files=job.files[:1])))

    def test_cached_documents_of_two_mounts_have_the_urls_of_each(self) -> None:
        job, cache = sample_job(), DocumentCache()
        job = job.changed(files=(sample_file(job),))
        urls = [json.loads(cache.document(job, base))["files"][0]["url"] for base in ("/a", "/b")]
        assert urls == [f"/{base}/{job.id}/files/export.csv" for base in "ab"]

    def test_a_failed_job_has_a_sentence_and_a_code(self, job_of_each_status: Jobs) -> None:
        document = json.loads(JobDocument.encode(job_of_each_status[JobStatus.FAILED]))
        assert (document["error"], document["errorCode"]) == ("The disk is full.", "disk_full")

    def test_a_running_job_shows_its_progress(self, job_of_each_status: Jobs) -> None:
        document = json.loads(JobDocument.encode(job_of_each_status[JobStatus.PROCESSING]))
        detail = {"message": "writing", "current": 1, "total": 2, "unit": "rows"}
        assert (document["progress"], document["detail"]) == (50, detail)

    def test_a_result_is_passed_on_byte_for_byte(self, job_of_each_status: Jobs) -> None:
        odd = b'{"z": 1.10, "a":  "\\u00e9"}'
        job = job_of_each_status[JobStatus.COMPLETED].model_copy(update={"result_json": odd})
        assert b',"result":' + odd + b"," in JobDocument.encode(job)

    def test_metadata_are_passed_on_byte_for_byte(self) -> None:
        odd = b'{"z": 1.10, "a":  "\\u00e9"}'
        job = sample_job(given_title="Given", tags=("a", "b"), given_metadata_json=odd)
        assert b',"metadata":' + odd + b"}" in JobDocument.encode(job)
        document = json.loads(JobDocument.encode(job))
        assert (document["title"], document["tags"]) == ("Given", ["a", "b"])
        changed = json.loads(
            JobDocument.encode(job.changed(new_title="N", new_metadata_json=b"{}"))
        )
        assert (changed["title"], changed["metadata"]) == ("N", {})


def test_a_list_has_the_members_of_its_model(job_of_each_status: Jobs) -> None:
    page, mount, request = Page([*job_of_each_status.values()]), Mount(), Request("GET")
    text = encode_list(page, lambda job_id: mount.links(request, job_id), "/api/jobs?cursor=7")
    document = ListDocument.model_validate_json(text)
    assert document.next == "/api/jobs?cursor=7"
    assert [one.status for one in document.jobs] == [*job_of_each_status]
    assert [one.status_url for one in document.jobs] == [f"/api/jobs/{j.id}" for j in page.jobs]
    listed = json.loads(text)["jobs"]
    assert all(one.keys() == names(ListedDocument) - {"batchId"} for one in listed)


def test_a_listed_job_of_a_batch_has_the_id_of_the_batch() -> None:
    member = sample_job(batch=new_job_id())
    text = encode_list(Page([member]), lambda _: links_of(member), None)
    [listed] = ListDocument.model_validate_json(text).jobs
    assert listed.batch_id == member.batch
    assert json.loads(text)["jobs"][0]["batchId"] == member.batch


def operation_of(job: Job, mount: Mount | None = None) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(OperationDocument.encode(job, links_of(job, mount)))
    return parsed


class TestOperationDocument:
    def test_each_status_has_azures_own_word(self) -> None:
        assert {str(status): operation_status(status) for status in JobStatus} == {
            "pending": "NotStarted",
            "processing": "Running",
            "completed": "Succeeded",
            "failed": "Failed",
            "cancelled": "Canceled",
        }

    def test_it_has_members_of_its_model(self, job: Job) -> None:
        found = operation_of(job)
        read = OperationDocument.model_validate(found)
        assert set(found) <= names(OperationDocument)
        assert (read.id, read.kind, read.percent_complete) == (job.id, "export", job.progress)
        assert read.status == operation_status(job.status)

    def test_success_has_the_result_and_its_absolute_url(self, job_of_each_status: Jobs) -> None:
        job = job_of_each_status[JobStatus.COMPLETED]
        found = operation_of(job)
        assert found["result"] == {"rows": 2}
        assert found["resourceLocation"] == f"https://api.example.com/api/jobs/{job.id}/result"
        based = operation_of(job, Mount("/jobs", "https://jobs.example.com"))
        assert based["resourceLocation"] == f"https://jobs.example.com/jobs/{job.id}/result"

    def test_a_job_completed_without_a_result_has_null(self, job_of_each_status: Jobs) -> None:
        job = job_of_each_status[JobStatus.COMPLETED].model_copy(update={"result_json": None})
        assert operation_of(job)["result"] is None

    @pytest.mark.parametrize("status", [one for one in JobStatus if one is not JobStatus.COMPLETED])
    def test_without_success_there_is_no_result(
        self, status: JobStatus, job_of_each_status: Jobs
    ) -> None:
        assert not {"result", "resourceLocation"} & set(operation_of(job_of_each_status[status]))

    def test_only_failed_and_cancelled_jobs_have_an_error(self, job_of_each_status: Jobs) -> None:
        errors = {status: operation_of(job)["error"] for status, job in job_of_each_status.items()}
        assert errors == {
            JobStatus.PENDING: None,
            JobStatus.PROCESSING: None,
            JobStatus.COMPLETED: None,
            JobStatus.FAILED: {"code": "disk_full", "message": "The disk is full."},
            JobStatus.CANCELLED: {"code": "job_cancelled", "message": "The job was cancelled."},
        }

    def test_last_action_is_the_latest_known_time(self, job_of_each_status: Jobs) -> None:
        found = {status: operation_of(job) for status, job in job_of_each_status.items()}
        begun, later = "2030-01-01T12:00:00.123456Z", "2030-01-01T12:00:03.123456Z"
        assert {status: one["lastActionDateTime"] for status, one in found.items()} == {
            status: later if status.terminal else begun for status in JobStatus
        }
        assert {one["createdDateTime"] for one in found.values()} == {begun}

    @given(
        status=st.sampled_from(JobStatus),
        progress=st.integers(0, 100),
        words=st.text(st.characters(exclude_categories=["Cs"])),
        result=st.recursive(
            st.none() | st.integers() | st.text(st.characters(max_codepoint=0xD7FF)),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    )
    def test_any_error_and_any_result_are_kept(
        self, status: JobStatus, progress: int, words: str, result: Any
    ) -> None:
        changes: dict[str, Any] = {
            "status": status,
            "progress": progress,
            "started_at": NOW,
            "error": JobError(code="x", message=words) if status is JobStatus.FAILED else None,
            "result_json": json.dumps(result).encode() if status is JobStatus.COMPLETED else None,
        }
        found = operation_of(sample_job().model_copy(update=changes))
        OperationDocument.model_validate(found)
        if status is JobStatus.FAILED:
            assert found["error"]["message"] == words
        if status is JobStatus.COMPLETED:
            assert found["result"] == result


def sized(size: int) -> Job:
    """Make a job with a result of this many bytes."""
    result = b'"%s"' % (b"x" * (size - 2))
    return sample_job().model_copy(update={"status": JobStatus.COMPLETED, "result_json": result})


class TestDocumentCache:
    def test_a_document_is_encoded_once_per_revision(self, job: Job) -> None:
        cache = DocumentCache()
        first = cache.document(job)
        assert first == JobDocument.encode(job)
        assert cache.document(job.model_copy()) is first

    def test_an_event_is_encoded_once_per_revision(self, job: Job) -> None:
        cache = DocumentCache()
        assert cache.event(job) is cache.event(job.model_copy())

    def test_another_revision_is_another_document(self, job: Job) -> None:
        cache = DocumentCache()
        cache.document(job)
        later = job.model_copy(update={"revision": job.revision + 1, "progress": 77})
        assert json.loads(cache.document(later))["progress"] == 77

    def test_an_event_has_the_version_and_a_document_without_pace(self, job: Job) -> None:
        lines = DocumentCache().event(job).decode().split("\n")
        assert lines[0] == f"id: {job.version}"
        found = json.loads(lines[1].removeprefix("data: "))
        assert found["status"] == job.status
        assert (found["retryAfter"], found["position"]) == (None, None)

    def test_the_oldest_documents_are_dropped_if_there_is_no_room(self) -> None:
        jobs = [sized(1000) for _ in range(10)]
        size = len(JobDocument.encode(jobs[0]))
        cache = DocumentCache(max_bytes=4 * size)
        texts = [cache.document(job) for job in jobs]
        kept = [
            cache.document(job) is text for job, text in zip(jobs[-4:], texts[-4:], strict=True)
        ]
        assert kept == [True] * 4
        assert cache.document(jobs[5]) is not texts[5]

    def test_a_document_larger_than_the_room_is_not_kept(self) -> None:
        cache, huge, small = DocumentCache(max_bytes=2000), sized(2001), sample_job()
        first = cache.document(huge)
        assert len(json.loads(first)["result"]) == 1999
        assert cache.document(huge) is not first
        assert cache.document(small) is cache.document(small)

    @settings(max_examples=30)
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(2, 400)), max_size=60))
    def test_the_cached_document_is_correct_after_any_reads(
        self, asked: list[tuple[int, int]]
    ) -> None:
        jobs = [sample_job() for _ in range(6)]
        cache = DocumentCache(max_bytes=2000)
        for which, size in asked:
            changes = {"revision": size, "result_json": b"1" * size, "version": size}
            job = jobs[which].model_copy(update=changes)
            assert cache.document(job) == JobDocument.encode(job)
