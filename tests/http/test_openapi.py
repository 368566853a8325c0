"""Every answer is described, and every description matches an answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlencode

import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from asyncjobs import AsyncJobs, Job, JobContext
from asyncjobs.adapters.fastapi import Accept, mount
from asyncjobs.core.job import JobId
from asyncjobs.core.output import checked_stream_name
from asyncjobs.errors import InvalidIdempotencyKey, InvalidQuery
from asyncjobs.http import openapi
from asyncjobs.http.documents import AcceptedDocument, JobDocument, ListDocument, OperationDocument
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.headers import idempotency_key_of
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.output import StreamAddress, output_query_of
from asyncjobs.http.problems import TYPE_PREFIX, ProblemDocument
from asyncjobs.http.routes import LIST, ROUTES, Operation, Route
from asyncjobs.http.submissions import Body, Submit

MODELS: list[type[BaseModel]] = [
    AcceptedDocument,
    JobDocument,
    ListDocument,
    OperationDocument,
    ProblemDocument,
]

EVERY = [LIST, *ROUTES]
NAMES = [f"{route.method} {route.suffix}" for route in EVERY]

NOTHING: dict[str, Any] = {}

STREAM = StreamAddress.of(JobId("job_1"), "output")
OFFSET = STREAM.offset(7, 1)

# Plain, for browsers, conditional, repeated, and cross-site.
WAYS_TO_ASK: list[dict[str, str]] = [
    {},
    {"accept": "text/html"},
    {"if-none-match": "*"},
    {"if-match": '"0"'},
    {"last-event-id": "3"},
    {"sec-fetch-site": "cross-site"},
]

every_route = pytest.mark.parametrize("route", EVERY, ids=NAMES)


def served_app(prefix: str = "/api/jobs", options: MountOptions | None = None) -> FastAPI:
    """Return an app with one route that submits."""
    app, jobs = FastAPI(), AsyncJobs("memory://")

    @jobs.handler("double")
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    mount(app, jobs, prefix=prefix, identify=lambda: "ann", options=options)

    @app.post("/doubles", status_code=202)
    async def create(number: int, accept: Accept) -> Any:
        return await accept(double, number)

    return app


def served(prefix: str = "/api/jobs", options: MountOptions | None = None) -> dict[str, Any]:
    """Return the document of that app."""
    document: dict[str, Any] = served_app(prefix, options).openapi()
    return document


def parts(value: JsonValue) -> Iterator[JsonValue]:
    """Walk through all nodes of a document."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for one in inner:
        yield from parts(one)


def found_at(document: Any, reference: str) -> Any:
    """Follow a JSON pointer (RFC 6901, section 4)."""
    root, *steps = reference.split("/")
    assert root == "#", reference
    for step in steps:
        assert not re.search("~(?![01])", step), reference
        document = document[step.replace("~1", "/").replace("~0", "~")]
    return document


@every_route
def test_every_answer_of_a_route_is_described(route: Route) -> None:
    described = openapi.responses_of(route)
    assert described.keys() == {int(status) for status in route.answers}
    assert all(one["description"] for one in described.values())


@every_route
def test_errors_are_described_as_problems(route: Route) -> None:
    for status, answer in openapi.responses_of(route).items():
        wrong = int(status) >= 400
        assert ("application/problem+json" in answer.get("content", {})) == wrong


@every_route
def test_an_answer_without_a_body_has_none_described(route: Route) -> None:
    for status, answer in openapi.responses_of(route).items():
        assert ("content" in answer) == (int(status) not in {204, 303, 304})


@every_route
def test_answers_to_be_retried_have_a_retry_after(route: Route) -> None:
    for status, answer in openapi.responses_of(route).items():
        if int(status) in {429, 503}:
            assert "Retry-After" in answer["headers"]


@every_route
def test_every_header_has_a_description_and_a_schema(route: Route) -> None:
    for answer in openapi.responses_of(route).values():
        for header in answer.get("headers", {}).values():
            assert header["description"]
            assert header["schema"]["type"] in {"string", "integer"}


