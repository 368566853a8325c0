"""Routes of an application retry jobs and batches, and answer as for a submission."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import JobId, Tokens
from asyncjobs.http.documents import AcceptedDocument
from tests.adapters.test_every_framework import TERMINAL, first

pytestmark = pytest.mark.every_store

OpenSite = Callable[..., AbstractContextManager[Any]]

ALICE, BOB = {"X-User": "alice"}, {"X-User": "bob"}


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    def identify(request: Any) -> Any:
        return request.headers.get("X-User")

    with open_site(identify=identify, tokens=Tokens("k" * 32)) as opened:
        yield opened


def submitted(site: Any, path: str, body: Any) -> dict[str, Any]:
    """Return the 202 of a job of Alice that has ended."""
    answer = site.client.post(path, json=body, headers=ALICE)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    with httpx2.Client(base_url=site.url, headers=ALICE) as client:
        first(client, document["statusUrl"], *TERMINAL)
    return document


@pytest.mark.parametrize("path", ["/submit/full", "/batch"])
def test_a_retry_is_answered_like_a_submission(site: Any, path: str) -> None:
    order = {"count": 1, "note": "x"}
    if path == "/batch":
        batch = submitted_failing_batch(site)
        old = {"jobId": batch}
    else:
        old = submitted(site, path, order)
    one, again = (site.client.post(f"/retry/{old['jobId']}", headers=ALICE) for _ in range(2))
    assert (one.status_code, again.status_code) == (202, 202), one.text
    document = one.json()
    AcceptedDocument.model_validate(document)
    url = document["statusUrl"]
    assert document["jobId"] != old["jobId"]
    assert url == f"/api/jobs/{document['jobId']}"
    assert one.headers["Location"] == f"{url}/result"
    assert one.headers["Link"] == f'<{url}>; rel="monitor"'
    assert one.headers["Operation-Location"] == f"{site.url}{url}/operation"
    assert int(one.headers["Retry-After"]) > 0
    assert one.headers["Cache-Control"] == "no-store"
    assert document["tokenUrl"] == f"{url}/token"
    by_token = {"Authorization": f"Bearer {document['token']}"}
    assert site.client.get(url, headers=by_token).json()["jobId"] == document["jobId"]
    assert again.json()["jobId"] == document["jobId"]


def submitted_failing_batch(site: Any) -> JobId:
    made = site.call(_enqueue_failing_batch, site.jobs)
    with httpx2.Client(base_url=site.url, headers=ALICE) as client:
        first(client, f"/api/jobs/{made}", *TERMINAL)
    return JobId(made)


async def _enqueue_failing_batch(jobs: Any) -> str:
    batch = await jobs.enqueue_batch("full", [{"count": 1}, {"count": 2}], user_id="alice")
    return str(batch.id)


def test_a_retry_that_is_held_shows_the_ended_job(site: Any) -> None:
    old = submitted(site, "/submit/full", {"count": 1})
    wished = {**ALICE, "Prefer": "wait=20"}
    answer = site.client.post(f"/retry/{old['jobId']}", headers=wished)
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=20")
    shown = answer.json()
    assert (shown["status"], shown["errorCode"]) == ("failed", "disk_full")
    assert shown["tokenUrl"] == f"/api/jobs/{shown['jobId']}/token"


def test_a_retry_waits_as_long_as_a_submission_of_its_type(site: Any) -> None:
    answer = site.client.post("/submit/inline", json={"count": 2}, headers=ALICE)
    old = answer.json()["jobId"]
    retried = site.client.post(f"/retry/{old}", headers=ALICE)
    assert (answer.status_code, retried.status_code) == (200, 200)
    assert (retried.json()["result"], retried.json()["jobId"] == old) == (4, False)


def test_a_job_of_another_owner_is_not_retried(site: Any) -> None:
    old = submitted(site, "/submit/full", {"count": 1})
    for caller in (BOB, {}):
        answer = site.client.post(f"/retry/{old['jobId']}", headers=caller)
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    unknown = site.client.post("/retry/job_x", headers=ALICE)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "job_not_found")


def test_a_job_that_has_not_ended_is_not_retried(site: Any) -> None:
    going_on = site.client.post("/submit/outside", json={"count": 1}, headers=ALICE).json()
    answer = site.client.post(f"/retry/{going_on['jobId']}", headers=ALICE)
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_move")
