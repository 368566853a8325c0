"""The curl binary, as people type it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until_sync

pytestmark = pytest.mark.every_store

DOCS = Path(__file__).parents[2] / "docs"

Curl = Callable[..., str]


@pytest.fixture
def curl(tmp_path: Path) -> Curl:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("There is no curl on the PATH.")

    def run(*arguments: str) -> str:
        command = [program, "--silent", "--show-error", "--max-time", "120", *arguments]
        said = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=180
        )
        return said.stdout

    return run


def test_curl_shows_events_as_they_come(served: Any, curl: Curl) -> None:
    job = served.submit("double", count=21)
    text = curl("-N", job.events_url)
    assert text.startswith("retry: 1000\n\n")
    last = text.rstrip().rpartition("\n\n")[2]
    number, _, data = last.partition("\ndata: ")
    assert number.startswith("id: ")
    assert json.loads(data)["result"] == {"doubled": 42}


def test_curl_gets_the_result_with_the_submission(served: Any, curl: Curl) -> None:
    status = ("--write-out", "\n%{http_code} %header{preference-applied}")
    wait = ("-H", "Prefer: wait=10", "--json", '{"count": 21}')
    body, _, said = curl(*status, *wait, f"{served.url}/double").rpartition("\n")
    assert said == "200 wait=10"
    assert json.loads(body)["result"] == {"doubled": 42}


def test_the_loop_of_the_docs_ends_with_the_job(served: Any, gate: Any, tmp_path: Path) -> None:
    page = (DOCS / "howto" / "follow-a-job-from-the-shell.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\nurl=\S+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = gate.document["statusUrl"]
    before = len(served.requests(path))
    looping = subprocess.Popen(
        ["bash", "-c", script],  # noqa: S607  # as its reader finds it
        cwd=tmp_path,
        env={**os.environ, "url": gate.status_url},
        stdout=subprocess.PIPE,
        text=True,
    )
    until_sync(lambda: len(served.requests(path)) > before)
    gate.release()
    said, _ = looping.communicate(timeout=120)
    assert looping.returncode == 0
    assert json.loads(said)["result"] == {"opened": gate.name}


def test_curl_gets_304_for_a_known_etag(served: Any, curl: Curl) -> None:
    job = served.submit("double", count=21)
    job.until(status="completed")
    for url in (job.status_url, f"{job.status_url}/result"):
        tag = ("--etag-save", "tag", "--write-out", "%{http_code} %{size_download}")
        first = curl(*tag, "--output", "body", url)
        again = curl("--etag-compare", "tag", *tag[2:], "--output", "body", url)
        assert first.startswith("200 ")
        assert again == "304 0"


def test_curl_shows_a_problem_or_fails(served: Any, curl: Curl) -> None:
    job = served.submit("full")
    job.until(status="failed")
    url = f"{job.status_url}/result"
    body, _, said = curl("--write-out", "\n%{http_code} %{content_type}", url).rpartition("\n")
    assert said == "424 application/problem+json"
    problem = json.loads(body)
    assert (problem["error"], problem["code"]) == ("The disk is full.", "disk_full")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        curl("--fail", url)
    assert failed.value.returncode == 22
