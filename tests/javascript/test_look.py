"""The script renders a job exactly as the server does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from itertools import product
from pathlib import Path

from asyncjobs import Job, JobStatus
from asyncjobs.core.job import Detail
from asyncjobs.http.documents import JobDocument
from asyncjobs.http.messages import Request
from asyncjobs.http.mounts import Mount
from asyncjobs.http.pages import status_page
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW

Node = Callable[..., str]

PARTS = ("status", "percent", "message", "count", "elapsed")
DETAILS = (
    None,
    Detail(message="writing"),
    Detail(total=9),
    Detail(current=0, unit="rows"),
    Detail(current=16842, total=40100, unit="rows"),
    Detail(current=40100, total=40100),
)

# The page's elements that `paint` and `timed` use.
SHOW = """
import { readFileSync } from "node:fs";
import { paint, timed } from "./client/look.js";
const node = () => ({ dataset: {}, textContent: "", removeAttribute() {} });
const names = ["root", "bar", "status", "percent", "message", "count", "error", "note"];
const shown = JSON.parse(readFileSync(process.argv[1])).map(([job, now]) => {
  const parts = Object.fromEntries(names.map((name) => [name, node()]));
  paint(parts, job);
  const texts = ["status", "percent", "message", "count"].map((name) => parts[name].textContent);
  return [...texts, timed(job, Date.parse(now))];
});
console.log(JSON.stringify(shown));
"""


def jobs() -> list[Job]:
    """Return jobs of each status, with and without progress, detail and estimate."""
    made: list[Job] = []
    estimates = (None, timedelta(seconds=0.009), timedelta(seconds=89.2), timedelta(hours=2))
    for status, detail, estimate in product(JobStatus, DETAILS, estimates):
        for progress, asked in ((0, None), (42, None), (42, NOW)):
            changes: dict[str, object] = {
                "status": status,
                "progress": progress,
                "detail": detail,
                "estimated_duration": estimate,
                "cancel_requested_at": asked,
                "started_at": NOW,
                "completed_at": NOW + timedelta(seconds=7380.5) if status.terminal else None,
            }
            made.append(sample_job().model_copy(update=changes))
    return made


def test_the_script_shows_what_the_server_shows(node: Node, tmp_path: Path) -> None:
    now = NOW + timedelta(seconds=75)
    rendered: list[list[str]] = []
    given: list[tuple[object, str]] = []
    for job in jobs():
        if job.status is JobStatus.PENDING and job.cancel_requested_at is not None:
            continue  # such a job is cancelled at once
        links = Mount().links(Request("GET"), job.id)
        page = status_page(job, links, retry_after=2, now=now).body.decode()
        rendered.append([text_of(page, part) for part in PARTS])
        given.append((json.loads(JobDocument.encode(job)), now.isoformat()))
    (tmp_path / "jobs.json").write_text(json.dumps(given))
    shown = node("--input-type=module", "--eval", SHOW, str(tmp_path / "jobs.json"))
    assert json.loads(shown) == rendered
    assert len(rendered) > 200


def text_of(page: str, part: str) -> str:
    found = re.search(rf'<(?:p|span) part="{part}"[^>]*>([^<]*)</', page)
    assert found is not None, part
    return unescape(found[1])
