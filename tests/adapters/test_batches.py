"""Routes of an application submit batches, and clients follow and cancel them by one URL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import EnqueueOptions
from asyncjobs.http.documents import AcceptedDocument, JobDocument
from tests.adapters.test_every_framework import TERMINAL, first
from tests.waiting import until_sync

pytestmark = pytest.mark.every_store

OpenSite = Callable[..., AbstractContextManager[Any]]

HTML = {"Accept": "text/html"}


def submit(client: httpx2.Client, *counts: int, **more: Any) -> dict[str, Any]:
    orders = [{"count": count, "note": "x"} for count in counts]
    answer = client.post("/batch", json=orders, **more)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    AcceptedDocument.model_validate(document)
    return document


def test_a_batch_has_one_url_with_its_numbers(client: httpx2.Client) -> None:
    accepted = submit(client, 1, 2, 3)
    done = first(client, accepted["statusUrl"], *TERMINAL)
    JobDocument.model_validate(done)
    assert (done["status"], done["type"], done["title"]) == (
        "completed",
        "asyncjobs.batch",
        "Orders",
    )
    assert done["batch"] == {
        "total": 3,
        "pending": 0,
        "processing": 0,
        "completed": 3,
        "failed": 0,
        "cancelled": 0,
        "failures": [],
    }
    assert "batchId" not in done
    answer = client.get(accepted["resultUrl"])
    assert answer.json() == {"total": 3, "completed": 3}


def test_a_repeated_submission_with_a_key_is_the_same_batch(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": '"a key of a batch"'}
    one, again = (submit(client, 1, 2, headers=key) for _ in range(2))
    assert one["jobId"] == again["jobId"]
    conflict = client.post("/batch", json=[{"count": 1, "note": "y"}], headers=key)
    assert (conflict.status_code, conflict.json()["code"]) == (422, "idempotency_conflict")


def test_an_empty_batch_is_completed(client: httpx2.Client) -> None:
    accepted = submit(client)
    done = first(client, accepted["statusUrl"], *TERMINAL)
    assert (done["status"], done["batch"]["total"]) == ("completed", 0)


def test_a_batch_whose_jobs_go_on_is_cancelled(open_site: OpenSite) -> None:

    with open_site() as site:
        options = EnqueueOptions(run_at=3600)
        batch = site.jobs.sync.enqueue_batch(
            "double", [{"count": 1}, {"count": 2}], options=options
        )
        url = f"/api/jobs/{batch.id}"
        page = site.client.get(url, headers=HTML)
        assert ">Batch<" in page.text
        assert '<span part="jobs-pending">2</span>' in page.text
        answer = site.client.post(f"{url}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "processing")
        assert first(site.client, url, *TERMINAL)["batch"]["cancelled"] == 2
        assert '<span part="jobs-cancelled">2</span>' in site.client.get(url, headers=HTML).text


def test_the_jobs_of_a_batch_are_listed_to_their_owner(open_site: OpenSite) -> None:
    def identify(*_: Any) -> str:
        return "ann"

    with open_site(identify=identify) as site:
        accepted = submit(site.client, 1, 2, 3)
        other = submit(site.client, 1, params={"owner": "bob"})
        first(site.client, accepted["statusUrl"], *TERMINAL)
        ids = _listed(site.client, accepted["jobId"])
        assert len(ids) == 3
        for job_id in ids:
            job = site.client.get(f"/api/jobs/{job_id}").json()
            assert job["batchId"] == accepted["jobId"]
            assert "batch" not in job
        assert _listed(site.client, other["jobId"]) == []
        assert site.client.get(other["statusUrl"]).status_code == 404
        many = site.client.get(f"/api/jobs?batch={accepted['jobId']}{'&a=1' * 60}")
        assert (many.status_code, many.json()["code"]) == (400, "invalid_query")
        wrong = site.client.get("/api/jobs?batch=1")
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_query")


def _listed(client: httpx2.Client, batch: str) -> list[str]:
    found: list[str] = []
    url: str | None = f"/api/jobs?batch={batch}&limit=2"
    while url is not None:
        page = client.get(url).json()
        found += [job["jobId"] for job in page["jobs"]]
        url = page["next"]
    return found


def test_events_show_the_numbers_as_they_change(open_site: OpenSite) -> None:
    with open_site() as site:
        accepted = submit(site.client, *range(1, 30))
        with site.client.stream("GET", accepted["eventsUrl"]) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data:")]
        assert '"completed":29' in lines[-1]
        until_sync(lambda: site.client.get(accepted["statusUrl"]).json()["status"] == "completed")
