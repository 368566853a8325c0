"""Wrong uses of the adapters: each raises an error that names the remedy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import flask
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from flask import Blueprint, Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asyncjobs import AsyncJobs, JobContext, JobType, MountOptions, Tokens
from asyncjobs.adapters import fastapi as on_fastapi
from asyncjobs.adapters import flask as on_flask
from asyncjobs.adapters import starlette as on_starlette
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.adapters.fastapi import Accept, Acceptor, jobs_router
from asyncjobs.errors import ConfigurationError

MODULES: dict[str, Any] = {"fastapi": on_fastapi, "starlette": on_starlette, "flask": on_flask}
APPS: dict[str, Callable[[], Any]] = {
    "fastapi": FastAPI,
    "starlette": Starlette,
    "flask": lambda: Flask(__name__),
}
each_framework = pytest.mark.parametrize("framework", MODULES)


def make_jobs() -> AsyncJobs:
    jobs = AsyncJobs("memory://")

    @jobs.handler("double")
    async def double(number: int, _: JobContext) -> int:
        return number * 2

    return jobs


@pytest.mark.parametrize(
    ("framework", "target", "remedy"),
    [
        ("fastapi", FastAPI, r"got the class FastAPI: create one, app = FastAPI"),
        ("fastapi", None, "got None"),
        ("fastapi", APIRouter(), r"jobs_router\(jobs\)"),
        ("fastapi", Flask(__name__), "use asyncjobs.adapters.flask"),
        ("fastapi", Starlette(), "use asyncjobs.adapters.starlette"),
        ("starlette", Flask(__name__), "use asyncjobs.adapters.flask"),
        ("starlette", Starlette, "got the class Starlette"),
        ("starlette", None, "got None"),
        ("flask", Flask, "got the class Flask"),
        ("flask", Blueprint("some", __name__), "pass the Flask application itself"),
        ("flask", FastAPI(), "use asyncjobs.adapters.fastapi"),
    ],
)
def test_mounting_on_an_object_that_is_no_app_names_the_remedy(
    framework: str, target: Any, remedy: str
) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        MODULES[framework].mount(target, make_jobs())


@each_framework
def test_mounting_an_object_that_is_no_queue_is_refused(framework: str) -> None:
    with pytest.raises(ConfigurationError, match="AsyncJobs, got an object of type str"):
        MODULES[framework].mount(APPS[framework](), "memory://")


def test_a_router_of_an_object_that_is_no_queue_is_refused() -> None:
    wrong: Any = None
    with pytest.raises(ConfigurationError, match="AsyncJobs, got None"):
        jobs_router(wrong)


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": "x" * 40}, r"`tokens` must be Tokens\(secret\); got an object of type str"),
    ({"tokens": ""}, "`tokens` must be Tokens"),
    ({"tokens": Tokens}, "got the class Tokens"),
    ({"options": {}}, r"`options` must be MountOptions\(...\); got an object of type dict"),
    ({"options": MountOptions}, "got the class MountOptions"),
    ({"identify": "user"}, "`identify` must be a function that returns the owner"),
    ({"base_url": True}, "`base_url` must be an absolute URL"),
    ({"prefix": None}, "`prefix` must be a path"),
    ({"prefix": 5}, "`prefix` must be a path"),
]


@each_framework
@pytest.mark.parametrize(("options", "said"), WRONG_OPTIONS)
def test_an_option_of_a_wrong_type_is_refused_by_the_mount(
    framework: str, options: dict[str, Any], said: str
) -> None:
    app = APPS[framework]()
    with pytest.raises(ConfigurationError, match=said) as raised:
        MODULES[framework].mount(app, make_jobs(), **options)
    assert "xxxx" not in str(raised.value)  # maybe a secret
    MODULES[framework].mount(app, make_jobs())


def test_an_option_of_a_wrong_type_is_refused_by_a_router_and_a_status_monitor() -> None:
    for options, said in WRONG_OPTIONS:
        wrong: dict[str, Any] = {name: one for name, one in options.items() if name != "prefix"}
        for make in (jobs_router, StatusMonitor) if wrong else ():
            with pytest.raises(ConfigurationError, match=said):
                make(make_jobs(), **wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"pacing": 5},
        {"poll_limit": 60},
        {"max_held": "3"},
        {"websocket_prefix": 5},
        {"callbacks": "no"},
        {"origins": "https://app.example.com"},
        {"origins": (5,)},
        {"max_wait": None},
    ],
    ids=str,
)
def test_a_mount_option_of_a_wrong_type_is_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigurationError, match=f"`{name}` must be"):
        MountOptions(**options)


@each_framework
def test_two_mounts_at_one_prefix_are_refused(framework: str) -> None:
    app, jobs, mount = APPS[framework](), make_jobs(), MODULES[framework].mount
    mount(app, jobs)
    for again in (jobs, make_jobs()):
        with pytest.raises(ConfigurationError, match="already mounted at /api/jobs"):
            mount(app, again)
    with pytest.raises(ConfigurationError, match=r"WebSockets at /ws/jobs: set MountOptions"):
        mount(app, jobs, prefix="/jobs")
    mount(app, jobs, prefix="/jobs", options=MountOptions(websocket_prefix="/live"))


WRONG_HANDLERS: list[tuple[Any, str]] = [
    (make_jobs().registry.find("double"), "is registered on another AsyncJobs"),
    (len, "needs a function registered by @jobs.handler"),
]
each_wrong_handler = pytest.mark.parametrize(("handler", "said"), WRONG_HANDLERS)

Accepting = Callable[..., Awaitable[Response]]


def app_with(framework: str, jobs: AsyncJobs, route: Callable[[Accepting], Any]) -> Starlette:
    """Return an app with a mount and `POST /x`; the function decides the kind of route."""
    is_async = inspect.iscoroutinefunction(route)
    if framework == "fastapi":
        app = FastAPI()
        on_fastapi.mount(app, jobs)

        async def called(accept: Accept) -> Any:
            return await route(accept)

        def called_in_thread(accept: Accept) -> Any:
            return route(accept)

        app.post("/x")(called if is_async else called_in_thread)
        return app
    plain = Starlette()
    on_starlette.mount(plain, jobs)

    async def asked(request: Request) -> Any:
        return await route(partial(on_starlette.accept, request))

    def asked_in_thread(request: Request) -> Any:
        return route(partial(on_starlette.accept, request))

    endpoint = asked if is_async else asked_in_thread
    plain.router.routes.append(Route("/x", endpoint, methods=["POST"]))
    return plain


each_asgi = pytest.mark.parametrize("framework", ["fastapi", "starlette"])


def error_of(app: Starlette) -> str:
    with TestClient(app) as client, pytest.raises(ConfigurationError) as raised:
        client.post("/x")
    return str(raised.value)


@each_asgi
def test_an_accept_without_await_raises_an_error_with_the_remedy(framework: str) -> None:
    jobs = make_jobs()

    async def route(accept: Accepting) -> Any:
        return accept(jobs.registry.find("double"), 21)

    error = error_of(app_with(framework, jobs, route))
    assert "write `return await accept(...)`" in error


@each_asgi
def test_an_accept_that_is_neither_awaited_nor_returned_warns(framework: str) -> None:
    jobs = make_jobs()

    async def route(accept: Accepting) -> Any:
        with pytest.warns(RuntimeWarning, match=r"accept\(\.\.\.\) was not awaited, and no job"):
            accept(jobs.registry.find("double"), 21)
        return Response()

    with TestClient(app_with(framework, jobs, route)) as client:
        assert client.post("/x").status_code == 200


@each_asgi
def test_accept_in_a_def_route_raises_an_error_that_names_async_def(framework: str) -> None:
    jobs = make_jobs()

    def route(accept: Accepting) -> Any:
        return accept(jobs.registry.find("double"), 21)

    assert "declare the route with `async def`" in error_of(app_with(framework, jobs, route))


@each_asgi
@each_wrong_handler
def test_accept_of_a_handler_of_another_queue_names_the_mistake(
    framework: str, handler: Any, said: str
) -> None:
    async def route(accept: Accepting) -> Any:
        return await accept(handler, 21)

    assert said in error_of(app_with(framework, make_jobs(), route))


@each_wrong_handler
def test_accept_in_flask_of_a_handler_of_another_queue_names_the_mistake(
    handler: Any, said: str
) -> None:
    app, jobs = Flask(__name__), make_jobs()
    app.testing = True
    on_flask.mount(app, jobs)

    @app.post("/x")
    def route() -> flask.Response:
        return on_flask.accept(handler, 21)

    with pytest.raises(ConfigurationError, match=said):
        app.test_client().post("/x")
    on_flask.portal_of(jobs, app).close()


@pytest.mark.parametrize("mounted", ["another queue", "the router nowhere"])
def test_an_accept_of_a_router_names_the_mistake(mounted: str) -> None:
    jobs, app = make_jobs(), FastAPI()
    router = jobs_router(jobs)
    if mounted == "another queue":
        app.include_router(router, prefix="/api/jobs")
    handler: JobType[Any, Any] = (
        make_jobs() if mounted == "another queue" else jobs
    ).registry.find("double")

    submitting: Any = Depends(router.accept)

    @app.post("/x")
    async def route(accept: Acceptor = submitting) -> Any:
        return await accept(handler, 21)

    said = "another AsyncJobs" if mounted == "another queue" else "include the router"
    assert said in error_of(app)


# sub-applications


def submitting(framework: str, jobs: AsyncJobs) -> Starlette:
    """Return an app without a mount, with a route that submits."""
    handler: JobType[Any, Any] = jobs.registry.find("double")
    if framework == "fastapi":
        app = FastAPI()

        @app.post("/x")
        async def route(accept: Accept) -> Any:
            return await accept(handler, 21)

        return app

    async def asked(request: Request) -> Response:
        return await on_starlette.accept(request, handler, 21)

    return Starlette(routes=[Route("/x", asked, methods=["POST"])])


@each_asgi
def test_a_sub_application_finds_the_mount_of_the_outermost_app(framework: str) -> None:
    jobs, app = make_jobs(), APPS[framework]()
    MODULES[framework].mount(app, jobs)
    app.mount("/v1", submitting(framework, jobs))
    with TestClient(app, root_path="/root") as client:
        url = client.post("/root/v1/x").json()["statusUrl"]
        assert url.startswith("/root/api/jobs/job_")
        assert client.get(url).status_code == 200


@each_asgi
def test_a_mount_on_a_middle_app_raises_an_error_with_the_remedy(
    framework: str,
) -> None:
    jobs, middle = make_jobs(), APPS[framework]()
    MODULES[framework].mount(middle, jobs)
    middle.mount("/inner", submitting(framework, jobs))
    app = Starlette(routes=[Mount("/middle", middle)])
    with TestClient(app) as client, pytest.raises(ConfigurationError, match="Call mount"):
        client.post("/middle/inner/x")


# missing extras

WITHOUT = """
import sys
sys.modules[{package!r}] = None
try:
    import asyncjobs.adapters.{module}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("fastapi", "fastapi", "asyncjobs-http[fastapi]"),
        ("starlette", "starlette.applications", "asyncjobs-http[starlette]"),
        ("flask", "flask", "asyncjobs-http[flask]"),
        ("sqlalchemy", "sqlalchemy", "sqlalchemy[asyncio]"),
    ],
)
def test_a_missing_extra_is_named(module: str, package: str, extra: str) -> None:
    code = WITHOUT.format(module=module, package=package)
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert f"pip install '{extra}'" in said
