"""curl prints events, and the polling loop of the docs works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until_sync

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def test_curl_shows_events_as_they_come(served: Any) -> None:
    job = served.submit("double", count=21)
    command = ["curl", "--silent", "--show-error", "--no-buffer", job.events_url]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert text.startswith("retry: 1000\n\n")
    number, _, data = text.rstrip().rpartition("\n\n")[2].partition("\ndata: ")
    assert number.startswith("id: ")
    assert json.loads(data)["result"] == {"doubled": 42}


def test_the_polling_loop_of_the_docs_ends_with_the_job(
    served: Any, gate: Any, tmp_path: Path
) -> None:
    page = (DOCS / "howto" / "follow-a-job-from-the-shell.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\nurl=\S+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = gate.document["statusUrl"]
    before = len(served.requests(path))
    looping = subprocess.Popen(
        ["bash", "-c", script],  # noqa: S607  # as a reader runs it
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
