"""A job's owner: other callers get the answers of an unknown job, on every route and framework."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from asyncjobs import JobId
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.routes import LIST, RENEWAL, ROUTES, TAG_RENEWAL, Operation

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

PREFIX = "/api/jobs"
BELOW = [(route.method, route.suffix) for route in ROUTES]
EVERY = [*BELOW, *(("HEAD", route.suffix) for route in ROUTES if route.method == "GET")]
ASKED: list[dict[str, str]] = [
    {},
    {"Accept": "text/html"},
    {"Prefer": "wait=1"},
    {"If-None-Match": "*"},
    {"Last-Event-ID": "1"},
]
ALICE, BOB, NOBODY = {"X-User": "alice"}, {"X-User": "bob"}, dict[str, str]()


@pytest.fixture(scope="module", params=["sync", "async"])
def site(request: pytest.FixtureRequest, open_site: OpenSite, stack: Any) -> Generator[Any]:
    """An application that trusts two headers: the caller's name, and how to refuse the caller."""

    def identify(request: Any) -> Any:
        if "X-Refuse" in request.headers:
            stack.refuse(int(request.headers["X-Refuse"]))
        return 7 if "X-Number" in request.headers else request.headers.get("X-User")

    async def identify_later(request: Any) -> Any:
        return identify(request)

    with open_site(identify=identify if request.param == "sync" else identify_later) as opened:
        yield opened


def submit(site: Any, who: dict[str, str], query: str = "", **headers: str) -> JobId:
    answer = site.client.post(f"/submit/outside{query}", json={"count": 1}, headers=who | headers)
    assert answer.status_code == 202, answer.text
    return JobId(answer.json()["jobId"])


def finished(site: Any, who: dict[str, str]) -> JobId:
    job_id = submit(site, who)
    site.call(site.jobs.complete, job_id, "done")
    return job_id


def shape(answer: httpx2.Response) -> tuple[Any, ...]:
    """Return the parts of an answer that could reveal something; the date is left out."""
    headers = [(name, value) for name, value in answer.headers.multi_items() if name != "date"]
    return answer.status_code, sorted(headers), answer.content


def said(site: Any, job_id: str, who: dict[str, str]) -> tuple[list[Any], Any, Any]:
    """Return the messages of a WebSocket and its close code or refusal."""
    url = f"{site.url.replace('http', 'ws')}/ws/jobs/{job_id}"
    words: list[Any] = []
    with connect(url, additional_headers=who, open_timeout=5) as opened:
        try:
            while True:
                words.append(opened.recv(timeout=5))
        except ConnectionClosed:
            return words, opened.close_code, opened.close_reason


def handshake(site: Any, who: dict[str, str]) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        said(site, new_job_id(), who)
    return refusal.value.response.status_code


@pytest.mark.parametrize("who", [BOB, NOBODY], ids=["stranger", "nobody"])
@pytest.mark.parametrize(("method", "suffix"), EVERY)
def test_the_job_of_another_owner_is_answered_as_unknown(
    site: Any, method: str, suffix: str, who: dict[str, str]
) -> None:
    jobs, below = [submit(site, ALICE), finished(site, ALICE)], suffix.format(name="log")
    for headers in ASKED:
        none, *theirs = (
            shape(site.client.request(method, f"{PREFIX}/{one}{below}", headers=who | headers))
            for one in (new_job_id(), *jobs)
        )
        assert none[0] == 404
        assert theirs == [none, none]
    assert [site.call(site.jobs.find, one).cancel_requested_at for one in jobs] == [None, None]
    assert site.call(site.jobs.find, jobs[0]).status == "pending"


@pytest.mark.parametrize("who", [BOB, NOBODY], ids=["stranger", "nobody"])
def test_a_websocket_of_another_owners_job_is_answered_as_unknown(
    site: Any, who: dict[str, str]
) -> None:
    none = said(site, new_job_id(), who)
    assert none == ([], 1008, "Job not found")
    assert said(site, submit(site, ALICE), who) == none
    assert said(site, finished(site, ALICE), who) == none


@pytest.mark.parametrize("who", [BOB, NOBODY], ids=["stranger", "nobody"])
def test_jobs_of_another_owner_are_not_listed(site: Any, who: dict[str, str]) -> None:
    before = shape(site.client.request(LIST.method, PREFIX, headers=who))
    submit(site, ALICE)
    finished(site, ALICE)
    assert shape(site.client.request(LIST.method, PREFIX, headers=who)) == before


