"""`jobs_router` of FastAPI: included at any prefix, with `identify` as an ordinary dependency."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, get_args

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer
from fastapi.testclient import TestClient
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from asyncjobs import AsyncJobs, Job, JobContext, MountOptions
from asyncjobs.adapters.fastapi import (
    Accept,
    Acceptor,
    JobsRouter,
    SubmissionRoute,
    jobs_router,
    mount,
)
from tests.waiting import until_sync

NewUrl = Callable[[], str]


@pytest.fixture
def jobs(new_url: NewUrl) -> AsyncJobs:
    jobs = AsyncJobs(new_url())

    @jobs.handler("double")
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    return jobs


def submissions(jobs: AsyncJobs, router: JobsRouter, path: str = "/doubles") -> APIRouter:
    """Return a router with a route that submits."""
    made = APIRouter(route_class=SubmissionRoute)

    submitting: Any = Depends(router.accept)

    async def create(number: int = 21, accept: Acceptor = submitting) -> Response:
        return await accept(jobs.registry.find("double"), number)

    made.add_api_route(path, create, methods=["POST"], status_code=202)
    return made


def test_a_router_answers_for_a_job_that_exists(jobs: AsyncJobs) -> None:
    app, router = FastAPI(), jobs_router(jobs)
    app.include_router(router, prefix="/v1/jobs")
    submitting: Any = Depends(router.accept)

    @app.post("/doubles/{number}")
    async def create(number: int, accept: Acceptor = submitting) -> Response:
        return await accept(await jobs.enqueue("double", number))

    with TestClient(app) as client:
        answer = client.post("/doubles/21", headers={"Prefer": "wait=20"})
        assert (answer.status_code, answer.json()["result"]) == (200, 42)
        accepted = client.post("/doubles/21", content=b"not JSON")
        assert accepted.status_code == 202
        assert client.get(accepted.json()["statusUrl"]).status_code == 200
        assert accepted.json()["statusUrl"].startswith("/v1/jobs/job_")


def under_a_prefix(jobs: AsyncJobs, router: JobsRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router, prefix="/api/jobs")
    app.include_router(submissions(jobs, router))
    return app


def in_another_router(jobs: AsyncJobs, router: JobsRouter) -> FastAPI:
    api = APIRouter(prefix="/api")
    api.include_router(submissions(jobs, router))
    api.include_router(router, prefix="/v2/jobs")
    app = FastAPI()
    app.include_router(api)
    return app


def in_a_sub_application(jobs: AsyncJobs, router: JobsRouter) -> FastAPI:
    app = FastAPI()
    app.mount("/v1", under_a_prefix(jobs, router))
    return app


def beside_a_sub_application_that_submits(jobs: AsyncJobs, router: JobsRouter) -> FastAPI:
    app, sub = FastAPI(), FastAPI()
    app.include_router(router, prefix="/api/jobs")
    sub.include_router(submissions(jobs, router))
    app.mount("/v1", sub)
    return app


def under_a_prefix_with_a_parameter(jobs: AsyncJobs, router: JobsRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(submissions(jobs, router, "/{tenant}/doubles"))
    app.include_router(router, prefix="/{tenant}/jobs")
    return app


async def ann() -> str:
    return "ann"


PLACES = [
    (under_a_prefix, "/doubles", "/api/jobs"),
    (in_another_router, "/api/doubles", "/api/v2/jobs"),
    (in_a_sub_application, "/v1/doubles", "/v1/api/jobs"),
    (beside_a_sub_application_that_submits, "/v1/doubles", "/api/jobs"),
    (under_a_prefix_with_a_parameter, "/m%C3%BCnchen/doubles", "/m%C3%BCnchen/jobs"),
]


@pytest.mark.parametrize(
    ("build", "path", "prefix"), PLACES, ids=[one[0].__name__ for one in PLACES]
)
def test_urls_follow_the_place_of_the_router(
    jobs: AsyncJobs, build: Callable[[AsyncJobs, JobsRouter], FastAPI], path: str, prefix: str
) -> None:
    app = build(jobs, jobs_router(jobs, identify=ann))
    with TestClient(app) as client:
        answer = client.post(path, headers={"Prefer": "wait=20"})
        assert (answer.status_code, answer.json()["result"]) == (200, 42)
        document = client.post(path).json()
        job_id, url = document["jobId"], document["statusUrl"]
        assert url == f"{prefix}/{job_id}"
        assert client.get(url).json()["type"] == "double"
        listed = client.get(prefix).json()["jobs"]
        assert listed[0]["statusUrl"] == url
        operation = client.get(f"{url}/operation")
        assert operation.status_code == 200
        assert client.get(f"{prefix}/client.js").headers["content-type"].startswith("text/java")
        assert client.put(url).headers["allow"] == "GET, HEAD, DELETE, OPTIONS"
        assert client.get(f"{url}/").json()["jobId"] == job_id
        assert client.get(f"{prefix}/").json() == client.get(prefix).json()
        assert client.get(f"{url}/none").status_code == 404


def test_urls_are_absolute_with_a_base_url(jobs: AsyncJobs) -> None:
    app = under_a_prefix(jobs, jobs_router(jobs, base_url="https://example.com/v1"))
    with TestClient(app) as client:
        url = client.post("/doubles").json()["statusUrl"]
    assert url.startswith("https://example.com/v1/api/jobs/job_")


def test_a_router_included_twice_serves_jobs_in_both_places(jobs: AsyncJobs) -> None:
    router = jobs_router(jobs)
    app = under_a_prefix(jobs, router)
    app.include_router(router, prefix="/again")
    with TestClient(app) as client:
        url = client.post("/doubles").json()["statusUrl"]
        assert url.startswith("/api/jobs/")
        again = url.replace("/api/jobs", "/again")
        assert client.get(again, headers={"Accept": "text/html"}).text.count("/again/") > 0


@pytest.mark.parametrize("build", [under_a_prefix, in_another_router])
def test_the_lifespan_of_the_app_opens_and_closes_the_queue(
    jobs: AsyncJobs, build: Callable[[AsyncJobs, JobsRouter], FastAPI]
) -> None:
    with TestClient(build(jobs, jobs_router(jobs))):
        assert jobs.is_open
    assert not jobs.is_open


def test_handlers_run_only_between_the_startup_and_the_shutdown_of_the_app(
    jobs: AsyncJobs,
) -> None:
    seen: list[object] = []

    @jobs.handler("note")
    async def note(text: str, _: JobContext) -> None:
        seen.append(text)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        seen.append(("startup", jobs.is_open))
        yield
        seen.append(("shutdown", jobs.is_open))

    app = FastAPI(lifespan=lifespan)
    app.include_router(jobs_router(jobs), prefix="/api/jobs")
    jobs.sync.enqueue(note, "backlog")
    with TestClient(app):
        until_sync(lambda: "backlog" in seen)
    assert seen == [("startup", False), "backlog", ("shutdown", False)]


def test_a_queue_that_the_app_opened_stays_open(jobs: AsyncJobs) -> None:
    seen: list[bool] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        async with jobs:
            yield
            seen.append(jobs.is_open)

    app = FastAPI(lifespan=lifespan)
    app.include_router(jobs_router(jobs), prefix="/api/jobs")
    with TestClient(app):
        assert jobs.is_open
    assert seen == [True]
    assert not jobs.is_open


def socket_url(answer: Any) -> str:
    url: str = answer.json()["statusUrl"]
    prefix, _, job_id = url.rpartition("/")
    return f"{prefix}/ws/{job_id}"


@pytest.mark.parametrize(
    ("options", "path"), [(None, "/ws"), (MountOptions(websocket_prefix="/live"), "/live")]
)
def test_websockets_are_below_the_prefix(
    jobs: AsyncJobs, options: MountOptions | None, path: str
) -> None:
    app = in_a_sub_application(jobs, jobs_router(jobs, options=options))
    with TestClient(app) as client:
        url = socket_url(client.post("/v1/doubles")).replace("/ws/", f"{path}/")
        with client.websocket_connect(url) as socket:
            assert socket.receive_json()["type"] == "double"


# identify as a dependency

BAD = "bad"
TOKENS = {"a": "ann", "b": "bob"}


async def token_of(connection: HTTPConnection) -> str:
    return connection.headers.get("authorization", "").removeprefix("Bearer ")


def user(request: Request, token: Annotated[str, Depends(token_of)]) -> str | None:
    if token == BAD:
        raise HTTPException(401)
    assert request.method in {"GET", "POST", "DELETE", "HEAD"}
    return TOKENS.get(token)


async def connected_user(
    connection: HTTPConnection, token: Annotated[str, Depends(token_of)]
) -> str | None:
    if token == BAD:
        raise HTTPException(401)
    assert connection.url.path
    return TOKENS.get(token)


def by_header(authorization: Annotated[str, Header()] = "") -> str | None:
    if authorization == "Bearer bad":
        raise HTTPException(401)
    return TOKENS.get(authorization.removeprefix("Bearer "))


def unannotated(request: Any) -> str | None:
    authorization: str = request.headers.get("authorization", "")
    return user(request, authorization.removeprefix("Bearer "))


del unannotated.__annotations__["request"]

IDENTIFY: dict[str, Any] = {
    "request": user,
    "connection": connected_user,
    "header": by_header,
    "unannotated": unannotated,
    "depends": Depends(user),
}


def as_router(jobs: AsyncJobs, identify: Any) -> FastAPI:
    return under_a_prefix(jobs, jobs_router(jobs, identify=identify))


def as_mount(jobs: AsyncJobs, identify: Any) -> FastAPI:
    app = FastAPI()
    mount(app, jobs, identify=identify)

    @app.post("/doubles", status_code=202)
    async def create(accept: Accept) -> Response:
        return await accept(jobs.registry.find("double"), 21)

    return app


each_way = pytest.mark.parametrize("build", [as_router, as_mount])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sockets_of(answer: Any) -> list[str]:
    return [socket_url(answer), answer.json()["statusUrl"].replace("/api", "/ws")]


def statuses_of_sockets(client: TestClient, answer: Any, token: str) -> set[str]:
    """Return the responses of a job's WebSockets; either a router or a mount serves each."""
    found = set[str]()
    for url in sockets_of(answer):
        try:
            with client.websocket_connect(url, headers=bearer(token)) as socket:
                found.add(socket.receive_json()["type"])
        except WebSocketDisconnect as error:
            found.add(str(error.code))
    return found


