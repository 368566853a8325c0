"""The export on each framework, over real HTTP, from the submission to the download."""

from __future__ import annotations

import csv
import io
import json
import time
import unicodedata
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs.core.job import new_job_id

pytestmark = pytest.mark.every_store(without="memory")

Serve = Callable[..., AbstractContextManager[httpx2.Client]]

UVICORN = ("uvicorn", "--app-dir", "{examples}", "--port", "{port}")
SERVERS = {
    "fastapi": (*UVICORN, "fastapi_app:app"),
    "starlette": (*UVICORN, "starlette_app:app"),
    "flask": ("flask", "--app", "{examples}/flask_app.py", "run", "--port", "{port}"),
}

CATEGORY = "Nl"
EXPECTED = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == CATEGORY]


@pytest.fixture(scope="session", params=SERVERS)
def export_app(request: pytest.FixtureRequest) -> Sequence[str]:
    return SERVERS[request.param]


@pytest.fixture
def client(serve: Serve, export_app: Sequence[str]) -> Generator[httpx2.Client]:
    with serve(export_app) as client:
        yield client


def export(client: httpx2.Client, **wanted: str) -> dict[str, Any]:
    answer = client.post("/api/exports", json=wanted)
    assert answer.status_code == 202, answer.text
    patience = time.monotonic() + 30
    while True:
        job: dict[str, Any] = client.get(answer.json()["statusUrl"]).raise_for_status().json()
        if job["status"] not in {"pending", "processing"}:
            return job
        assert time.monotonic() < patience, job


def rows_of(text: str, suffix: str) -> list[dict[str, Any]]:
    if suffix == "csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines()]


def test_an_export_is_made_followed_and_downloaded(client: httpx2.Client) -> None:
    for suffix in ("csv", "jsonl"):
        job = export(client, format=suffix, category=CATEGORY)
        assert (job["status"], job["progress"]) == ("completed", 100), job
        total = len(EXPECTED)
        assert job["detail"]["current"] == job["detail"]["total"] == total
        result = job["result"]
        download = client.get(result["download_url"]).raise_for_status()
        assert "attachment" in download.headers["content-disposition"]
        assert [file["url"] for file in job["files"]] == [result["download_url"]]
        assert len(download.content) == result["size"]
        rows = rows_of(download.content.decode(), suffix)
        assert len(rows) == result["rows"] == total
        assert [row["character"] for row in rows] == EXPECTED
        assert [row["name"] for row in rows] == [unicodedata.name(one, "") for one in EXPECTED]

    refused = client.post("/api/exports", json={"format": "xml", "category": "no"})
    assert refused.status_code == 422
    fields = [issue["field"] for issue in refused.json()["errors"]]
    assert fields == ["format", "category"]

    empty = export(client, category="Xx")
    assert (empty["status"], empty["errorCode"]) == ("failed", "empty_export")

    for path in (f"{empty['jobId']}/files/nothing.csv", f"{new_job_id()}/files/characters.csv"):
        assert client.get(f"/api/jobs/{path}").status_code == 404
