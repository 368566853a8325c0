"""Requests that are held until the job changes, and repeated submissions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from tests.adapters.conftest import Site
from tests.waiting import until_sync

pytestmark = pytest.mark.every_store

OpenSite = Callable[..., AbstractContextManager[Site]]

BODY = {"count": 21, "note": ""}


def post(client: httpx2.Client, name: str, note: str = "", **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/submit/{name}", json={**BODY, "note": note}, headers=sent)


def gate(client: httpx2.Client) -> tuple[str, str]:
    """Start a job that runs until its note is released; return when its progress is visible."""
    note = uuid.uuid4().hex
    url: str = post(client, "gate", note).json()["statusUrl"]
    headers: dict[str, str] = {}
    while True:
        answer = client.get(url, headers=headers)
        headers = {"Prefer": "wait=2", "If-None-Match": answer.headers["etag"]}
        if answer.status_code != 304 and answer.json()["progress"] == 40:
            return url, note


def test_a_submission_that_prefers_to_wait_gets_the_finished_job(client: httpx2.Client) -> None:
    answer = post(client, "double", Prefer="wait=5")
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=5"
    document = answer.json()
    assert (document["status"], document["result"]) == ("completed", {"doubled": 42})


def test_a_submission_whose_wait_times_out_gets_202(client: httpx2.Client) -> None:
    note = uuid.uuid4().hex
    answer = post(client, "gate", note, Prefer="respond-async, wait=1")
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert answer.headers["preference-applied"] == "wait=1"
    assert post(client, "release", note).status_code == 202


def test_an_inline_wait_of_a_handler_holds_every_submission(client: httpx2.Client) -> None:
    answer = post(client, "inline")
    assert (answer.status_code, answer.json()["result"]) == (200, 42)
    assert "preference-applied" not in answer.headers


def test_a_read_is_held_until_the_job_changes(client: httpx2.Client) -> None:
    url, note = gate(client)
    known = {"If-None-Match": client.get(url).headers["etag"]}
    with ThreadPoolExecutor() as others:
        held = others.submit(client.get, url, headers={"Prefer": "wait=25", **known})
        assert post(client, "release", note).status_code == 202
        answer = held.result()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=25"
    assert "prefer" in answer.headers["vary"].lower()


def test_a_read_whose_wait_times_out_gets_304(client: httpx2.Client) -> None:
    url, note = gate(client)
    tag = client.get(url).headers["etag"]
    answer = client.get(url, headers={"Prefer": "wait=1", "If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert int(answer.headers["retry-after"]) >= 1
    assert post(client, "release", note).status_code == 202


def test_held_requests_and_events_have_one_limit(open_site: OpenSite) -> None:
    with open_site(options=MountOptions(max_held=2)) as site:
        url, note = gate(site.client)
        tag = site.client.get(url).headers["etag"]
        wait = {"Prefer": "wait=25", "If-None-Match": tag}
        with (
            ThreadPoolExecutor() as others,
            site.client.stream("GET", f"{url}/events") as events,
        ):
            lines = events.iter_lines()
            assert next(lines) == "retry: 3000"
            held = others.submit(site.client.get, url, headers=wait)
            until_sync(lambda: site.jobs.watchers == 2)
            refused = site.client.get(url, headers=wait)
            assert (refused.status_code, "preference-applied" in refused.headers) == (304, False)
            assert int(refused.headers["retry-after"]) in {3, 4, 6}
            shown = site.client.get(f"{url}/events")
            assert (shown.status_code, shown.headers["retry-after"]) == (200, "6")
            assert shown.text.startswith("retry: 6000\n\nid: ")
            assert not held.done()
            assert post(site.client, "release", note).status_code == 202
            assert held.result().headers["preference-applied"] == "wait=25"
            assert [line for line in lines if '"completed"' in line]


def test_concurrent_submissions_with_one_idempotency_key_are_one_job(
    client: httpx2.Client,
) -> None:
    key = f'"{uuid.uuid4()}"'
    with ThreadPoolExecutor(8) as clicks:
        asked = [clicks.submit(post, client, "double", Idempotency_Key=key) for _ in range(16)]
        answers = [click.result() for click in asked]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["jobId"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert replayed.count(None) == 1
    assert replayed.count("true") == 15


def test_a_key_of_the_route_takes_precedence_over_the_clients_key(client: httpx2.Client) -> None:
    ours = uuid.uuid4().hex
    answers = [
        client.post(
            f"/submit/double?key={ours}",
            json={"count": 1},
            headers={"Idempotency-Key": f'"{uuid.uuid4()}"'},
        )
        for _ in range(2)
    ]
    first, second = (answer.json()["jobId"] for answer in answers)
    assert first == second
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]


@pytest.mark.parametrize(
    ("note", "key", "status", "code"),
    [("that", "", 422, "idempotency_conflict"), ("this", '"half', 400, "invalid_idempotency_key")],
)
def test_a_malformed_key_is_answered_by_a_problem(
    client: httpx2.Client, note: str, key: str, status: int, code: str
) -> None:
    used = f'"{uuid.uuid4()}"'
    post(client, "double", "this", Idempotency_Key=used)
    problem = problem_of(post(client, "double", note, Idempotency_Key=key or used))
    assert (problem.status, problem.code) == (status, code)


def problem_of(answer: Any) -> ProblemDocument:
    assert answer.headers["content-type"] == "application/problem+json"
    return ProblemDocument.model_validate_json(answer.content)