@every_route
def test_every_parameter_has_a_place_and_a_schema_and_is_named_once(route: Route) -> None:
    parameters = openapi.parameters_of(route)
    places = [(one["in"], one["name"]) for one in parameters]
    assert len(places) == len(set(places))
    for one in parameters:
        assert one["in"] in {"header", "query", "path"}
        assert one["description"]
        assert one["schema"]["type"] in {"string", "integer", "boolean"}


@pytest.mark.parametrize(
    ("operation", "names"),
    [
        (Operation.STATUS, ["Prefer", "If-None-Match", "If-Match"]),
        (Operation.RESULT, ["If-None-Match", "If-Match"]),
        (Operation.EVENTS, ["Last-Event-ID", "after"]),
        (Operation.LIST, ["type", "status", "tag", "batch", "members", "limit", "cursor"]),
        (Operation.OPERATION, ["If-Match"]),
        (Operation.CANCEL, ["If-Match"]),
        (Operation.FILE, ["name", "Range", "If-Range", "If-None-Match", "If-Match"]),
    ],
)
def test_each_operation_describes_the_parameters_it_reads(
    operation: Operation, names: list[str]
) -> None:
    for route in EVERY:
        if route.operation is operation:
            assert [one["name"] for one in openapi.parameters_of(route)] == names


def test_a_status_is_json_or_a_page() -> None:
    [status] = [route for route in ROUTES if route.operation is Operation.STATUS]
    content = openapi.responses_of(status)[HTTPStatus.OK]["content"]
    assert list(content) == ["application/json", "text/html"]


@pytest.mark.parametrize("model", MODELS)
def test_each_document_is_a_component_that_is_described_once(model: type[BaseModel]) -> None:
    document = served()
    schema = document["components"]["schemas"][model.__name__]
    assert set(schema["properties"]) == {
        field.alias or name for name, field in model.model_fields.items()
    }
    described = [one for one in parts(document) if isinstance(one, dict) and "properties" in one]
    assert [one.get("title") for one in described].count(model.__name__) == 1


def test_every_reference_resolves() -> None:
    document = served()
    references = {
        str(one["$ref"]) for one in parts(document) if isinstance(one, dict) and "$ref" in one
    }
    assert {f"#/components/schemas/{model.__name__}" for model in MODELS} <= references
    for reference in references:
        assert isinstance(found_at(document, reference), dict)


@every_route
def test_the_apps_document_has_every_route_with_its_answers(route: Route) -> None:
    below = "" if route is LIST else f"/{{job_id}}{route.suffix}"
    operation = served()["paths"][f"/api/jobs{below}"][route.method.lower()]
    assert operation["summary"] == route.summary
    assert operation["responses"].keys() >= {str(int(status)) for status in route.answers}
    in_path = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
    named = ["name"] if "{name}" in route.suffix else []
    assert in_path == ([] if route is LIST else ["job_id", *named])


@pytest.mark.parametrize("prefix", ["/api/jobs", "/jobs", "/a~b/c", "/v1/api/long-running"])
@pytest.mark.parametrize("status", ["200", "202"])
def test_links_lead_from_a_submission_to_the_operations_of_its_job(
    prefix: str, status: str
) -> None:
    document = served(prefix)
    links = document["paths"]["/doubles"]["post"]["responses"][status]["links"]
    assert {"status", "result", "operation", "cancel"} <= set(links)
    for link in links.values():
        target = found_at(document, unquote(link["operationRef"]))
        assert list(link["parameters"]) == ["job_id"]
        assert link["parameters"]["job_id"] == "$response.body#/jobId"
        assert "job_id" in {one["name"] for one in target["parameters"]}


def test_operation_ids_are_distinct() -> None:
    paths = served()["paths"].values()
    names = [one["operationId"] for path in paths for one in path.values()]
    assert len(names) == len(set(names))


def test_every_answer_to_a_submission_is_described() -> None:
    answers = openapi.submission_responses("/api/jobs")
    assert answers.keys() == {200, 202, 400, 403, 413, 415, 422, 503}
    assert {"Location", "Operation-Location", "Link", "Retry-After"} <= set(answers[202]["headers"])


