"""What the documentation repeats from the code is what the code says."""

import json
import re
import runpy
from dataclasses import fields as fields_of
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import asyncjobs.testing
from asyncjobs import (
    AsyncJobs,
    Detail,
    EnqueueOptions,
    Job,
    JobContext,
    JobError,
    JobHandle,
    Page,
    Policy,
    Progress,
    Retry,
    Selection,
    Settings,
)
from asyncjobs.http import streams
from asyncjobs.http.documents import (
    AcceptedDocument,
    JobDocument,
    ListDocument,
    ListedDocument,
    OperationDocument,
    OperationError,
)
from asyncjobs.http.headers import Pacing
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import STATUSES, ProblemDocument
from asyncjobs.http.routes import LIST, ROUTES, Route
from asyncjobs.http.security import PollLimit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CAPTURED = re.compile(r"```(?:json\n|http\n.*?\n\n)(?P<body>\{.*\})\n```", re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


GENERATED = [
    "reference/lifecycle.md",
    "reference/python.md",
    "explanation/testing.md",
    pytest.param("howto/choose-an-engine.md", marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("page", GENERATED)
def test_generated_parts_are_up_to_date(page: str) -> None:
    """Run `python docs/generate.py` if this fails."""
    generate = runpy.run_path(str(DOCS / "generate.py"))["regenerated"]
    assert generate(DOCS / page) == (DOCS / page).read_text(encoding="utf-8")


def test_every_problem_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    for error, (status, code) in STATUSES.items():
        row = rf"^\| {HTTPStatus(status).value} \| `{code}` \|.* \| `{error.__name__}` \|$"
        assert re.search(row, page, re.MULTILINE), error


@pytest.mark.parametrize(
    ("document", "heading"),
    [
        (AcceptedDocument, "Submit"),
        (JobDocument, "Status"),
        (ListDocument, "List"),
        (ListedDocument, "List"),
        (OperationDocument, "Operation"),
        (OperationError, "Operation"),
    ],
)
def test_every_member_of_the_wire_is_in_the_reference(
    document: type[BaseModel], heading: str
) -> None:
    section = section_of(DOCS / "reference" / "http.md", heading)
    for name, field in document.model_fields.items():
        assert re.search(rf"^\|.*`{field.alias or name}`.* \|", section, re.MULTILINE), name


def test_every_member_of_a_problem_is_in_the_reference() -> None:
    section = section_of(DOCS / "reference" / "http.md", "Problems")
    for name in ProblemDocument.model_fields:
        assert f"`{name}`" in section, name


@pytest.mark.parametrize("route", [LIST, *ROUTES], ids=lambda route: route.operation.value)
def test_every_route_is_in_the_reference(route: Route) -> None:
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    path = "{prefix}" if route is LIST else f"{{prefix}}/{{jobId}}{route.suffix}"
    assert re.search(rf"^\|.*`{route.method} {re.escape(path)}`.*\|$", page, re.MULTILINE)


def test_every_close_code_is_in_the_reference() -> None:
    section = section_of(DOCS / "reference" / "http.md", "WebSocket")
    told = {one.code for one in vars(streams).values() if isinstance(one, streams.Close)}
    assert told == {int(code) for code in re.findall(r"^\| (\d{4}) \|", section, re.MULTILINE)}


def test_every_option_of_a_mount_is_in_the_reference_with_its_default() -> None:
    section = section_of(DOCS / "reference" / "http.md", "Options of the mount")
    for field in fields_of(MountOptions):
        assert f"| `{field.name}` | " in section
        assert shown(getattr(MountOptions(), field.name)) in section, field.name


def shown(default: object) -> str:
    """Write a default as the reference does: durations in seconds."""
    match default:
        case timedelta():
            return f"{default.total_seconds():g}"
        case Pacing():
            bounds = {field.name: getattr(default, field.name) for field in fields_of(default)}
            return f"Pacing({', '.join(f'{name}={shown(one)}' for name, one in bounds.items())})"
        case bool():
            return f"`{default}`"
        case int() | float():
            return f"{default:,}"
        case _:
            return str(default)


#: Members of the documents of batches and of their jobs alone.
OF_BATCHES = {"batch", "batchId"}
#: Members of the answers to submissions of a mount with tokens alone.
OF_TOKENS = {"token", "tokenUrl", "tokenExpiresAt"}

#: Members of jobs that have saved files or emitted output.
OF_FEW = {"files", "outputs"}


def section_of(page: Path, heading: str) -> str:
    """Return the part of a page below a heading of the second rank, by how that begins."""
    text = page.read_text(encoding="utf-8")
    [section] = (part for part in text.split("\n## ") if re.match(rf"{heading}\b(?! once)", part))
    return section


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_captured_documents_have_the_members_of_the_wire(page: Path) -> None:
    for block in FENCED.findall(page.read_text(encoding="utf-8")):
        captured = CAPTURED.match(block)
        document: dict[str, Any] = json.loads(captured["body"]) if captured else {}
        if "jobId" in document:
            kind = AcceptedDocument if document["status"] == "accepted" else JobDocument
            rare = OF_BATCHES | OF_TOKENS | OF_FEW
            assert set(document) - rare == members_of(kind) - rare
        for listed in document.get("jobs", ()):
            assert set(document) == members_of(ListDocument)
            assert set(listed) - OF_BATCHES == members_of(ListedDocument) - OF_BATCHES


def members_of(document: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in document.model_fields.items()}


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
    options = (Settings, EnqueueOptions, Selection, Page, MountOptions, PollLimit, Pacing)
    fields += [field.name for kind in options for field in fields_of(kind)]
    fields += [kind.__name__ for kind in options]
    fields += [name for name in vars(JobContext) if not name.startswith("_")]
    methods = [
        name for kind in (AsyncJobs, JobHandle) for name in vars(kind) if not name.startswith("_")
    ]
    exported = (*asyncjobs.__all__, *asyncjobs.testing.__all__)
    return sorted({*exported, *fields, *methods} - {"is_open"})


@pytest.mark.parametrize("name", documented_names())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", page)
