"""schemathesis checks the OpenAPI document of the FastAPI example against the live server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, mount

Serve = Callable[..., AbstractContextManager[httpx2.Client]]
Document = dict[str, Any]

COMMAND = ("uvicorn", "--app-dir", "{examples}", "--port", "{port}", "fastapi_app:app")
HERE = Path(__file__).parent

# All checks, except if HTTP itself prescribes another answer than the check expects.
CONFIGURATION = """
[[operations]]
include-path = "/api/jobs/{job_id}/result"
# What fails is not the request, but the job it asks about: 410 (RFC 9110, section 15.5.11) and 424
# (RFC 4918, section 11.4) beside what is expected anyway. The job's version is another than that in
# If-Match: 412.
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "410", "412", "424", "429", "5xx",
]

[[operations]]
include-path = [
    "/api/jobs/{job_id}",
    "/api/jobs/{job_id}/operation",
    "/api/jobs/{job_id}/cancel",
]
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx",
]

[[operations]]
include-path = "/api/jobs/{job_id}/files/{name}"
# The file is another than that in If-Match: 412. It is shorter than Range expects: 416 (RFC 9110,
# section 15.5.17).
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "412", "416", "429", "5xx",
]

[[operations]]
include-path = ["/api/jobs/{job_id}/output", "/api/jobs/{job_id}/output/{name}"]
# OpenAPI cannot express that `live` requires `offset`, nor which offsets belong to the stream: 400.
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "400", "401", "403", "404", "409", "429", "5xx",
]
# Longer than the server holds a request.
request-timeout = 40

