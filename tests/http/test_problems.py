from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from asyncjobs import AsyncJobsError, Job, JobError, JobFailed, JobStatus
from asyncjobs.errors import (
    BlockingCall,
    ConfigurationError,
    CrossSite,
    DuplicateFile,
    FieldIssue,
    FileError,
    FileMissing,
    FileTooLarge,
    IdempotencyConflict,
    IllegalMove,
    InsufficientScope,
    InvalidCallback,
    InvalidIdempotencyKey,
    InvalidOutput,
    InvalidPayload,
    InvalidQuery,
    InvalidResult,
    InvalidToken,
    JobUnsuccessful,
    LostLease,
    MalformedBody,
    NotAwaited,
    NotDispatched,
    NotOpen,
    OutputError,
    OutputTooLarge,
    PayloadTooLarge,
    PreconditionFailed,
    RequestRejected,
    ResourcesUnavailable,
    SchemaError,
    StorageUnavailable,
    StoreError,
    StoreUnavailable,
    TooManyFiles,
    TooManyPolls,
    TransferRefused,
    UnknownFile,
    UnknownJob,
    UnknownSchedule,
    UnknownType,
    UnreadableJob,
    UnsupportedMediaType,
    UnusableConnection,
    WrongEventLoop,
)
from asyncjobs.http.messages import Response
from asyncjobs.http.problems import (
    CODES,
    STATUSES,
    TYPE_PREFIX,
    ProblemDocument,
    no_result,
    problem,
    problem_of,
)
from asyncjobs.testing import sample_job

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Every error of the library and its status; None is an internal error.
ERRORS: dict[type[AsyncJobsError], tuple[AsyncJobsError, int | None]] = {
    type(error): (error, status)
    for error, status in [
        (AsyncJobsError("?"), None),
        (ConfigurationError("?"), None),
        (UnknownType("export"), None),
        (NotDispatched(["job_1"], "no such queue"), None),
        (NotOpen("AsyncJobs"), None),
        (WrongEventLoop("AsyncJobs"), None),
        (BlockingCall("enqueue"), None),
        (ResourcesUnavailable("secret: it has ended"), 503),
        (UnusableConnection("it is closed"), None),
        (RequestRejected("?"), None),
        (MalformedBody("it is empty"), 400),
        (UnsupportedMediaType("text/plain"), 415),
        (PayloadTooLarge(None, 10), 413),
        (InvalidPayload([FieldIssue("format", "is odd")]), 422),
        (InvalidIdempotencyKey("it is empty"), 400),
        (IdempotencyConflict("key", "job_1"), 422),
        (InvalidCallback("it is not https"), 400),
        (InvalidQuery("limit", "it is no number"), 400),
        (PreconditionFailed("job_1", 3), 412),
        (CrossSite("https://evil.example"), 403),
        (InvalidToken("it has expired"), 401),
        (InsufficientScope("cancel"), 403),
        (TooManyPolls(3), 429),
        (InvalidResult("export", "it is odd"), None),
        (OutputError("?"), None),
        (InvalidOutput("log", "it is odd"), None),
        (OutputTooLarge(10, "items"), None),
        (NotAwaited("job.emit(item)", "An item"), None),
        (FileError("?"), None),
        (DuplicateFile("a.csv"), None),
        (TooManyFiles(100), None),
        (FileTooLarge("a.csv", 10), None),
        (UnknownFile("job_1", "a.csv"), 404),
        (FileMissing("secret", "job_1/1-a"), 500),
        (StorageUnavailable("secret", "timed out"), 503),
        (UnknownJob("job_1"), 404),
        (UnknownSchedule("nightly"), None),
        (JobUnsuccessful(sample_job()), None),
        (IllegalMove("job_1", "complete", "completed"), 409),
        (TransferRefused("some run"), None),
        (LostLease("job_1"), 409),
        (StoreError("?"), None),
        (StoreUnavailable("secret.db", "disk I/O error"), 503),
        (SchemaError("secret.db", "it is newer"), None),
        (UnreadableJob("job_1"), None),
        (JobFailed("?"), None),
    ]
}