@each_way
@pytest.mark.parametrize("identify", IDENTIFY.values(), ids=IDENTIFY)
def test_identify_is_a_dependency_of_every_route_and_websocket(
    jobs: AsyncJobs, build: Callable[[AsyncJobs, Any], FastAPI], identify: Any
) -> None:
    with TestClient(build(jobs, identify)) as client:
        answer = client.post("/doubles", headers=bearer("a"))
        url = answer.json()["statusUrl"]
        assert client.get(url, headers=bearer("a")).status_code == 200
        assert client.get(url, headers=bearer("b")).status_code == 404
        lists = [client.get("/api/jobs", headers=bearer(one)).json()["jobs"] for one in "ab"]
        assert [len(one) for one in lists] == [1, 0]
        assert statuses_of_sockets(client, answer, "a") >= {"double"}
        assert "double" not in statuses_of_sockets(client, answer, "b")
        for method, path in (("POST", "/doubles"), ("GET", url), ("GET", f"{url}/events")):
            assert client.request(method, path, headers=bearer("bad")).status_code == 401
        assert "double" not in statuses_of_sockets(client, answer, "bad")


@each_way
def test_identify_can_be_overridden(
    jobs: AsyncJobs, build: Callable[[AsyncJobs, Any], FastAPI]
) -> None:
    def nobody_may(_: Request) -> str:
        raise HTTPException(401)

    app = build(jobs, nobody_may)
    with TestClient(app) as client:
        assert client.post("/doubles").status_code == 401
        app.dependency_overrides[nobody_may] = lambda: "ann"
        answer = client.post("/doubles")
        assert answer.status_code == 202
        assert client.get("/api/jobs").json()["jobs"][0]["jobId"] == answer.json()["jobId"]
        assert "double" in statuses_of_sockets(client, answer, "a")


