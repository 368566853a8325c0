"""Every framework gives clients the same answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs, Policy, handler
from asyncjobs.core.job import new_job_id
from asyncjobs.http.documents import AcceptedDocument, JobDocument
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.http.security import PollLimit
from tests.adapters.conftest import Order

pytestmark = pytest.mark.every_store

OpenSite = Callable[..., AbstractContextManager[Any]]

# Identical in every process: parameters become test ids.
NEVER = "job_8e03978e-40d5-43dd-bc93-6894a57f9324"
TERMINAL = {"completed", "failed", "cancelled"}
OF_TOKENS = {"token", "tokenUrl", "tokenExpiresAt"}
ONLY_SOMETIMES = {"batch", "batchId", "files", "outputs", *OF_TOKENS}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def submit(client: httpx2.Client, name: str, note: str = "", **more: Any) -> httpx2.Response:
    answer = client.post(f"/submit/{name}", json={"count": 21, "note": note}, **more)
    assert answer.status_code == 202, answer.text
    return answer


def url_of(client: httpx2.Client, name: str, note: str = "", **more: Any) -> str:
    url: str = submit(client, name, note, **more).json()["statusUrl"]
    return url


def watch(client: httpx2.Client, url: str) -> Iterator[dict[str, Any]]:
    patience = time.monotonic() + 10
    while time.monotonic() < patience:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield answer.json()
    pytest.fail("the job takes too long")


def first(client: httpx2.Client, url: str, *statuses: str) -> dict[str, Any]:
    return next(job for job in watch(client, url) if job["status"] in statuses)


def end_of(client: httpx2.Client, name: str, note: str = "") -> str:
    url = url_of(client, name, note)
    first(client, url, *TERMINAL)
    return url


def running(client: httpx2.Client) -> tuple[str, str]:
    """Start a job that runs until a note with the same text is released."""
    note = uuid.uuid4().hex
    url = url_of(client, "gate", note)
    next(job for job in watch(client, url) if job["progress"])
    return url, note


def problem_of(answer: httpx2.Response, status: int, code: str) -> ProblemDocument:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem = ProblemDocument.model_validate_json(answer.content)
    assert (problem.status, problem.code) == (status, code)
    return problem


def test_a_submission_is_answered_at_once_with_the_urls_of_its_job(open_site: OpenSite) -> None:
    with open_site() as site:  # the duration has not been learned yet
        answer = submit(site.client, "double")
    document = answer.json()
    AcceptedDocument.model_validate(document)
    url = f"/api/jobs/{document['jobId']}"
    assert document == {
        "status": "accepted",
        "jobId": document["jobId"],
        "statusUrl": url,
        "resultUrl": f"{url}/result",
        "eventsUrl": f"{url}/events",
        "cancelUrl": f"{url}/cancel",
        "estimatedDuration": 30,
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"{url}/result"
    assert answer.headers["operation-location"] == f"{site.url}{url}/operation"
    assert answer.headers["link"] == f'<{url}>; rel="monitor"'
    assert int(answer.headers["retry-after"]) in {3, 4, 6}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"headers": {"Content-Type": "application/json"}},
        {"content": b" ", "headers": {"Content-Type": "text/plain"}},
        {"content": b"null"},
        {"json": None},
        {"json": {}},
    ],
    ids=["nothing", "empty JSON", "blank", "undeclared null", "null", "empty object"],
)
def test_a_handler_without_payload_needs_no_body(
    client: httpx2.Client, request_body: dict[str, Any]
) -> None:
    answer = client.post("/submit/nightly", **request_body)
    assert answer.status_code == 202, answer.text
    url = answer.json()["statusUrl"]
    assert first(client, url, *TERMINAL)["result"] == "nightly"


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ({"json": 3}, 422, "invalid_payload"),
        ({"json": {"count": 1}}, 422, "invalid_payload"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed_body"),
        ({"content": b"hello"}, 415, "unsupported_media_type"),
    ],
)
def test_a_handler_without_payload_refuses_a_payload(
    client: httpx2.Client, request_body: dict[str, Any], status: int, code: str
) -> None:
    problem_of(client.post("/submit/nightly", **request_body), status, code)


def test_a_declared_handler_is_submitted_once_it_is_included(
    serve: Callable[..., AbstractContextManager[httpx2.Client]], new_url: Callable[[], str]
) -> None:
    @handler("declared")
    async def declared(order: Order) -> int:
        return order.count

    jobs = AsyncJobs(new_url(), policy=Policy(max_payload_bytes=50))
    with serve((jobs, {}), others=(declared,)) as client:
        jobs.include(declared)
        answer = client.post("/submit/declared", json={"count": 3})
        assert answer.status_code == 202, answer.text
        assert first(client, answer.json()["statusUrl"], *TERMINAL)["result"] == 3
        large = {"count": 3, "note": "x" * 50}
        assert client.post("/submit/declared", json=large).status_code == 413


def test_the_first_poll_finds_the_job(client: httpx2.Client) -> None:
    answers = [client.get(url_of(client, "double")) for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(("name", "result"), [("double", {"doubled": 42}), ("shout", "HEY")])
def test_a_job_is_followed_to_its_result(client: httpx2.Client, name: str, result: object) -> None:
    job = first(client, url_of(client, name, "hey"), *TERMINAL)
    JobDocument.model_validate(job)
    fields = {f.alias or n for n, f in JobDocument.model_fields.items()}
    assert job.keys() == fields - ONLY_SOMETIMES
    assert (job["status"], job["progress"], job["result"]) == ("completed", 100, result)
    assert job["createdAt"] <= job["startedAt"] <= job["completedAt"]
    answer = client.get(f"/api/jobs/{job['jobId']}/result")
    assert (answer.status_code, answer.json()) == (200, result)


@pytest.mark.parametrize("suffix", ["", "/result"])
def test_a_known_version_gets_304(client: httpx2.Client, suffix: str) -> None:
    url = end_of(client, "double") + suffix
    tag = client.get(url).headers["etag"]
    answer = client.get(url, headers={"If-None-Match": f'"0", W/{tag}'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == tag
    # RFC 9110 section 8.6: it would be the length of the content that is not sent.
    assert "content-length" not in answer.headers
    assert client.get(url, headers={"If-None-Match": '"0"'}).status_code == 200


def test_progress_can_be_seen_while_the_job_runs(client: httpx2.Client) -> None:
    url, note = running(client)
    answer = client.get(url)
    job = answer.json()
    assert (job["status"], job["progress"]) == ("processing", 40)
    assert job["detail"] == {"message": "waiting", "current": 2, "total": 5, "unit": "gates"}
    assert int(answer.headers["retry-after"]) in {3, 4, 6}
    tag = answer.headers["etag"]
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
    submit(client, "release", note)
    assert first(client, url, *TERMINAL)["status"] == "completed"
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 200


def test_the_result_of_a_running_job_is_its_status(client: httpx2.Client) -> None:
    url, note = running(client)
    answer = client.get(f"{url}/result")
    assert (answer.status_code, answer.json()["status"]) == (202, "processing")
    assert "retry-after" in answer.headers
    submit(client, "release", note)


def test_a_job_failure_shows_its_message_and_code(client: httpx2.Client) -> None:
    url = end_of(client, "full")
    job = client.get(url).json()
    assert (job["status"], job["error"], job["errorCode"]) == (
        "failed",
        "The disk is full.",
        "disk_full",
    )
    problem = problem_of(client.get(f"{url}/result"), 424, "disk_full")
    assert problem.error == "The disk is full."


def test_the_exception_of_a_handler_is_not_sent(client: httpx2.Client) -> None:
    url = end_of(client, "broken", "a secret")
    answers = [client.get(url), client.get(f"{url}/result")]
    assert [answer.status_code for answer in answers] == [200, 424]
    assert "a secret" not in "".join(answer.text for answer in answers)


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
def test_a_running_job_is_asked_to_stop(client: httpx2.Client, method: str, suffix: str) -> None:
    url, _ = running(client)
    answer = client.request(method, url + suffix)
    assert answer.status_code == 202
    assert answer.json()["cancelRequestedAt"] is not None
    job = first(client, url, *TERMINAL)
    assert job["status"] == "cancelled"
    problem_of(client.get(f"{url}/result"), 410, "job_cancelled")


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
def test_a_waiting_job_is_cancelled_at_once(
    client: httpx2.Client, method: str, suffix: str
) -> None:
    url = url_of(client, "double", params={"later": "1"})
    assert client.get(url).json()["status"] == "pending"
    answer = client.request(method, url + suffix)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    "job_id", [NEVER, "job_1", NEVER.upper(), "%00", "%FF", "a%2Fb", "x" * 3000, "é"]
)
@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("GET", "/result"), ("POST", "/cancel"), ("DELETE", "")]
)
def test_an_unknown_id_is_answered_404(
    client: httpx2.Client, method: str, suffix: str, job_id: str
) -> None:
    answer = client.request(method, f"/api/jobs/{job_id}{suffix}")
    assert problem_of(answer, 404, "job_not_found").error == "Job not found"


@pytest.mark.parametrize("path", ["{id}/nothing", "{id}/cancel/now"])
def test_an_unknown_path_below_a_job_is_not_found(client: httpx2.Client, path: str) -> None:
    url = "/api/jobs/" + path.format(id=new_job_id())
    for method in ("GET", "POST", "DELETE"):
        problem_of(client.request(method, url), 404, "job_not_found")


@pytest.mark.parametrize(
    ("method", "suffix", "allowed"),
    [
        ("PUT", "", "GET, HEAD, DELETE, OPTIONS"),
        ("PATCH", "", "GET, HEAD, DELETE, OPTIONS"),
        ("POST", "", "GET, HEAD, DELETE, OPTIONS"),
        ("TRACE", "", "GET, HEAD, DELETE, OPTIONS"),
        ("PROPFIND", "/events", "GET, HEAD, OPTIONS"),
        ("DELETE", "/result", "GET, HEAD, OPTIONS"),
        ("GET", "/cancel", "POST, OPTIONS"),
    ],
)
def test_another_method_gets_405_with_allow(
    client: httpx2.Client, method: str, suffix: str, allowed: str
) -> None:
    answer = client.request(method, f"/api/jobs/{new_job_id()}{suffix}")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_cancel_by_a_browser_redirects_to_the_page_without_a_body(client: httpx2.Client) -> None:
    url = end_of(client, "double")
    answer = client.post(f"{url}/cancel", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"], answer.content) == (303, url, b"")
    assert "content-type" not in answer.headers


def test_a_browser_gets_a_page_if_a_link_has_expired(client: httpx2.Client) -> None:
    answer = client.get(f"/api/jobs/{new_job_id()}", headers={"Accept": "text/html, */*;q=0.8"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "Job not found" in answer.text


# Headers that differ between servers or moments.
OF_THE_SERVER = {"date", "server", "connection", "transfer-encoding"}


@pytest.mark.parametrize("suffix", ["", "/result", "/events", "/operation", "/cancel", "/none"])
def test_head_is_get_without_the_body(client: httpx2.Client, suffix: str) -> None:
    url = end_of(client, "double") + suffix
    get, head = client.get(url), client.head(url)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {*head.headers.items()} ^ {*get.headers.items()} <= {
        (name, answer.headers[name])
        for answer in (get, head)
        for name in OF_THE_SERVER & answer.headers.keys()
    }


@pytest.mark.parametrize(("method", "suffix"), [("DELETE", ""), ("POST", "/cancel")])
def test_a_job_is_cancelled_only_at_the_version_of_if_match(
    client: httpx2.Client, method: str, suffix: str
) -> None:
    url = url_of(client, "outside")
    tag = client.get(url).headers["etag"]
    refused = client.request(method, url + suffix, headers={"If-Match": '"no-such-version"'})
    problem_of(refused, 412, "precondition_failed")
    assert refused.headers["etag"] == tag
    assert client.get(url, headers={"If-Match": tag}).json()["status"] == "pending"
    done = client.request(method, url + suffix, headers={"If-Match": tag})
    assert (done.status_code, done.json()["status"]) == (200, "cancelled")
    problem_of(client.get(url, headers={"If-Match": tag}), 412, "precondition_failed")


def test_the_trace_of_the_request_continues_in_the_job(client: httpx2.Client) -> None:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    assert client.get(url_of(client, "double", headers=headers)).json()["traceId"] == TRACE


def test_an_illegal_move_in_a_route_of_the_app_is_answered_409(client: httpx2.Client) -> None:
    url = end_of(client, "double")
    before = client.get(url)
    answer = client.post(url.replace("/api/jobs", "/repeat"))
    problem_of(answer, 409, "illegal_move")
    assert client.get(url).headers["etag"] == before.headers["etag"]


def test_an_unknown_job_in_a_route_of_the_app_is_answered_404(
    client: httpx2.Client,
) -> None:
    problem_of(client.post(f"/repeat/{new_job_id()}"), 404, "job_not_found")


def test_a_poll_limit_answers_429_with_retry_after(open_site: OpenSite) -> None:
    options = MountOptions(poll_limit=PollLimit(burst=1, interval=60))
    with open_site(options=options) as site:
        url = url_of(site.client, "outside")
        assert site.client.get(url).status_code == 200
        answer = site.client.get(url)
        problem_of(answer, 429, "too_many_polls")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
