"""Flask alone: a portal instead of a lifespan, and bodies that are read once."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Flask

from asyncjobs import AsyncJobs, EnqueueOptions, JobContext
from asyncjobs.adapters.flask import accept, mount, portal_of
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import ConfigurationError, UnknownType
from asyncjobs.portal import Portal
from tests.waiting import until_sync

JSON = {"Content-Type": "application/json"}

pytestmark = pytest.mark.every_store


def make_app(store: str) -> tuple[Flask, AsyncJobs]:
    jobs = AsyncJobs(store)

    @jobs.handler("echo")
    def echo(words: str, _: JobContext) -> str:
        return words

    app = Flask(__name__)

    @app.post("/submit")
    def submit() -> flask.Response:
        return accept(echo)

    @app.post("/read-first")
    def read_first() -> flask.Response:
        flask.request.get_data()
        return accept(echo)

    @app.post("/given")
    def given() -> flask.Response:
        return accept(echo, "given", user_id="somebody")

    @app.get("/ordinary")
    def ordinary() -> str:
        return "as ever"

    mount(app, jobs)
    return app, jobs


@pytest.fixture
def opened(new_url: Callable[[], str]) -> Generator[tuple[Flask, AsyncJobs]]:
    app, jobs = make_app(new_url())
    yield app, jobs
    portal_of(jobs, app).close()


def test_nothing_is_open_before_the_first_request(opened: tuple[Flask, AsyncJobs]) -> None:
    app, jobs = opened
    assert not jobs.is_open
    assert app.test_client().get("/ordinary").text == "as ever"
    assert jobs.is_open


def test_a_queue_can_be_opened_before_the_first_request(opened: tuple[Flask, AsyncJobs]) -> None:
    app, jobs = opened
    portal_of(jobs, app).start()
    assert jobs.is_open


class Broken:
    """The body of a server that raises its own errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, _: int = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [OSError("reset"), ValueError("zz is no size"), EOFError()])
def test_a_body_that_the_server_rejects_is_answered_400(
    opened: tuple[Flask, AsyncJobs], error: Exception
) -> None:
    environ: dict[str, Any] = {"wsgi.input_terminated": True, "wsgi.input": Broken(error)}
    answer = opened[0].test_client().post("/submit", headers=JSON, environ_overrides=environ)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "malformed_body")


def test_a_body_limit_of_the_app_applies(opened: tuple[Flask, AsyncJobs]) -> None:
    app, _ = opened
    app.config["MAX_CONTENT_LENGTH"] = 10
    answer = app.test_client().post("/submit", data=b'"a long text"', headers=JSON)
    assert (answer.status_code, answer.content_type) == (413, "text/html; charset=utf-8")


def test_a_queue_can_be_used_from_the_threads_of_flask(opened: tuple[Flask, AsyncJobs]) -> None:
    app, jobs = opened
    answer = app.test_client().post("/given")
    assert answer.status_code == 202
    job_id = answer.get_json()["jobId"]
    portal = portal_of(jobs, app)
    assert portal.call(jobs.wait, job_id).result == "given"
    with app.app_context():
        assert portal_of(jobs) is portal


def test_a_body_that_was_read_before_is_read_again(opened: tuple[Flask, AsyncJobs]) -> None:
    client = opened[0].test_client()
    assert client.post("/read-first", json="words").status_code == 202
    assert client.post("/read-first", json=["words"]).status_code == 422
    assert client.post("/read-first", data=b"x" * 1_100_000, headers=JSON).status_code == 413


def test_a_log_filter_that_raises_fails_no_request(tmp_path: Path, broken_filter: Any) -> None:
    app, jobs = make_app(f"sqlite:///{tmp_path}/missing/jobs.db")
    assert app.test_client().get("/ordinary").text == "as ever"
    assert broken_filter.asked == 1
    portal_of(jobs, app).close()