def test_the_owner_is_stored_with_the_job(jobs: AsyncJobs) -> None:
    owners: list[str | None] = []

    @jobs.on("completed")
    def note(transition: Any) -> None:
        job: Job = transition.job
        owners.append(job.user_id)

    with TestClient(as_router(jobs, user)) as client:
        client.post("/doubles", headers=bearer("a") | {"Prefer": "wait=20"})
    assert owners == ["ann"]


def test_openapi_shows_how_identify_authenticates(jobs: AsyncJobs) -> None:
    scheme = OAuth2PasswordBearer("token", auto_error=False)

    def current(token: str | None = Depends(scheme)) -> str | None:
        return token

    document = as_router(jobs, current).openapi()
    for path in ("/api/jobs/{job_id}", "/api/jobs", "/doubles"):
        for operation in document["paths"][path].values():
            assert operation["security"] == [{"OAuth2PasswordBearer": []}]


def test_dependencies_of_the_inclusion_guard_the_websockets(jobs: AsyncJobs) -> None:
    def guard(connection: HTTPConnection) -> None:
        if connection.headers.get("authorization") != "Bearer a":
            if isinstance(connection, WebSocket):
                raise WebSocketDisconnect(1008)
            raise HTTPException(403)

    router = jobs_router(jobs)
    app = FastAPI()
    app.include_router(router, prefix="/api/jobs", dependencies=[Depends(guard)])
    app.include_router(submissions(jobs, router))
    with TestClient(app) as client:
        answer = client.post("/doubles")
        url = answer.json()["statusUrl"]
        assert client.get(url).status_code == 403
        assert client.get(url, headers=bearer("a")).status_code == 200
        assert "double" in statuses_of_sockets(client, answer, "a")
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(socket_url(answer)) as it:
            it.receive_json()


