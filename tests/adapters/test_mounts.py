"""Prefixes, base URLs and several queues: the same on every framework."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs, JobContext, JobType
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.headers import Pacing
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument

Serve = Callable[..., AbstractContextManager[httpx2.Client]]
NewJobs = Callable[..., AsyncJobs]

pytestmark = pytest.mark.every_store


def submit(client: httpx2.Client, name: str, **more: Any) -> httpx2.Response:
    answer = client.post(f"/submit/{name}", json={"count": 21}, **more)
    assert answer.status_code == 202, answer.text
    return answer


def result_of(client: httpx2.Client, url: str) -> Any:
    """Follow a job to its result; each status on the way is a 200."""
    answer = client.get(url).raise_for_status()
    while answer.json()["status"] not in {"completed", "failed", "cancelled"}:
        answer = client.get(url).raise_for_status()
    return answer.json()["result"]


def test_urls_are_below_the_path_under_which_the_app_is_reached(
    serve: Serve, new_jobs: NewJobs
) -> None:
    with serve((new_jobs(), {}), root="/v1") as client:
        answer = client.post("/v1/submit/double", json={"count": 21})
        url = answer.json()["statusUrl"]
        assert url.startswith("/v1/api/jobs/job_")
        assert result_of(client, url) == {"doubled": 42}
        assert client.head(url).status_code == 200
        assert answer.headers["location"] == f"{url}/result"


def test_urls_are_absolute_with_a_base_url(serve: Serve, new_jobs: NewJobs) -> None:
    options = {"prefix": "/jobs", "base_url": "https://example.com/v1"}
    forwarded = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    with serve((new_jobs(), options)) as client:
        answer = submit(client, "double", headers=forwarded)
        job_id = answer.json()["jobId"]
        assert answer.json()["statusUrl"] == f"https://example.com/v1/jobs/{job_id}"
        assert answer.headers["location"] == f"https://example.com/v1/jobs/{job_id}/result"
        assert result_of(client, f"/jobs/{job_id}") == {"doubled": 42}


def test_the_polling_interval_can_be_set(serve: Serve, new_jobs: NewJobs) -> None:
    with serve(
        (new_jobs(), {"options": MountOptions(pacing=Pacing(min_delay=7, max_delay=9))})
    ) as client:
        assert submit(client, "double").headers["retry-after"] == "7"


def test_two_queues_on_one_app_are_kept_apart(
    serve: Serve, new_jobs: NewJobs, new_url: Callable[[], str]
) -> None:
    mails = AsyncJobs(new_url())

    @mails.handler("mail")
    async def mail(_: Any, __: JobContext) -> str:
        return "sent"

    with serve((new_jobs(), {}), (mails, {"prefix": "/api/mails"})) as client:
        export = submit(client, "double").json()["statusUrl"]
        letter = submit(client, mail.name).json()["statusUrl"]
        assert letter.startswith("/api/mails/job_")
        assert result_of(client, letter) == "sent"
        assert result_of(client, export) == {"doubled": 42}
        assert client.get(letter.replace("mails", "jobs")).status_code == 404
        assert client.get(export.replace("jobs", "mails")).status_code == 404


def test_a_handler_of_a_queue_that_is_not_mounted_is_named(
    serve: Serve, new_jobs: NewJobs, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere: JobType[Any, Any] = new_jobs().registry.find("double")
    with serve(others=[elsewhere]) as client:
        assert client.post("/submit/double", json={"count": 1}).status_code == 500
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in errors] == [ConfigurationError]
    assert "'double'" in str(errors[0])


@pytest.mark.own_store
def test_an_unavailable_store_is_answered_503_until_it_is_back(
    serve: Serve, new_jobs: NewJobs, tmp_path: Path
) -> None:
    file, aside = tmp_path / "jobs.db", tmp_path / "aside.db"
    with serve((new_jobs(f"sqlite:///{file}"), {})) as client:
        assert result_of(client, submit(client, "double").json()["statusUrl"]) == {"doubled": 42}
        file.rename(aside)
        answer = client.post("/submit/double", json={"count": 1})
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
        assert ProblemDocument.model_validate_json(answer.content).code == "store_unavailable"
        assert str(tmp_path) not in answer.text
        assert not file.exists()
        aside.rename(file)
        assert result_of(client, submit(client, "double").json()["statusUrl"]) == {"doubled": 42}