@pytest.mark.parametrize(("method", "suffix"), EVERY)
def test_the_owner_finds_a_job_by_every_route(site: Any, method: str, suffix: str) -> None:
    job_id = finished(site, ALICE)
    below = suffix.format(name="log")
    answer = site.client.request(method, f"{PREFIX}/{job_id}{below}", headers=ALICE)
    # It has no file; those of an owner are in test_files.py.
    assert answer.status_code == (404 if suffix == "/files/{name}" else 200), answer.text


def test_the_owner_finds_a_job_by_its_socket_and_in_the_list(site: Any) -> None:
    job_id = finished(site, ALICE)
    words, code, _ = said(site, job_id, ALICE)
    assert (len(words), code) == (1, 1000)
    listed = site.client.get(PREFIX, headers=ALICE).json()["jobs"]
    assert listed[0]["jobId"] == job_id


def test_the_table_of_routes_is_complete() -> None:
    # The routes of tokens are in test_tokens.py.
    tokens = [RENEWAL, TAG_RENEWAL]
    assert {route.operation for route in [LIST, *ROUTES, *tokens]} == set(Operation)


def test_an_owner_named_by_the_app_takes_precedence_over_the_caller(site: Any) -> None:
    job_id = submit(site, ALICE, "?owner=carol")
    url = f"{PREFIX}/{job_id}"
    assert site.client.get(url, headers=ALICE).status_code == 404
    assert site.client.get(url, headers={"X-User": "carol"}).status_code == 200


def test_identified_callers_cannot_read_jobs_of_anonymous_callers(site: Any) -> None:
    url = f"{PREFIX}/{submit(site, NOBODY)}"
    assert site.client.get(url, headers=ALICE).status_code == 404
    assert site.client.get(url).status_code == 200


def test_without_identify_any_caller_can_read_a_job(open_site: OpenSite) -> None:
    with open_site() as site:
        url = f"{PREFIX}/{submit(site, ALICE, '?owner=carol')}"
        assert site.client.get(url, headers=BOB).status_code == 200


def test_two_owners_may_use_the_same_idempotency_key(site: Any) -> None:
    key = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    alice, bob, nobody = (submit(site, who, **key) for who in (ALICE, BOB, NOBODY))
    assert len({alice, bob, nobody}) == 3
    assert submit(site, ALICE, **key) == alice
    assert submit(site, BOB, **key) == bob


@pytest.mark.parametrize("status", [401, 403])
def test_an_http_error_raised_in_identify_is_the_answer_of_every_route(
    site: Any, status: int
) -> None:
    who = {"X-Refuse": str(status)}
    for method, suffix in EVERY:
        answer = site.client.request(method, f"{PREFIX}/{new_job_id()}{suffix}", headers=who)
        assert answer.status_code == status, (method, suffix)
    assert site.client.get(PREFIX, headers=who).status_code == status
    answer = site.client.post("/submit/outside", json={"count": 1}, headers=who)
    assert answer.status_code == status
    # ASGI servers can only refuse a handshake with 403.
    assert handshake(site, who) in {status, 403}


def test_a_value_error_behind_a_refusal_is_not_a_malformed_body(
    open_site: OpenSite, stack: Any
) -> None:
    def refuse_what_cannot_be_read(_: Any) -> None:
        try:
            uuid.UUID("a secret")
        except ValueError as error:
            try:
                stack.refuse(401)
            except Exception as refusal:
                raise refusal from error

    with open_site(identify=refuse_what_cannot_be_read) as site:
        answer = site.client.post("/submit/outside", json={"count": 1})
        assert answer.status_code == 401, answer.text


def test_an_invalid_owner_is_a_server_error_that_names_identify(
    site: Any, caplog: pytest.LogCaptureFixture
) -> None:
    who = {"X-Number": "7", "Connection": "close"}  # servers do this after such an answer
    url = f"{PREFIX}/{new_job_id()}"
    asked = [site.client.get(one, headers=who) for one in (url, PREFIX, f"{url}/events")]
    asked += [site.client.post("/submit/outside", json={"count": 1}, headers=who)]
    assert [answer.status_code for answer in asked] == [500] * 4
    assert handshake(site, {"X-Number": "7"}) == 500
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert len(errors) >= 5
    assert {type(error) for error in errors} == {ConfigurationError}
    assert {str(error) for error in errors} == {"`identify` must return a string or None, got 7."}
