"""What the documentation repeats from the code is what the code says."""

import json
import re
import runpy
from dataclasses import fields as fields_of
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import asyncjobs
from asyncjobs import (
    AsyncJobs,
    Detail,
    EnqueueOptions,
    Job,
    JobContext,
    JobError,
    Policy,
    Progress,
    Retry,
    Settings,
)
from asyncjobs.http.problems import STATUSES
from asyncjobs.http.wire import AcceptedDocument, JobDocument

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CAPTURED = re.compile(r"```(?:json\n|http\n.*?\n\n)(?P<body>\{.*\})\n```", re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_the_moves_are_those_of_the_code() -> None:
    """Repair it by `python docs/generate.py`."""
    page = (DOCS / "reference" / "lifecycle.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(DOCS / "generate.py"))["regenerated"](page) == page


def test_every_problem_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    for error, (status, code) in STATUSES.items():
        row = rf"^\| {HTTPStatus(status).value} \| `{code}` \|.* \| `{error.__name__}` \|$"
        assert re.search(row, page, re.MULTILINE), error


@pytest.mark.parametrize("document", [AcceptedDocument, JobDocument])
def test_every_member_of_the_wire_is_in_the_reference(
    document: type[AcceptedDocument | JobDocument],
) -> None:
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    for name, field in document.model_fields.items():
        assert re.search(rf"^\|.*`{field.alias or name}`.* \|", page, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_captured_documents_have_the_members_of_the_wire(page: Path) -> None:
    for block in FENCED.findall(page.read_text(encoding="utf-8")):
        captured = CAPTURED.match(block)
        document: dict[str, Any] = json.loads(captured["body"]) if captured else {}
        if "jobId" in document:
            kind = AcceptedDocument if document["status"] == "accepted" else JobDocument
            assert set(document) == {field.alias for field in kind.model_fields.values()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Name the headings as GitHub does."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def documented_names() -> list[str]:
    values: list[type[BaseModel]] = [Policy, Retry, Job, Detail, JobError, Progress]
    fields = [name for value in values for name in value.model_fields]
    fields += [field.name for kind in (Settings, EnqueueOptions) for field in fields_of(kind)]
    fields += [name for name in vars(JobContext) if not name.startswith("_")]
    methods = [name for name in vars(AsyncJobs) if not name.startswith("_")]
    return sorted({*asyncjobs.__all__, *fields, *methods} - {"is_open"})


@pytest.mark.parametrize("name", documented_names())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", page)
