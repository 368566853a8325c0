"""The example of titles, tags, files, batches and schedules, over real HTTP on each store."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from tests.everywhere import SERVERS
from tests.waiting import until_sync

pytestmark = pytest.mark.every_store(without="memory")

Serve = Callable[..., AbstractContextManager[httpx2.Client]]

UVICORN = ("uvicorn", "--app-dir", "{examples}", "--port", "{port}", "customers_app:app")
ANN, BOB = {"X-Customer": "ann"}, {"X-Customer": "bob"}


@pytest.fixture
def client(
    serve: Serve, store_kind: str, new_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Generator[httpx2.Client]:
    if store_kind in SERVERS:
        monkeypatch.setenv("CUSTOMERS_STORE", new_url())
    with serve(UVICORN) as client:
        yield client


def ended(client: httpx2.Client, url: str) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        return client.get(url, headers=ANN).raise_for_status().json()  # type: ignore[no-any-return]

    until_sync(lambda: read()["status"] not in {"pending", "processing"})
    return read()


def submitted(client: httpx2.Client, path: str, body: object) -> str:
    answer = client.post(path, json=body, headers=ANN)
    assert answer.status_code == 202, answer.text
    url: str = answer.json()["statusUrl"]
    return url


def listed(client: httpx2.Client, headers: Mapping[str, str], **query: str) -> list[str]:
    jobs = client.get("/api/jobs", params=query, headers=headers).raise_for_status().json()["jobs"]
    return [job["title"] for job in jobs]


def test_an_export_has_a_title_a_tag_metadata_and_a_file_for_its_owner(
    client: httpx2.Client,
) -> None:
    url = submitted(client, "/api/exports", {"rows": 500})
    job = ended(client, url)
    assert (job["status"], job["title"]) == ("completed", "500 rows for ann")
    assert (job["tags"], job["metadata"]) == (["exports"], {"plan": "basic", "rows": 500})
    assert listed(client, ANN, tag="exports") == ["500 rows for ann"]
    assert listed(client, ANN, tag="invoices") == listed(client, BOB, tag="exports") == []
    [file] = job["files"]
    download = f"{url}/{job['result']['download_url']}"
    found = client.get(download, headers=ANN)
    assert found.text.splitlines()[-1] == "499,249001"
    assert (file["name"], file["size"]) == ("squares.csv", len(found.content))
    part = client.get(download, headers={**ANN, "Range": "bytes=-7"})
    assert (part.status_code, part.text) == (206, "249001\n")
    assert client.get(download, headers=BOB).status_code == 404


def test_a_batch_has_one_status_with_its_counts_and_first_failures(client: httpx2.Client) -> None:
    url = submitted(client, "/api/invoices", list(range(1, 31)))
    batch = ended(client, url)
    assert (batch["status"], batch["title"]) == ("failed", "30 invoices")
    counts = batch["batch"]
    assert (counts["total"], counts["completed"], counts["failed"]) == (30, 29, 1)
    [failure] = counts["failures"]
    assert failure["error"] == "The printer is superstitious."
    assert failure["errorCode"] == "printer_refused"
    [member] = client.get(
        "/api/jobs", params={"batch": batch["jobId"], "status": "failed"}, headers=ANN
    ).json()["jobs"]
    assert member["jobId"] == failure["jobId"]


def test_a_schedule_runs_while_the_application_is_up(client: httpx2.Client) -> None:
    def read() -> dict[str, Any]:
        [found] = client.get("/api/schedules").raise_for_status().json()
        return found  # type: ignore[no-any-return]

    until_sync(lambda: read()["last"] is not None)
    schedule = read()
    assert schedule["name"] == "statistics"
    assert schedule["last"] < schedule["next"]
    # Its jobs have no owner, so no customer sees them.
    assert listed(client, ANN) == []
    assert client.get("/api/jobs").status_code == 401