@pytest.mark.parametrize(
    ("callbacks", "names"),
    [
        (False, ["Prefer", "Idempotency-Key"]),
        (True, ["Prefer", "Idempotency-Key", "Callback-URL"]),
    ],
)
def test_a_submission_describes_the_parameters_it_reads(callbacks: bool, names: list[str]) -> None:
    assert [one["name"] for one in openapi.submission_parameters(callbacks=callbacks)] == names


@pytest.mark.parametrize("callbacks", [False, True])
def test_a_callback_url_is_described_if_clients_may_set_one(callbacks: bool) -> None:
    document = served(options=MountOptions(callbacks=callbacks))
    parameters = document["paths"]["/doubles"]["post"]["parameters"]
    assert ("Callback-URL" in {one["name"] for one in parameters}) == callbacks


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=4))
@example("x" * 255)
@example("x" * 256)
@example(f'"{"x" * 255}"')
@example(f'"{"x" * 256}"')
@example(r'"\""')
@example('"a, b"')
@example("a,b")
def test_the_pattern_of_an_idempotency_key_matches_its_parser(
    header: str,
) -> None:
    [key] = [
        one
        for one in openapi.submission_parameters(callbacks=False)
        if one["name"] == "Idempotency-Key"
    ]
    described = re.search(key["schema"]["pattern"], header.strip()) is not None
    try:
        read = idempotency_key_of(header) is not None
    except InvalidIdempotencyKey:
        read = False
    assert described == read


def pattern_of(operation: Operation, name: str) -> str:
    """Return the pattern of a parameter; one that is in the path has it in one route only."""
    found = {
        one["schema"]["pattern"]
        for route in ROUTES
        if route.operation is operation
        for one in openapi.parameters_of(route)
        if one["name"] == name
    }
    [pattern] = found
    return str(pattern)


OFFSETS = ("", "-1", "now", "0", "-2", "NOW", "-1,", OFFSET, OFFSET[1:], f"{OFFSET}0", f"{OFFSET},")


@given(st.sampled_from(OFFSETS) | st.text("0123456789-now", max_size=4))
def test_the_pattern_of_an_offset_matches_its_parser(offset: str) -> None:
    described = re.search(pattern_of(Operation.OUTPUT, "offset"), offset) is not None
    try:
        output_query_of(urlencode({"offset": offset}), STREAM)
    except InvalidQuery:
        read = False
    else:
        read = True
    assert described == read


@given(st.text("aZ0._-/é ", max_size=3))
def test_the_pattern_of_a_stream_matches_the_names_of_streams(name: str) -> None:
    described = re.search(pattern_of(Operation.OUTPUT, "name"), name) is not None
    try:
        checked_stream_name(name)
    except ValueError:
        valid = False
    else:
        valid = True
    assert described == valid


def test_a_file_has_any_media_type() -> None:
    [file] = [route for route in ROUTES if route.operation is Operation.FILE]
    for status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        content = openapi.responses_of(file)[status]["content"]
        # In this order: generators of clients use the first type that they know.
        assert list(content) == ["application/octet-stream", "*/*"]


def submitted(**headers: str) -> Request:
    return Request("POST", headers={"content-type": "application/json", **headers}, body=b"{}")


async def one_of_each_status(jobs: AsyncJobs) -> list[Job]:
    waiting, running, done, broken, stopped = [
        (await jobs.enqueue("order", NOTHING, user_id="ann")).job for _ in range(5)
    ]
    await jobs.update_progress(running.id, 10)
    await jobs.complete(done.id, {})
    await jobs.fail(broken.id, "The disk is full.")
    await jobs.cancel(stopped.id)
    return [waiting, running, done, broken, stopped]


