"""Features of FastAPI alone: OpenAPI, its validation, dependencies and root_path."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    HTTPException,
    Query,
    Request,
    Response,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.websockets import WebSocketDisconnect

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.fastapi import Accept, AcceptedDocument, Acceptor, mount
from asyncjobs.core.job import new_job_id
from asyncjobs.http.routes import ROUTES, Operation, Route

NewUrl = Callable[[], str]

pytestmark = pytest.mark.every_store

JSON = {"Content-Type": "application/json"}


class Wish(BaseModel):
    count: int


def make_app(store: str = "memory://", *dependencies: Any) -> tuple[FastAPI, TestClient]:
    jobs = AsyncJobs(store)

    @jobs.handler("wish")
    async def wish(cmd: Wish, _: JobContext) -> int:
        return cmd.count

    app = FastAPI(dependencies=dependencies)

    @app.post("/wishes", status_code=202, response_model=AcceptedDocument)
    async def create(cmd: Wish, accept: Accept) -> Response:
        return await accept(wish, cmd)

    @app.post("/unread")
    async def unread(accept: Accept) -> Response:
        return await accept(wish)

    @app.post("/read-twice")
    async def read_twice(cmd: Wish, accept: Accept) -> Response:
        return await accept(wish, user_id=str(cmd.count))

    @app.post("/ordinary")
    async def ordinary(cmd: Wish) -> int:
        if cmd.count == 0:
            raise HTTPException(400, "none")
        return cmd.count

    mount(app, jobs)
    return app, TestClient(app, raise_server_exceptions=False)


@contextmanager
def client_of(app: FastAPI) -> Generator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def client(new_url: NewUrl) -> Generator[TestClient]:
    with make_app(new_url())[1] as client:
        yield client


def nested(accept: Accept) -> Acceptor:
    return accept


def test_operation_ids_are_distinct_with_several_mounts() -> None:
    app, _ = make_app()
    mount(app, AsyncJobs("memory://"), prefix="/other")
    document = app.openapi()
    ids = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(ids)) == len(ids)


def test_the_payload_type_may_come_from_the_handler(client: TestClient) -> None:
    assert client.post("/unread", json={"count": 1}).status_code == 202
    refused = client.post("/unread", json={"count": "many"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "count")
    assert client.post("/unread", content=b"x" * 1_100_000, headers=JSON).status_code == 413


def test_background_tasks_of_the_route_run_after_the_answer() -> None:
    app, jobs = FastAPI(), AsyncJobs("memory://")
    ran: list[str] = []
    mount(app, jobs)

    @jobs.handler("nightly")
    async def nightly() -> None: ...

    @app.post("/nightly", status_code=202)
    async def submit(accept: Accept, tasks: BackgroundTasks) -> Any:
        tasks.add_task(ran.append, "task")
        return await accept(nightly)

    with client_of(app) as client:
        assert client.post("/nightly").status_code == 202
    assert ran == ["task"]


def test_the_described_routes_have_names_whose_urls_are_served() -> None:
    app = FastAPI()
    mount(app, AsyncJobs("memory://"))
    with client_of(app) as client:
        found = client.get(app.url_path_for("asyncjobs_get_status", job_id=new_job_id()))
    assert (found.status_code, found.json()["code"]) == (404, "job_not_found")


def test_openapi_describes_the_body_that_accept_reads_unless_the_route_does() -> None:
    app, jobs = FastAPI(), AsyncJobs("memory://")
    mount(app, jobs)

    @jobs.handler("order")
    async def order(cmd: Wish) -> None: ...

    async def unread(accept: Accept) -> Any:
        return await accept(order)

    async def read(cmd: Wish, accept: Accept) -> Any:
        return await accept(order, cmd)

    described = {"content": {"application/json": {"schema": {"type": "integer"}}}}
    app.post("/unread", status_code=202)(unread)
    app.put("/unread", status_code=202)(unread)
    app.get("/unread", status_code=202)(unread)
    app.post("/read", status_code=202)(read)
    app.post("/described", openapi_extra={"requestBody": described})(unread)
    paths = app.openapi()["paths"]
    for method in ("post", "put"):
        body = paths["/unread"][method]["requestBody"]
        assert body["content"] == {"application/json": {"schema": {}}}
        assert not body.get("required")
    assert "requestBody" not in paths["/unread"]["get"]
    [read_content] = paths["/read"]["post"]["requestBody"]["content"].values()
    assert read_content["schema"] == {"$ref": "#/components/schemas/Wish"}
    assert paths["/described"]["post"]["requestBody"] == described


def test_a_body_that_fastapi_has_read_is_read_again(client: TestClient) -> None:
    assert client.post("/read-twice", json={"count": 1}).status_code == 202


def test_a_route_without_jobs_keeps_the_format_of_fastapi(client: TestClient) -> None:
    answer = client.post("/ordinary", json={"count": "many"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "count"]
    assert client.post("/ordinary", json={"count": 0}).json() == {"detail": "none"}
    assert client.post("/ordinary", content=b"\xff", headers=JSON).json().keys() == {"detail"}
    assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_errors_outside_the_body_keep_the_format_of_fastapi() -> None:
    app, client = make_app()

    @app.post("/paged")
    async def paged(cmd: Wish, accept: Accept, page: Annotated[int, Query()]) -> Response:
        raise NotImplementedError(cmd, accept, page)

    answer = client.post("/paged", json={"count": 1})
    assert answer.json()["detail"][0]["loc"] == ["query", "page"]


def test_an_existing_validation_handler_gets_errors_of_other_routes(new_url: NewUrl) -> None:
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def theirs(_: Request, __: Exception) -> Response:
        return PlainTextResponse("theirs", 418)

    @app.post("/ordinary")
    async def ordinary(cmd: Wish) -> int:
        return cmd.count

    mount(app, AsyncJobs(new_url()))
    with client_of(app) as client:
        assert client.post("/ordinary", json={}).text == "theirs"


def test_accept_can_come_through_another_dependency(new_url: NewUrl) -> None:
    app, _ = make_app(new_url())
    router = APIRouter()

    @router.post("/nested")
    async def create(cmd: Annotated[int, Body()], _: Annotated[Acceptor, Depends(nested)]) -> int:
        return cmd

    app.include_router(router, prefix="/v2")
    with client_of(app) as client:
        answer = client.post("/v2/nested", json="many")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/api/jobs"])
def test_a_proxy_may_strip_or_keep_the_root_path(path: str, new_url: NewUrl) -> None:
    with TestClient(make_app(new_url())[0], root_path="/v1") as client:
        url = client.post("/wishes", json={"count": 1}).json()["statusUrl"]
        assert url.startswith("/v1/api/jobs/job_")
        seen = url.replace("/v1/api/jobs", path)
        assert client.get(seen).status_code == 200
        assert client.head(seen).status_code == 200
        assert client.put(seen).status_code == 405
        assert client.head(f"{path}/{new_job_id()}").status_code == 404


def test_the_app_s_own_plain_exception_handlers_work_as_before(new_url: NewUrl) -> None:
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    def misshapen(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("misshapen", 422)

    @app.exception_handler(StarletteHTTPException)
    def missing(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("missing", 404)

    @app.post("/ordinary")
    async def ordinary(cmd: Wish) -> int:
        return cmd.count

    mount(app, AsyncJobs(new_url()))
    with client_of(app) as client:
        assert client.post("/ordinary", json={}).text == "misshapen"
        assert client.get("/nowhere").text == "missing"


async def known(request: Request, token: Annotated[Any, Depends(HTTPBearer())]) -> None:
    """Admit callers with the password; both kinds of dependencies can use this."""
    if token.credentials != "sesame" or request.method not in {"GET", "HEAD", "POST", "DELETE"}:
        raise HTTPException(403)


SESAME = {"Authorization": "Bearer sesame"}


@pytest.fixture
def guarded(new_url: NewUrl) -> Generator[tuple[TestClient, str]]:
    """Serve a job in an app with a global dependency; yield its URL, too."""
    with make_app(new_url(), Depends(known))[1] as client:
        accepted = client.post("/wishes", json={"count": 1}, headers=SESAME)
        yield client, accepted.json()["statusUrl"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
def test_global_dependencies_of_the_app_apply_to_job_routes(
    guarded: tuple[TestClient, str], route: Route
) -> None:
    client, url = guarded
    for method in {route.method, route.method.replace("GET", "HEAD")}:
        for headers, statuses in (
            ({}, {401, 403}),
            ({"Authorization": "Bearer open"}, {403}),
            # The job has no file.
            (SESAME, {404} if route.operation is Operation.FILE else {200, 202, 204}),
        ):
            suffix = route.suffix.format(name="log")
            answer = client.request(method, url + suffix, headers=headers)
            assert answer.status_code in statuses, (method, headers)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer open"}])
def test_global_dependencies_of_the_app_apply_to_websockets(
    guarded: tuple[TestClient, str], headers: dict[str, str]
) -> None:
    client, url = guarded
    socket = url.replace("/api", "/ws")
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(socket, headers=headers):
        pass
    with client.websocket_connect(socket, headers=SESAME) as opened:
        assert opened.receive_json()["type"] == "wish"


def test_a_number_with_too_many_digits_is_a_malformed_body(client: TestClient) -> None:
    body = b'{"count": ' + b"1" * 5000 + b"}"
    answer = client.post("/wishes", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")