# routes that submit


def operation_of(app: FastAPI, path: str) -> dict[str, Any]:
    found: dict[str, Any] = app.openapi()["paths"][path]["post"]
    return found


def test_openapi_describes_the_answers_of_routes_that_submit(jobs: AsyncJobs) -> None:
    router = jobs_router(jobs, options=MountOptions(callbacks=True))
    operation = operation_of(under_a_prefix(jobs, router), "/doubles")
    assert operation["responses"].keys() >= {"200", "202", "400", "403", "413", "415", "422", "503"}
    assert "application/problem+json" in operation["responses"]["422"]["content"]
    names = [one["name"] for one in operation["parameters"]]
    assert names == ["number", "Prefer", "Idempotency-Key", "Callback-URL"]


def test_other_routes_of_the_route_class_are_unchanged() -> None:
    router = APIRouter(route_class=SubmissionRoute)

    @router.post("/ordinary")
    async def ordinary(numbers: list[int]) -> int:
        return sum(numbers)

    app = FastAPI()
    app.include_router(router)
    assert operation_of(app, "/ordinary")["responses"].keys() == {"200", "422"}
    with TestClient(app) as client:
        assert client.post("/ordinary", json=[1, 2]).json() == 3
        assert "detail" in client.post("/ordinary", json=["a"]).json()


@pytest.mark.parametrize("route_class", [SubmissionRoute, APIRoute])
@pytest.mark.parametrize("mounted", [True, False], ids=["mount", "router"])
@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'"many"', "application/json", 422),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"", "application/json", 400),
    ],
)
def test_invalid_bodies_are_problems_by_the_route_class_or_by_the_mount(
    jobs: AsyncJobs,
    route_class: type[APIRoute],
    *,
    mounted: bool,
    body: bytes,
    content_type: str,
    status: int,
) -> None:
    app, made = FastAPI(), APIRouter(route_class=route_class)
    router = jobs_router(jobs)
    depends: Any = get_args(Accept)[1] if mounted else Depends(router.accept)

    async def create(number: Annotated[int, Body()], accept: Any = depends) -> Any:
        return await accept(jobs.registry.find("double"), number)

    made.add_api_route("/doubles", create, methods=["POST"])
    app.include_router(made)
    if mounted:
        mount(app, jobs)
    else:
        app.include_router(router, prefix="/api/jobs")
    with TestClient(app) as client:
        answer = client.post("/doubles", content=body, headers={"Content-Type": content_type})
        ours = mounted or route_class is SubmissionRoute
        if ours:
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
        else:
            assert answer.status_code in {400, 422}
            assert "detail" in answer.json()


@each_way
def test_an_error_raised_by_the_route_is_not_an_invalid_body(
    jobs: AsyncJobs, build: Callable[[AsyncJobs, Any], FastAPI]
) -> None:
    app, router = build(jobs, None), APIRouter(route_class=SubmissionRoute)

    @router.post("/refused")
    async def refused(numbers: list[int], accept: Accept) -> None:
        assert numbers
        assert accept is not None
        raise HTTPException(400, "There was an error parsing the body")

    app.include_router(router)
    with TestClient(app) as client:
        answer = client.post("/refused", json=[1])
        assert answer.json() == {"detail": "There was an error parsing the body"}
