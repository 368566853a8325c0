"""A misbehaving `identify` ends its own request; the queue goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import anyio
import flask
import httpx2
import pytest
from starlette.applications import Starlette

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters import flask as flask_adapter
from asyncjobs.adapters import starlette as starlette_adapter
from tests.queues import Make, finished

from .matrix import PATIENT

pytestmark = pytest.mark.anyio

RAISED = {
    "Exception": LookupError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
}

#: The kinds that need an `async def`.
CANCELS, ENTERS = "cancels its task", "leaves a scope entered"
AWAITING = [CANCELS, ENTERS]


def misbehave(how: str) -> None:
    if how in RAISED:
        raise RAISED[how]


async def misbehave_in_task(how: str) -> str:
    misbehave(how)
    if how == CANCELS:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(60)
    if how == ENTERS:
        anyio.CancelScope().__enter__().cancel()
    return "ann"


def identify(request: Any) -> str:
    misbehave(request.headers.get("X-How", ""))
    return "ann"


async def identify_in_task(request: Any) -> str:
    return await misbehave_in_task(request.headers.get("X-How", ""))


WAYS = [
    *(("def", how) for how in RAISED),
    *(("async", how) for how in [*RAISED, *AWAITING]),
]


def answers_to(how: str) -> list[list[int]]:
    """Return the permitted statuses of the request; only a valid name grants access."""
    return [[], [500], *([[200]] if how == ENTERS else [])]


def registered(make: Make) -> AsyncJobs:
    jobs = make(settings=PATIENT)

    @jobs.handler("work")
    async def work(_none: None, _job: JobContext) -> str:
        return "done"

    return jobs


@pytest.mark.parametrize(("way", "how"), WAYS)
async def test_a_misbehaving_identify_ends_its_own_request_in_starlette(
    make: Make, way: str, how: str
) -> None:
    jobs, app = registered(make), Starlette()
    chosen = identify if way == "def" else identify_in_task
    starlette_adapter.mount(app, jobs, identify=chosen)
    async with jobs:
        job = await jobs.enqueue("work", None, user_id="ann")
        url = f"/api/jobs/{job.id}"
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask() -> None:
                with suppress(BaseException):  # raised in the server's task of this request
                    answers.append(await client.get(url, headers={"X-How": how}))

            answers: list[httpx2.Response] = []
            await asyncio.wait([asyncio.create_task(ask())])
            assert [one.status_code for one in answers] in answers_to(how)
            assert (await finished(jobs, "work")).result == "done"
            assert (await client.get(url)).status_code == 200


@pytest.fixture
def flask_app(make: Make, request: pytest.FixtureRequest) -> Generator[flask.Flask]:
    jobs, app = registered(make), flask.Flask(__name__)
    chosen = identify if request.param == "def" else identify_in_task
    flask_adapter.mount(app, jobs, identify=chosen)

    @app.post("/work")
    def work() -> flask.Response:
        return flask_adapter.accept(jobs.registry.find("work"), None)

    yield app
    flask_adapter.portal_of(jobs, app).close()


@pytest.mark.parametrize(("flask_app", "how"), WAYS, indirect=["flask_app"])
def test_a_misbehaving_identify_ends_its_own_request_in_flask(
    flask_app: flask.Flask, how: str
) -> None:
    client = flask_app.test_client()
    first = client.post("/work")
    assert first.status_code == 202
    answers: list[Any] = []
    with suppress(BaseException):  # raised in the server's thread of this request
        answers.append(client.get(first.headers["Location"], headers={"X-How": how}))
    assert [one.status_code for one in answers] in answers_to(how)
    second = client.post("/work")
    assert second.status_code == 202
    assert client.get(second.headers["Location"]).status_code in {200, 202}