[[operations]]
include-path = [
    "/api/jobs/{job_id}",
    "/api/jobs/{job_id}/result",
    "/api/jobs/{job_id}/events",
    "/api/jobs/{job_id}/operation",
]
include-method = "GET"
# DELETE may be accepted and not yet enacted, or answer with the state (202 and 200 in RFC 9110,
# section 9.3.5): it cancels the job, and where the job is read tells so.
checks.use_after_free.enabled = false
"""


def test_schemathesis_finds_nothing(serve: Serve, tmp_path: Path) -> None:
    settings, report = tmp_path / "schemathesis.toml", tmp_path / "report.json"
    settings.write_text(CONFIGURATION)
    with serve(COMMAND) as client:
        said = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", settings),
                *("run", str(client.base_url.join("/openapi.json")), "--max-examples", "3"),
                *("--continue-on-failure", "--generation-database", "none", "--no-color"),
                *("--report", "json", "--report-json-path", report),
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "schemathesis_hooks"},
            timeout=120,
        )
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads(report.read_text())
    assert found["operations"]["tested"] == found["operations"]["total"] == 10
    phases = {name: phase["status"] for name, phase in found["phases"].items()}
    # The document has no examples.
    assert phases.pop("examples") == "skip"
    assert set(phases.values()) == {"success"}, said.stdout
    followed = re.search(r"API Links: +(\d+) covered", said.stdout)
    assert followed is not None
    assert int(followed[1]) > 0


class Order(BaseModel):
    count: int


@pytest.fixture
def document() -> Document:
    """Describe an app that is written in the simplest way."""
    app, jobs = FastAPI(), AsyncJobs("memory://")

    @jobs.handler("order")
    async def order(cmd: Order, _: JobContext) -> int:
        return cmd.count

    async def create(cmd: Order, accept: Accept) -> Response:
        return await accept(order, cmd)

    async def paged(cmd: Order, accept: Accept, page: Annotated[int, Query()]) -> Response:
        return await accept(order, cmd, user_id=str(page))

    mount(app, jobs, identify=owner_of_all)  # before the routes, which it describes
    app.post("/api/exports", status_code=202)(create)
    app.post("/api/plain")(create)
    app.post("/api/paged", status_code=202)(paged)
    return app.openapi()


def owner_of_all() -> str:
    return "me"


def answers_of(document: Document, path: str, method: str = "post") -> Document:
    answers: Document = document["paths"][path][method]["responses"]
    return answers


def resolved(document: Document, schema: Document) -> Document:
    """Follow a reference to a component."""
    found: Document = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def test_a_generated_client_has_the_types_of_the_documents(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, package = tmp_path / "generator.yaml", tmp_path / "generated" / "exports_client"
    settings.write_text("post_hooks: []\n")
    with serve(COMMAND) as server, ExitStack() as stack:
        said = subprocess.run(
            [
                *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"),
                *("--url", str(server.base_url.join("/openapi.json")), "--fail-on-warning"),
                *("--config", settings, "--output-path", package),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert said.returncode == 0, said.stdout + said.stderr
        monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
        models = import_module("exports_client.models")
        made = import_module("exports_client").Client(str(server.base_url))
        client = stack.enter_context(made)

        order = models.ExportRequest.from_dict({"format": "csv"})
        accepted = call("default.create_export_api_exports_post", client=client, body=order)
        assert isinstance(accepted, models.AcceptedDocument)

        def ask(operation: str, job_id: str = accepted.job_id, **headers: str) -> Any:
            return call(f"jobs.asyncjobs_{operation}", job_id, client=client, **headers)

        job = ask("get_status_api_jobs_job_id_get")
        assert isinstance(job, models.JobDocument)
        assert isinstance(job.status, models.JobStatus)
        refused = ask("delete_cancel_api_jobs_job_id_delete", if_match='"0"')
        assert isinstance(refused, models.ProblemDocument)
        assert (refused.status, refused.code) == (412, "precondition_failed")
        cancelled = ask("delete_cancel_api_jobs_job_id_delete", if_match="*")
        assert isinstance(cancelled, models.JobDocument)
        assert cancelled.version > 1
        operation = ask("get_operation_api_jobs_job_id_operation_get")
        assert isinstance(operation, models.OperationDocument)
        unknown = ask("get_result_api_jobs_job_id_result_get", "job_1")
        assert isinstance(unknown, models.ProblemDocument)
        assert unknown.detail == "Job not found"


def call(name: str, *arguments: Any, **named: Any) -> Any:
    """Call an operation of the generated client."""
    return import_module(f"exports_client.api.{name}").sync(*arguments, **named)


def test_the_document_is_openapi(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    # FastAPI writes `itemSchema`, a keyword of version 3.2, into documents of any version.
    schemathesis.openapi.from_dict({**document, "openapi": "3.2.0"}).validate()


@pytest.mark.parametrize("path", ["/api/exports", "/api/plain"])
def test_a_submission_is_described_without_a_response_model(document: Document, path: str) -> None:
    answers = answers_of(document, path)
    assert set(answers) == {"200", "202", "400", "403", "413", "415", "422", "503"}
    for status, key in (("202", "statusUrl"), ("200", "progress")):
        [(media_type, content)] = answers[status]["content"].items()
        assert media_type == "application/json"
        assert key in resolved(document, content["schema"])["properties"]
    for status in set(answers) - {"200", "202"}:
        assert list(answers[status]["content"]) == ["application/problem+json"]
    assert {"Location", "Operation-Location", "Retry-After", "Link"} <= set(
        answers["202"]["headers"]
    )


@pytest.mark.parametrize("status", ["200", "202"])
def test_a_submission_links_to_every_operation_of_its_job(document: Document, status: str) -> None:
    links = answers_of(document, "/api/exports")[status]["links"]
    routes = {
        f"#/paths/{quote(path.replace('/', '~1'))}/{method}"
        for path, methods in document["paths"].items()
        for method in methods
        if "{job_id}" in path and "{name}" not in path
    }
    assert {link["operationRef"] for link in links.values()} == routes
    assert {"status", "result", "events", "operation", "cancel"} <= set(links)


def test_an_event_is_described_with_its_document(document: Document) -> None:
    events = answers_of(document, "/api/jobs/{job_id}/events", "get")["200"]["content"]
    data = events["text/event-stream"]["itemSchema"]["properties"]["data"]
    assert data["contentMediaType"] == "application/json"
    assert {"jobId", "status"} <= set(resolved(document, data["contentSchema"])["properties"])


def test_answers_to_an_invalid_query_and_body_are_described(document: Document) -> None:
    content = answers_of(document, "/api/paged")["422"]["content"]
    assert set(content) == {"application/problem+json", "application/json"}


def test_cancel_by_a_browser_is_described(document: Document) -> None:
    assert "303" in answers_of(document, "/api/jobs/{job_id}/cancel")