class Endless:
    """An endless body in small pieces, as some servers pass it on."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size <= 2_000_000
        piece = b"x" * min(size, 10_000)
        self.given += len(piece)
        return piece


def test_an_endless_body_is_only_read_up_to_the_limit(opened: tuple[Flask, AsyncJobs]) -> None:
    body = Endless()
    environ: dict[str, Any] = {"wsgi.input_terminated": True, "wsgi.input": body}
    answer = opened[0].test_client().post("/submit", headers=JSON, environ_overrides=environ)
    assert answer.status_code == 413
    assert body.given < 66 * 1024 * 1024


def test_an_app_without_mounts_is_a_clear_error() -> None:
    app, jobs = Flask(__name__), make_app("memory://")[1]
    with pytest.raises(ConfigurationError, match="not mounted"):
        portal_of(jobs, app)


def test_a_fault_of_the_server_is_not_hidden(opened: tuple[Flask, AsyncJobs]) -> None:
    app, jobs = opened

    @app.post("/wrong")
    def wrong() -> str:
        return str(portal_of(jobs).call(jobs.enqueue, "no such type", None))

    app.testing = True
    with pytest.raises(UnknownType):
        app.test_client().post("/wrong")


def test_a_store_that_cannot_be_opened_only_affects_job_routes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "not yet"
    app, jobs = make_app(f"sqlite:///{folder / 'jobs.db'}")
    client = app.test_client()
    with caplog.at_level(logging.WARNING, "asyncjobs"):
        assert client.get("/ordinary").status_code == 200
    assert "folder does not exist" in caplog.text
    answer = client.post("/submit", json="words")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "store_unavailable")
    folder.mkdir()
    assert client.post("/submit", json="words").status_code == 202
    portal_of(jobs, app).close()


def test_a_file_of_another_program_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = file.read_bytes()
    app, _ = make_app(f"sqlite:///{file}")
    client = app.test_client()
    assert client.get("/ordinary").status_code == 200
    assert client.post("/submit", json="words").status_code == 500
    assert file.read_bytes() == before


@pytest.mark.every_store(without="memory")
def test_waiting_jobs_run_after_the_first_request_to_any_route(
    new_url: Callable[[], str],
) -> None:
    url = new_url()
    before, jobs = make_app(url)
    soon = EnqueueOptions(run_at=timedelta(seconds=0.2))
    with before.app_context():
        portal = portal_of(jobs)
        job = portal.call(lambda: jobs.enqueue("echo", "words", options=soon))
        portal.close()
    after, jobs = make_app(url)
    assert after.test_client().get("/ordinary").status_code == 200
    watching = AsyncJobs(url)  # without the handler, it runs nothing
    window = Portal(watching)
    until_sync(lambda: window.call(watching.find, job.id).result == "words")
    window.close()
    portal_of(jobs, after).close()


def test_a_queue_may_be_mounted_more_than_once(opened: tuple[Flask, AsyncJobs]) -> None:
    app, jobs = opened
    mount(app, jobs, prefix="/v2/jobs")
    second = Flask("second")
    mount(second, jobs)
    answer = app.test_client().post("/submit", data=b'"hi"', headers=JSON)
    assert answer.status_code == 202, answer.text
    job_id: str = json.loads(answer.text)["jobId"]
    for client, prefix in (
        (app.test_client(), "/api/jobs"),
        (app.test_client(), "/v2/jobs"),
        (second.test_client(), "/api/jobs"),
    ):
        assert client.get(f"{prefix}/{job_id}").status_code == 200


def test_routes_without_jobs_work_if_the_handlers_lifespan_fails(
    new_url: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def pool() -> AsyncGenerator[None]:
        if "up" not in notes:
            raise OSError("no network")
        yield

    notes: list[str] = []
    jobs = AsyncJobs(new_url(), lifespan=pool)
    app = Flask(__name__)
    mount(app, jobs)
    app.add_url_rule("/ordinary", view_func=lambda: "as ever")
    client = app.test_client()
    assert client.get("/ordinary").text == "as ever"
    refused = client.get(f"/api/jobs/{new_job_id()}")
    assert refused.status_code == 503
    assert refused.json is not None
    assert refused.json["code"] == "handlers_unavailable"
    assert "no network" in caplog.text
    notes.append("up")
    assert client.get(f"/api/jobs/{new_job_id()}").status_code == 404
    portal_of(jobs, app).close()
