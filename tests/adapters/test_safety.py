"""Cross-site requests change nothing, and no route reveals secrets."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from asyncjobs import JobId
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.http.routes import ROUTES
from tests.waiting import until_sync

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

APP = "https://app.example.com"
OWN = "https://api.example.com"
HTML = "<!doctype html><script>alert(document.domain)</script>"

FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": f"{APP}:444", "Sec-Fetch-Site": "cross-site"},
]
TRUSTED: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
    {"Origin": OWN, "Sec-Fetch-Site": "cross-site"},
]
UNSAFE = [("POST", "/cancel"), ("DELETE", "")]
SAFE = [route.suffix for route in ROUTES if route.method == "GET"]
ALICE = {"X-User": "alice"}


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    """An application that trusts one other site and knows its own origin."""
    options = MountOptions(origins=(APP,), max_stream_duration=0.2)
    with open_site(options=options, base_url=OWN, identify=by_header) as opened:
        opened.client.headers.update(ALICE)
        yield opened


def submit(site: Any, kind: str = "outside", note: str = "", **more: Any) -> JobId:
    answer = site.client.post(f"/submit/{kind}", json={"count": 1, "note": note}, **more)
    assert answer.status_code == 202, answer.text
    return JobId(answer.json()["jobId"])


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_read_but_neither_submit_nor_cancel(
    site: Any, headers: dict[str, str]
) -> None:
    job_id = submit(site)
    before = site.client.get("/api/jobs").json()["jobs"][:1]
    asked = [(method, f"/api/jobs/{job_id}{suffix}") for method, suffix in UNSAFE]
    for method, url in [*asked, ("POST", "/submit/outside")]:
        answer = site.client.request(method, url, json={"count": 1}, headers=headers)
        assert answer.status_code == 403
        assert ProblemDocument.model_validate_json(answer.content).code == "cross_site"
    assert site.client.get("/api/jobs", headers=headers).json()["jobs"][:1] == before
    assert site.call(site.jobs.find, job_id).status == "pending"


@pytest.mark.parametrize("headers", TRUSTED)
def test_own_and_listed_sites_submit_and_cancel(site: Any, headers: dict[str, str]) -> None:
    for method, suffix in UNSAFE:
        url = f"/api/jobs/{submit(site, headers=headers)}{suffix}"
        assert site.client.request(method, url, headers=headers).status_code == 200


def test_the_host_of_the_request_is_a_trusted_site(site: Any) -> None:
    host = site.url.partition("://")[2]
    # Behind a proxy that terminates TLS the server does not know the scheme.
    for headers in ({"Origin": site.url}, {"Origin": f"https://{host}"}):
        assert site.client.delete(f"/api/jobs/{submit(site)}", headers=headers).status_code == 200


def test_a_result_is_never_rendered_as_a_page(site: Any) -> None:
    job_id = submit(site)
    site.call(site.jobs.complete, job_id, HTML)
    answer = site.client.get(f"/api/jobs/{job_id}/result", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.json()) == (200, HTML)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def everything(site: Any, job_id: JobId) -> str:
    """Read a job on every route, cancel it at last, and return all bytes that were sent."""
    url = f"/api/jobs/{job_id}"
    answers = [site.client.get("/api/jobs"), site.client.get(url, headers={"Accept": "text/html"})]
    answers += [site.client.get(url + suffix.format(name="log")) for suffix in SAFE]
    answers += [site.client.request(method, url + suffix) for method, suffix in UNSAFE]
    # The job has no file: 404.
    assert {answer.status_code for answer in answers} <= {200, 202, 404, 410, 424}
    sent = [f"{one.headers} {one.text}" for one in answers]
    socket = f"{site.url.replace('http', 'ws')}/ws/jobs/{job_id}"
    with connect(socket, additional_headers=ALICE) as opened:
        try:
            while True:
                sent.append(str(opened.recv(timeout=5)))
        except ConnectionClosed:
            return "".join(sent)


def settled(site: Any, job_id: JobId) -> bool:
    """Return whether a job has reached its expected final state."""
    job = site.call(site.jobs.find, job_id)
    return bool(job.progress or job.status.terminal or job.type == "outside")


@pytest.mark.parametrize("kind", ["double", "broken", "gate", "outside"])
def test_no_route_sends_a_secret(site: Any, kind: str) -> None:
    note, key = f"payload-{uuid.uuid4()}", f"key-{uuid.uuid4()}"
    job_id = submit(site, kind, note, headers={"Idempotency-Key": key})
    until_sync(lambda: settled(site, job_id))
    lease = site.call(site.jobs.find, job_id).lease
    assert (lease is not None) == (kind == "gate")
    sent = everything(site, job_id)
    assert str(job_id) in sent
    secrets = [note, key, "alice", "Traceback", "RuntimeError", "conftest"]
    secrets += [lease.token, lease.worker] if lease else []
    raised = site.call(site.jobs.find, job_id).attempt_errors
    assert [error.message for error in raised] == ([f"it holds {note}"] if kind == "broken" else [])
    secrets += [part for error in raised for part in (error.type, error.message, "it holds")]
    assert [secret for secret in secrets if secret in sent] == []