def family(kind: type[AsyncJobsError]) -> Iterator[type[AsyncJobsError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def written(response: Response | None) -> dict[str, object]:
    assert response is not None
    document: dict[str, object] = json.loads(response.body)
    return document


def answered(error: AsyncJobsError) -> Response:
    response = problem_of(error)
    assert response is not None
    return response


def test_every_error_of_the_library_is_listed_here() -> None:
    ours = {kind for kind in family(AsyncJobsError) if kind.__module__ == "asyncjobs.errors"}
    assert ours == ERRORS.keys()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_each_error_is_answered_by_its_status(kind: type[AsyncJobsError]) -> None:
    error, status = ERRORS[kind]
    response = problem_of(error)
    assert (None if response is None else response.status) == status


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.__name__)
def test_each_answer_is_a_problem_document(kind: type[AsyncJobsError]) -> None:
    response = answered(ERRORS[kind][0])
    assert response.header("content-type") == "application/problem+json"
    assert response.header("cache-control") == "no-store"
    document = ProblemDocument.model_validate_json(response.body)
    assert document.status == response.status
    assert document.title == HTTPStatus(response.status).phrase
    assert document.code == STATUSES[kind][1]
    assert document.type == f"{TYPE_PREFIX}{document.code}"
    assert document.detail
    assert document.error == document.detail


def test_a_subclass_of_an_error_is_answered_like_its_base() -> None:
    class DiskFull(StoreUnavailable):
        pass

    assert answered(DiskFull("jobs.db", "disk full")).status == HTTPStatus.SERVICE_UNAVAILABLE


def test_problem_codes_are_distinct() -> None:
    codes = [code for _, code in STATUSES.values()]
    assert len(set(codes)) == len(codes)


def test_the_problem_of_an_unknown_job_does_not_contain_its_id() -> None:
    document = written(problem_of(UnknownJob("<script>")))
    assert document["error"] == "Job not found"


def test_the_message_of_a_store_is_not_shown() -> None:
    response = answered(StoreUnavailable("secret.db", "disk I/O error"))
    assert b"secret" not in response.body
    assert b"I/O" not in response.body
    assert int(response.header("Retry-After") or "") >= 1


def test_an_invalid_payload_names_the_fields() -> None:
    issues = [FieldIssue.at(("rows", 0, "name"), "is missing"), FieldIssue("", "is odd")]
    document = written(problem_of(InvalidPayload(issues)))
    assert document["errors"] == [
        {"field": "rows.0.name", "message": "is missing"},
        {"field": "", "message": "is odd"},
    ]


def test_a_problem_may_have_additional_headers_and_members() -> None:
    response = problem(HTTPStatus.GONE, "gone", "It is gone.", headers=(("X", "y"),), jobId="1")
    assert response.header("x") == "y"
    assert written(response) == {
        "type": "about:blank",
        "title": "Gone",
        "status": 410,
        "detail": "It is gone.",
        "error": "It is gone.",
        "code": "gone",
        "jobId": "1",
    }


@pytest.mark.parametrize("code", ["timeout", "deadline_exceeded", "worker_lost", "429", "408"])
def test_a_failed_job_is_never_answered_by_a_status_that_clients_retry(
    job_of_each_status: dict[JobStatus, Job], code: str
) -> None:
    error = JobError(code=code, message="It went wrong.")
    job = job_of_each_status[JobStatus.FAILED].model_copy(update={"error": error})
    response = no_result(job)
    assert response.status == 424
    assert response.header("retry-after") is None
    assert written(response)["code"] == code
    assert written(response)["detail"] == "It went wrong."


def test_the_result_of_a_cancelled_job_is_gone(job_of_each_status: dict[JobStatus, Job]) -> None:
    response = no_result(job_of_each_status[JobStatus.CANCELLED])
    assert response.status == 410
    assert written(response)["code"] == "job_cancelled"


def sections_of(page: Path) -> list[str]:
    return re.findall(r"^## (\S+)$", page.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("code", sorted(CODES))
def test_the_type_of_each_code_is_a_section_of_the_documentation(code: str) -> None:
    address = urlsplit(str(written(problem(HTTPStatus.GONE, code, "It is gone."))["type"]))
    documentation = f"{address.scheme}://{address.netloc}/en/stable/"
    assert PROJECT["urls"]["Documentation"] == documentation
    page = address.path.removeprefix("/en/stable/").removesuffix(".html")
    assert sections_of(ROOT / f"docs/{page}.md").count(address.fragment) == 1
    assert address.fragment == code


def test_the_documentation_has_no_section_of_an_unknown_code() -> None:
    sections = sections_of(ROOT / "docs/reference/problems.md")
    assert set(sections) == CODES


@pytest.mark.parametrize("code", ["disk_full", "job_not_found", "job_cancelled"])
def test_a_code_chosen_by_a_handler_has_no_type(
    job_of_each_status: dict[JobStatus, Job], code: str
) -> None:
    error = JobError(code=code, message="It went wrong.")
    job = job_of_each_status[JobStatus.FAILED].model_copy(update={"error": error})
    document = written(no_result(job))
    assert (document["type"], document["code"]) == ("about:blank", code)
