"""Pages of other sites change nothing, and what is nobody's business leaves by no route."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from asyncjobs import JobId
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.http.routes import ROUTES

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

APP = "https://app.example.com"
OWN = "https://api.example.com"
EVIL = "https://evil.example"
HTML = "<!doctype html><script>alert(document.domain)</script>"

FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    {"Sec-Fetch-Site": "what"},
    {"Sec-Fetch-Site": ""},
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "nonsense"},
    {"Origin": f"{APP}.evil.example"},
    {"Origin": APP.replace("https", "http")},
    {"Origin": f"{APP}:444", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://127.0.0.1:1"},
]
OUR_OWN: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": APP},
    {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
    {"Origin": APP.upper(), "Sec-Fetch-Site": "same-site"},
    {"Origin": OWN},
    {"Origin": OWN, "Sec-Fetch-Site": "cross-site"},
]
UNSAFE = [("POST", "/cancel"), ("DELETE", "")]
SAFE = [route.suffix for route in ROUTES if route.method == "GET"]
WHO = {"X-User": "alice"}


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    """An application that trusts one other site, and says what its own origin is."""
    options = MountOptions(origins=(APP,), max_stream_duration=0.2)
    with open_site(options=options, base_url=OWN, identify=by_header) as opened:
        opened.client.headers.update(WHO)
        yield opened


def submit(site: Any, kind: str = "outside", note: str = "", **more: Any) -> JobId:
    answer = site.client.post(f"/submit/{kind}", json={"count": 1, "note": note}, **more)
    assert answer.status_code == 202, answer.text
    return JobId(answer.json()["jobId"])


def refused(answer: httpx2.Response) -> None:
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert ProblemDocument.model_validate_json(answer.content).code == "cross_site"


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(("method", "suffix"), UNSAFE)
def test_a_page_of_another_site_cancels_nothing(
    site: Any, method: str, suffix: str, headers: dict[str, str]
) -> None:
    job_id = submit(site)
    refused(site.client.request(method, f"/api/jobs/{job_id}{suffix}", headers=headers))
    assert site.call(site.jobs.find, job_id).status == "pending"


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_submits_nothing(site: Any, headers: dict[str, str]) -> None:
    before = site.client.get("/api/jobs").json()["jobs"][:1]
    refused(site.client.post("/submit/outside", json={"count": 1}, headers=headers))
    assert site.client.get("/api/jobs").json()["jobs"][:1] == before


@pytest.mark.parametrize("headers", OUR_OWN)
def test_who_is_of_this_site_or_of_a_listed_one_may(site: Any, headers: dict[str, str]) -> None:
    for method, suffix in UNSAFE:
        url = f"/api/jobs/{submit(site, headers=headers)}{suffix}"
        assert site.client.request(method, url, headers=headers).status_code == 200


def test_the_host_that_was_asked_is_of_this_site(site: Any) -> None:
    host = site.url.partition("://")[2]
    # Behind a proxy that ends TLS the server does not know the scheme.
    for headers in ({"Origin": site.url}, {"Origin": f"https://{host}"}):
        assert site.client.delete(f"/api/jobs/{submit(site)}", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_to_read_is_never_refused(site: Any, method: str, headers: dict[str, str]) -> None:
    job_id = submit(site)
    site.call(site.jobs.complete, job_id, "done")
    urls = ["/api/jobs", *(f"/api/jobs/{job_id}{suffix}" for suffix in SAFE)]
    answers = [site.client.request(method, url, headers=headers) for url in urls]
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_a_result_is_never_shown_as_a_page_of_ours(site: Any, accept: str) -> None:
    job_id = submit(site)
    site.call(site.jobs.complete, job_id, HTML)
    answer = site.client.get(f"/api/jobs/{job_id}/result", headers={"Accept": accept})
    assert (answer.status_code, answer.json()) == (200, HTML)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("how", ["result", "error", "message"])
def test_what_a_job_says_is_no_markup_of_the_page(site: Any, how: str) -> None:
    job_id = submit(site)
    move = {
        "result": (site.jobs.complete, job_id, HTML),
        "error": (site.jobs.fail, job_id, HTML),
        "message": (site.jobs.update_progress, job_id, 5, HTML),
    }
    site.call(*move[how])
    page = site.client.get(f"/api/jobs/{job_id}", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>alert" not in page.text


def everything(site: Any, job_id: JobId) -> str:
    """Read a job by every route, and in the end cancel it; return all that came."""
    url = f"/api/jobs/{job_id}"
    answers = [site.client.get("/api/jobs"), site.client.get(url, headers={"Accept": "text/html"})]
    answers += [site.client.get(url + suffix) for suffix in SAFE]
    answers += [site.client.request(method, url + suffix) for method, suffix in UNSAFE]
    assert {answer.status_code for answer in answers} <= {200, 202, 410, 424}
    return "".join([*(f"{one.headers} {one.text}" for one in answers), *said(site, job_id)])


def said(site: Any, job_id: JobId) -> list[str]:
    url = f"{site.url.replace('http', 'ws')}/ws/jobs/{job_id}"
    words: list[str] = []
    with connect(url, additional_headers=WHO) as opened:
        try:
            while True:
                words.append(str(opened.recv(timeout=5)))
        except ConnectionClosed:
            return words


def under_way(site: Any, job_id: JobId) -> bool:
    """Tell whether a job has come to where it stays."""
    job = site.call(site.jobs.find, job_id)
    return bool(job.progress or job.status.terminal or job.type == "outside")


@pytest.mark.parametrize("kind", ["double", "broken", "gate", "outside"])
def test_what_is_nobodys_business_leaves_by_no_route(
    site: Any, kind: str, eventually: Callable[..., None]
) -> None:
    note, key = f"payload-{uuid.uuid4()}", f"key-{uuid.uuid4()}"
    job_id = submit(site, kind, note, headers={"Idempotency-Key": key})
    eventually(lambda: under_way(site, job_id))
    lease = site.call(site.jobs.find, job_id).lease
    assert (lease is not None) == (kind == "gate")
    came = everything(site, job_id)
    assert str(job_id) in came
    worker: str = site.jobs._engine.runner._worker
    secrets = [note, key, worker, "alice", "Traceback", "RuntimeError", "conftest"]
    secrets += [lease.token, lease.worker] if lease else []
    assert [secret for secret in secrets if secret in came] == []
