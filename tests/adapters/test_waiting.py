"""Requests that are held until there is news, and submissions that come twice."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from asyncjobs.http.problems import ProblemDocument

pytestmark = pytest.mark.every_store

BODY = {"count": 21, "note": ""}


def post(client: httpx2.Client, name: str, note: str = "", **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/submit/{name}", json={**BODY, "note": note}, headers=sent)


def gate(client: httpx2.Client) -> tuple[str, str]:
    """Begin a job that goes on until its note is released; return when it shows its progress."""
    note = uuid.uuid4().hex
    url: str = post(client, "gate", note).json()["statusUrl"]
    # At first without a wait: the job may be as far as that already.
    headers: dict[str, str] = {}
    while True:
        answer = client.get(url, headers=headers)
        headers = {"Prefer": "wait=2", "If-None-Match": answer.headers["etag"]}
        if answer.status_code == 304:
            continue
        if answer.json()["progress"] == 40:
            return url, note


def released(client: httpx2.Client, note: str) -> None:
    assert post(client, "release", note).status_code == 202


def test_a_submission_that_may_wait_is_answered_by_the_finished_job(client: httpx2.Client) -> None:
    answer = post(client, "double", Prefer="wait=5")
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=5"
    assert "location" not in answer.headers
    document = answer.json()
    assert (document["status"], document["result"]) == ("completed", {"doubled": 42})


def test_a_submission_that_waits_in_vain_is_answered_by_202(client: httpx2.Client) -> None:
    note = uuid.uuid4().hex
    begun = time.monotonic()
    answer = post(client, "gate", note, Prefer="respond-async, wait=1")
    assert 0.9 < time.monotonic() - begun < 5
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.headers["location"]
    released(client, note)


def test_a_failed_job_is_a_finished_job(client: httpx2.Client) -> None:
    answer = post(client, "full", Prefer="wait=5")
    assert (answer.status_code, answer.json()["errorCode"]) == (200, "disk_full")


def test_a_wish_that_cannot_be_read_is_ignored(client: httpx2.Client) -> None:
    answer = post(client, "double", Prefer="wait=soon")
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


def test_a_type_may_be_awaited_unasked(client: httpx2.Client) -> None:
    answer = post(client, "inline")
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers
    assert answer.json()["result"] == 42


def test_a_job_that_begins_later_is_not_waited_for(client: httpx2.Client) -> None:
    begun = time.monotonic()
    answer = client.post("/submit/inline?later=1", json=BODY, headers={"Prefer": "wait=20"})
    assert (answer.status_code, time.monotonic() - begun < 3) == (202, True)


def test_a_read_is_held_until_the_job_changes(client: httpx2.Client) -> None:
    url, note = gate(client)
    with ThreadPoolExecutor() as others:
        held = others.submit(client.get, url, headers={"Prefer": "wait=10"})
        released(client, note)
        answer = held.result()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=10"
    assert "prefer" in answer.headers["vary"].lower()
    assert answer.elapsed.total_seconds() < 5


def test_a_read_that_waits_in_vain_shows_the_job_as_it_stands(client: httpx2.Client) -> None:
    url, note = gate(client)
    plain = client.get(url, headers={"Prefer": "wait=1"})
    assert (plain.status_code, plain.json()["status"]) == (200, "processing")
    known = {"Prefer": "wait=1", "If-None-Match": plain.headers["etag"]}
    begun = time.monotonic()
    answer = client.get(url, headers=known)
    assert (answer.status_code, answer.content) == (304, b"")
    assert time.monotonic() - begun > 0.9
    assert int(answer.headers["retry-after"]) >= 1
    released(client, note)


def test_who_lacks_a_version_is_answered_at_once(client: httpx2.Client) -> None:
    url, note = gate(client)
    begun = time.monotonic()
    answer = client.get(url, headers={"Prefer": "wait=10", "If-None-Match": '"0"'})
    assert (answer.status_code, time.monotonic() - begun < 5) == (200, True)
    released(client, note)


def test_nobody_waits_for_news_of_a_finished_job(client: httpx2.Client) -> None:
    url = f"/api/jobs/{post(client, 'double', Prefer='wait=5').json()['jobId']}"
    answer = client.get(url, headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    known = {"Prefer": "wait=20", "If-None-Match": answer.headers["etag"]}
    assert client.get(url, headers=known).status_code == 304


def test_waiting_for_what_is_not_there_is_a_404(client: httpx2.Client) -> None:
    url = "/api/jobs/job_8e03978e-40d5-43dd-bc93-6894a57f9324"
    assert client.get(url, headers={"Prefer": "wait=20"}).status_code == 404


# idempotent submission


def key() -> str:
    return f'"{uuid.uuid4()}"'


def test_the_same_key_is_the_same_job(client: httpx2.Client) -> None:
    one = key()
    first = post(client, "double", Idempotency_Key=one)
    again = post(client, "double", Idempotency_Key=one)
    bare = post(client, "double", Idempotency_Key=one.strip('"'))
    assert [answer.status_code for answer in (first, again, bare)] == [202] * 3
    assert first.json() == again.json() == bare.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == bare.headers["idempotency-replayed"] == "true"


def test_a_double_click_makes_one_job(client: httpx2.Client) -> None:
    one = key()
    with ThreadPoolExecutor(8) as clicks:
        asked = [clicks.submit(post, client, "double", Idempotency_Key=one) for _ in range(16)]
        answers = [click.result() for click in asked]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["jobId"] for answer in answers}) == 1


def test_a_replay_may_wait_as_well(client: httpx2.Client) -> None:
    one = key()
    post(client, "double", Idempotency_Key=one)
    answer = post(client, "double", Idempotency_Key=one, Prefer="wait=5")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert answer.headers["idempotency-replayed"] == "true"


def test_keys_of_different_types_are_different(client: httpx2.Client) -> None:
    one = key()
    first, other = (post(client, name, Idempotency_Key=one) for name in ("double", "shout"))
    assert first.json()["jobId"] != other.json()["jobId"]


def test_a_key_is_good_for_one_payload(client: httpx2.Client) -> None:
    one = key()
    post(client, "double", "this", Idempotency_Key=one)
    problem = problem_of(post(client, "double", "that", Idempotency_Key=one))
    assert (problem.status, problem.code) == (422, "idempotency_conflict")


@pytest.mark.parametrize("bad", ['""', '"half', "a b", "x" * 256])
def test_what_is_no_key_makes_no_job(client: httpx2.Client, bad: str) -> None:
    problem = problem_of(post(client, "double", Idempotency_Key=bad))
    assert (problem.status, problem.code) == (400, "invalid_idempotency_key")


def problem_of(answer: Any) -> ProblemDocument:
    assert answer.headers["content-type"] == "application/problem+json"
    return ProblemDocument.model_validate_json(answer.content)