@pytest.mark.anyio
@pytest.mark.every_store
@every_route
async def test_every_answer_of_every_route_is_described(route: Route, store: Any) -> None:
    jobs = AsyncJobs(store)
    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    endpoints = Endpoints(jobs, Mount(identified=True))
    described = openapi.responses_of(route)
    async with jobs:
        for headers in WAYS_TO_ASK:
            ids = [job.id for job in await one_of_each_status(jobs)]
            for job_id in [*ids, "job_1"]:
                path = "" if route is LIST else f"{job_id}{route.suffix}"
                request = Request(route.method, path, headers=headers, owner="ann")
                response = await endpoints.handle(request)
                assert response.status in described, response
                assert kind_of(response) in described[response.status].get("content", {None: ""})
                if kind_of(response) == "application/problem+json":
                    problem = ProblemDocument.model_validate_json(response.body)
                    assert problem.type == f"{TYPE_PREFIX}{problem.code}"


def kind_of(response: Response) -> str | None:
    media_type = response.header("Content-Type")
    return None if media_type is None else media_type.partition(";")[0]


@pytest.mark.anyio
@pytest.mark.every_store
async def test_the_headers_of_a_submission_are_described(store: Any) -> None:
    jobs = AsyncJobs(store)
    kind = jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    endpoints = Endpoints(jobs, Mount())
    always = {"Content-Type", "Cache-Control", "X-Content-Type-Options"}
    async with jobs:
        for _ in range(2):
            request = submitted(**{"prefer": "wait=0", "idempotency-key": "k"})
            response = await endpoints.accept(request, kind, Body.UNREAD, Submit())
            described = openapi.submission_responses("/api/jobs")[response.status]["headers"]
            assert {name for name, _ in response.headers} - always <= set(described)


def test_events_are_described_like_those_of_fastapis_own_streams() -> None:
    fastapi_sse = pytest.importorskip("fastapi.sse")
    app = served_app()

    @app.get("/theirs", response_class=fastapi_sse.EventSourceResponse)
    async def theirs() -> AsyncIterator[JobDocument]:
        yield JobDocument.model_construct()

    paths = app.openapi()["paths"]
    [own], [other] = (
        paths[path]["get"]["responses"]["200"]["content"].values()
        for path in ("/api/jobs/{job_id}/events", "/theirs")
    )
    assert own.keys() == other.keys() == {"itemSchema"}
    ours, wanted = own["itemSchema"], other["itemSchema"]
    assert ours["properties"]["data"] == wanted["properties"]["data"]
    assert ours["required"] == wanted["required"]
    assert ours["properties"].keys() <= wanted["properties"].keys()


class Theirs:
    """Documents of an application with the names of the library's models."""

    class JobDocument(BaseModel):
        theirs: int

    class ProblemDocument(BaseModel):
        theirs: int


def test_an_application_may_have_models_of_the_same_names() -> None:
    app = served_app()

    @app.post("/theirs")
    async def theirs(_: Theirs.JobDocument) -> Theirs.ProblemDocument:
        return Theirs.ProblemDocument(theirs=1)

    document: dict[str, Any] = app.openapi()
    answers = document["paths"]["/api/jobs/{job_id}"]["get"]["responses"]
    for status, media_type, member in (
        ("200", "application/json", "jobId"),
        ("404", "application/problem+json", "code"),
    ):
        reference = answers[status]["content"][media_type]["schema"]["$ref"]
        assert member in found_at(document, reference)["properties"]
    [own] = document["paths"]["/theirs"]["post"]["requestBody"]["content"].values()
    assert "theirs" in found_at(document, own["schema"]["$ref"])["properties"]


def test_streams_are_described_as_events_and_results_as_any_json() -> None:
    def content(suffix: str) -> Any:
        [described] = [
            item["get"]["responses"]["200"]["content"]
            for path, item in served()["paths"].items()
            if path.endswith(suffix)
        ]
        return described

    [change] = content("/api/jobs")["text/event-stream"].values()
    assert set(change["properties"]) == {"event", "data", "retry"}
    [event] = content("/events")["text/event-stream"].values()
    assert set(event["properties"]) == {"id", "data", "retry"}
    assert content("/result")["application/json"]["schema"] == {}
