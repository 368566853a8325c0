"""Tokens: the right one opens a job on every route and framework, and any other opens nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx2
import jwt
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from asyncjobs import AsyncJobs, JobId, Tokens
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.adapters.fastapi import Acceptor, jobs_router
from asyncjobs.core.job import new_job_id
from asyncjobs.http.routes import RENEWAL, ROUTES
from asyncjobs.http.tokens import TokenScope
from tests.adapters.conftest import STACKS, Stack, make_jobs

PREFIX = "/api/jobs"
KEY = "the secret of the tests, in 32 bytes or more"
TOKENS = Tokens(KEY)
HTML = {"Accept": "text/html"}
CANCELS = [("POST", "/cancel"), ("DELETE", "")]
READS = [
    (method, route.suffix)
    for route in ROUTES
    if route.method == "GET"
    for method in ("GET", "HEAD")
]
RENEWS = [(RENEWAL.method, RENEWAL.suffix)]
EVERY = [*READS, *CANCELS, *RENEWS]
SCOPED: list[tuple[list[tuple[str, str]], TokenScope]] = [(READS, "cancel"), (CANCELS, "read")]
ALICE = {"X-User": "alice"}
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@dataclass(frozen=True)
class Place:
    """A served application: its address, a client, its queue, and the event loop of the queue."""

    url: str
    client: httpx2.Client
    jobs: AsyncJobs
    call: Callable[..., Any]
    sockets: str = "/ws/jobs"

    def submit(self) -> dict[str, Any]:
        answer = self.client.post("/submit/outside", json={"count": 1}, headers=ALICE)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def finished(self) -> dict[str, Any]:
        document = self.submit()
        self.call(self.jobs.complete, JobId(document["jobId"]), "done")
        return document

    def send(self, method: str, job_id: str, suffix: str = "", **sent: Any) -> httpx2.Response:
        url = f"{PREFIX}/{job_id}{suffix}".replace("{name}", "no-such-file")
        return self.client.request(method, url, **sent)

    def cancelled(self, job_id: str) -> bool:
        job = self.call(self.jobs.find, JobId(job_id))
        return job.status == "cancelled" or job.cancel_requested_at is not None


def by_header(stack: Stack) -> Callable[[Any], str]:
    """Identify callers by a header, and refuse those without it: a token is enough without."""

    def identify(request: Any) -> str:
        headers = getattr(request, "headers", None)
        if headers is None:  # an ASGI scope
            headers = {name.decode(): value.decode() for name, value in request["headers"]}
        found = headers.get("X-User") or headers.get("x-user")
        if found is None:
            stack.refuse(401)
        return str(found)

    return identify


@contextmanager
def on_a_stack(name: str, jobs: AsyncJobs) -> Generator[Place]:
    stack = STACKS[name]
    app = stack.build([(jobs, {"identify": by_header(stack), "tokens": TOKENS})])
    with stack.serving(app) as url, httpx2.Client(base_url=url) as client:
        yield Place(url, client, jobs, lambda *what: stack.call(app, jobs, *what))


@contextmanager
def by_a_router(name: str, jobs: AsyncJobs) -> Generator[Place]:
    stack, app = STACKS[name], FastAPI()
    router = jobs_router(jobs, identify=by_header(stack), tokens=TOKENS)
    submitting = APIRouter()

    async def submit(accept: Acceptor = Depends(router.accept)) -> Response:  # noqa: B008
        return await accept("outside")

    submitting.add_api_route("/submit/outside", submit, methods=["POST"])
    app.include_router(submitting)
    app.include_router(router, prefix=PREFIX)
    with stack.serving(app) as url, httpx2.Client(base_url=url) as client:
        call = partial(stack.call, app, jobs)
        yield Place(url, client, jobs, call, f"{PREFIX}/ws")


class Alone:
    """The ASGI class without a framework; jobs are submitted beside HTTP."""

    def __init__(self, monitor: StatusMonitor) -> None:
        self.state = SimpleNamespace()
        self._monitor = monitor

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with self._monitor.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await self._monitor(scope, receive, send)
        except HTTPException as refusal:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            else:
                await Response(status_code=refusal.status_code)(scope, receive, send)


class PlaceOfOneClass(Place):
    def submit(self) -> dict[str, Any]:
        async def enqueue() -> str:
            handle = await self.jobs.enqueue("outside", {"count": 1}, user_id="alice")
            return handle.job.id

        job_id = self.call(enqueue)
        token = TOKENS.issue(job_id, datetime.now(UTC)).text
        return {"jobId": job_id, "token": token, "tokenUrl": f"{PREFIX}/{job_id}/token"}


@contextmanager
def bare(name: str, jobs: AsyncJobs) -> Generator[Place]:
    stack = STACKS[name]
    app = Alone(StatusMonitor(jobs, identify=by_header(stack), tokens=TOKENS))
    with stack.serving(app) as url, httpx2.Client(base_url=url) as client:
        yield PlaceOfOneClass(url, client, jobs, lambda *what: stack.call(app, jobs, *what))


PLACES: dict[str, tuple[Callable[[str, AsyncJobs], AbstractContextManager[Place]], str]] = {
    "starlette": (on_a_stack, "starlette"),
    "fastapi": (on_a_stack, "fastapi"),
    "flask": (on_a_stack, "flask"),
    "router": (by_a_router, "fastapi"),
    "asgi": (bare, "starlette"),
}


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest, new_url: Callable[[], str]) -> Generator[Place]:
    make, stack = PLACES[request.param]
    with make(stack, make_jobs(new_url())) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token_for(job_id: str, *, at: timedelta = timedelta(0), tokens: Tokens = TOKENS) -> str:
    return tokens.issue(job_id, datetime.now(UTC) + at).text


def unsigned(job_id: str) -> str:
    claims = jwt.decode(token_for(job_id), options={"verify_signature": False})
    return jwt.encode(claims, "", "none")


def signed_by(job_id: str, algorithm: str, key: str = KEY) -> str:
    claims = jwt.decode(token_for(job_id), options={"verify_signature": False})
    return jwt.encode(claims, key * 2, algorithm)


def half_right(job_id: str) -> str:
    """Make a token whose payload is ours and whose signature is of another token."""
    mine, other = token_for(job_id).split("."), token_for(new_job_id()).split(".")
    return ".".join([mine[0], mine[1], other[2]])


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "expired": (lambda one: token_for(one, at=-timedelta(hours=1)), "it has expired"),
    "early": (lambda one: token_for(one, at=timedelta(hours=1)), "it is not valid yet"),
    "none": (unsigned, "its algorithm is not allowed"),
    "algorithm": (lambda one: signed_by(one, "HS512"), "its algorithm is not allowed"),
    "signature": (half_right, "its signature is wrong"),
    "key": (lambda one: token_for(one, tokens=Tokens("x" * 32)), "its key is unknown"),
}


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith(f'Bearer error="{code}"')
    if answer.request.method != "HEAD":
        assert answer.json()["code"] == code
        assert answer.json()["type"].endswith(f"#{code}")


def answered(answer: httpx2.Response) -> None:
    """Check that the caller was let in."""
    assert answer.status_code in {200, 202, 303, 404}, answer.text
    if answer.status_code == 404:
        assert answer.request.url.path.endswith("/no-such-file")
        assert answer.request.method == "HEAD" or answer.json()["code"] == "file_not_found"


def said(place: Place, job_id: str, query: str = "", **headers: str) -> tuple[int, int]:
    """Return how many messages a WebSocket got, and its close code."""
    url = f"{place.url.replace('http', 'ws')}{place.sockets}/{job_id}{query}"
    with connect(url, additional_headers=headers, open_timeout=5) as opened:
        for got in count():
            try:
                opened.recv(timeout=5)
            except ConnectionClosed:
                return got, int(opened.close_code or 0)
    raise AssertionError


def test_the_token_of_the_202_reads_the_job(place: Place) -> None:
    document = place.finished()
    job_id, token = document["jobId"], document["token"]
    for method, suffix in READS:
        answered(place.send(method, job_id, suffix, headers=bearer(token)))
        answered(place.send(method, job_id, suffix, params={"token": token}))
        assert place.send(method, job_id, suffix).status_code == 401


def test_a_websocket_is_opened_by_a_token_from_any_site(place: Place) -> None:
    document = place.finished()
    job_id, token = document["jobId"], document["token"]
    assert said(place, job_id, f"?token={token}", **FOREIGN) == (1, 1000)
    assert said(place, job_id, **bearer(token), **FOREIGN) == (1, 1000)
    # The token of another job finds none, even for the owner.
    assert said(place, job_id, f"?token={token_for(new_job_id())}", **ALICE) == (0, 1008)
    narrow = token_for(job_id, tokens=Tokens(KEY, scopes=["cancel"]))
    wrong = [*(make(job_id) for make, _ in BROKEN.values()), narrow, "", "x"]
    for query in ["", *(f"?token={one}" for one in wrong)]:
        headers = ALICE if query else {}
        with pytest.raises(InvalidStatus) as refusal:
            said(place, job_id, query, **headers)
        # ASGI servers can only refuse a handshake with 403.
        assert refusal.value.response.status_code in {401, 403}
    with pytest.raises(InvalidStatus):
        said(place, job_id, **ALICE, **FOREIGN)


@pytest.mark.parametrize(("method", "suffix"), CANCELS)
def test_the_token_of_the_202_cancels_the_job_from_any_site(
    place: Place, method: str, suffix: str
) -> None:
    document = place.submit()
    headers = {**bearer(document["token"]), **FOREIGN}
    answered(place.send(method, document["jobId"], suffix, headers=headers))
    assert place.cancelled(document["jobId"])


@pytest.mark.parametrize(("method", "suffix"), [*CANCELS, *RENEWS])
def test_a_token_in_the_url_counts_for_safe_methods_only(
    place: Place, method: str, suffix: str
) -> None:
    document = place.submit()
    by_link = {"token": document["token"]}
    assert place.send(method, document["jobId"], suffix, params=by_link).status_code == 401
    owned = place.send(
        method, document["jobId"], suffix, params=by_link, headers={**ALICE, **FOREIGN}
    )
    assert (owned.status_code, owned.json()["code"]) == (403, "cross_site")
    assert not place.cancelled(document["jobId"])


def test_the_token_of_another_job_finds_none(place: Place) -> None:
    mine, theirs = place.submit(), place.submit()
    for method, suffix in EVERY:
        ways: list[dict[str, Any]] = [{"headers": bearer(mine["token"])}]
        if method in {"GET", "HEAD"}:
            ways.append({"params": {"token": mine["token"]}})
        for way in ways:
            unknown = place.send(method, new_job_id(), suffix, **way)
            answer = place.send(method, theirs["jobId"], suffix, **way)
            assert answer.status_code == unknown.status_code == 404
            assert answer.content == unknown.content
        # An owner does not make up for a token that opens another job.
        both = {**ALICE, **bearer(mine["token"])}
        assert place.send(method, theirs["jobId"], suffix, headers=both).status_code == 404
    assert not place.cancelled(theirs["jobId"])


@pytest.mark.parametrize("broken", BROKEN)
def test_a_token_that_is_not_valid_is_refused(place: Place, broken: str) -> None:
    make, reason = BROKEN[broken]
    job_id = place.submit()["jobId"]
    token = make(job_id)
    for method, suffix in EVERY:
        answer = place.send(method, job_id, suffix, headers={**ALICE, **bearer(token)})
        refused(answer, 401, "invalid_token")
        assert reason in answer.headers["www-authenticate"]
        if method in {"GET", "HEAD"}:
            answer = place.send(method, job_id, suffix, params={"token": token})
            refused(answer, 401, "invalid_token")
    assert not place.cancelled(job_id)


def test_a_token_without_the_scope_is_refused(place: Place) -> None:
    job_id = place.submit()["jobId"]
    for routes, scope in SCOPED:
        token = token_for(job_id, tokens=Tokens(KEY, scopes=[scope]))
        for method, suffix in routes:
            answer = place.send(method, job_id, suffix, headers=bearer(token))
            refused(answer, 403, "insufficient_scope")
    assert not place.cancelled(job_id)


def test_a_token_is_renewed_with_its_scopes(place: Place) -> None:
    job_id = place.submit()["jobId"]
    narrow = token_for(job_id, tokens=Tokens(KEY, scopes=["read"]))
    answer = place.send("POST", job_id, "/token", headers={**bearer(narrow), **FOREIGN})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    renewed = answer.json()
    assert renewed.keys() == {"token", "expiresAt"}
    left = datetime.fromisoformat(renewed["expiresAt"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)
    answered(place.send("GET", job_id, headers=bearer(renewed["token"])))
    cancel = place.send("DELETE", job_id, headers=bearer(renewed["token"]))
    refused(cancel, 403, "insufficient_scope")


def test_the_owner_gets_a_token_at_any_time_and_a_stranger_none(place: Place) -> None:
    job_id = place.finished()["jobId"]
    given = place.send("POST", job_id, "/token", headers=ALICE)
    answered(place.send("GET", job_id, "/result", headers=bearer(given.json()["token"])))
    assert place.send("POST", job_id, "/token", headers={"X-User": "bob"}).status_code == 404
    assert place.send("POST", job_id, "/token").status_code == 401
    assert place.send("GET", job_id, "/token", headers=ALICE).status_code == 405


def test_a_bearer_token_of_the_application_goes_to_identify(place: Place) -> None:
    job_id = place.submit()["jobId"]
    theirs = jwt.encode({"iss": "https://idp.example", "sub": "alice"}, "k" * 32)
    for token in (theirs, "opaque", "a.b.c", "..", f"{theirs}.x"):
        headers = bearer(token)
        assert place.send("GET", job_id, headers=headers).status_code == 401
        answered(place.send("GET", job_id, headers={**ALICE, **headers}))


def test_events_are_streamed_to_a_link_with_a_token(place: Place) -> None:
    document = place.finished()
    answer = place.send("GET", document["jobId"], "/events", params={"token": document["token"]})
    assert answer.headers["content-type"] == "text/event-stream"
    assert '"status":"completed"' in answer.text


def test_a_page_opened_by_a_token_never_names_it_nor_passes_it_on(place: Place) -> None:
    document = place.submit()
    for suffix in ("", "/result", "/nothing"):
        answer = place.send(
            "GET", document["jobId"], suffix, params={"token": document["token"]}, headers=HTML
        )
        assert document["token"] not in answer.text + str(answer.headers)
        assert answer.headers["referrer-policy"] == "no-referrer"
    by_owner = place.send("GET", document["jobId"], headers={**ALICE, **HTML})
    assert by_owner.headers["referrer-policy"] == "same-origin"


def test_a_tag_is_opened_by_its_own_token(place: Place) -> None:
    given = place.client.post(f"{PREFIX}/token", params={"tag": "nightly"}, headers=ALICE)
    assert given.status_code == 200, given.text
    token = given.json()["token"]
    listed = place.client.get(PREFIX, params={"tag": "nightly"}, headers=bearer(token))
    assert listed.json() == {"jobs": [], "next": None}
    by_link = {"tag": "nightly", "token": token}
    assert place.client.get(PREFIX, params=by_link).json() == listed.json()
    again = place.client.post(f"{PREFIX}/token", params={"tag": "nightly"}, headers=bearer(token))
    assert again.status_code == 200
    # Neither another list nor a job, nor the token of another tag.
    others: list[tuple[str, str, dict[str, str]]] = [
        ("GET", PREFIX, {}),
        ("GET", PREFIX, {"tag": "weekly"}),
        ("GET", f"{PREFIX}/{place.submit()['jobId']}", {"tag": "nightly"}),
        ("POST", f"{PREFIX}/token", {"tag": "weekly"}),
    ]
    for method, url, query in others:
        answer = place.client.request(method, url, params=query, headers=bearer(token))
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    for query in ({}, {"tag": " x"}):
        answer = place.client.post(f"{PREFIX}/token", params=query, headers=ALICE)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    assert place.client.post(f"{PREFIX}/token", params={"tag": "nightly"}).status_code == 401


def test_the_token_of_a_job_opens_no_list(place: Place) -> None:
    document = place.submit()
    for query in ({}, {"tag": "nightly"}, {"batch": new_job_id()}):
        answer = place.client.get(PREFIX, params=query, headers=bearer(document["token"]))
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "e30.e30.", "e30.e30.e30", "\ud7ff.é.\x00", "=.=.="]
)
def test_a_malformed_token_in_the_url_is_refused(place: Place, text: str) -> None:
    answer = place.send("GET", place.submit()["jobId"], params={"token": text}, headers=ALICE)
    refused(answer, 401, "invalid_token")


def test_claims_of_other_types_are_refused(place: Place) -> None:
    job_id = place.submit()["jobId"]
    right = jwt.decode(token_for(job_id), options={"verify_signature": False})
    wrong: list[dict[str, Any]] = [
        {"exp": "tomorrow"}, {"exp": True}, {"exp": 1e400}, {"iat": None}, {"sub": 7}, {"scope": 1},
        {"scope": ["read"]}, {"owner": 7}, {"iss": "x"}, {"aud": "x"}, {"aud": 7}, {"nbf": "x"},
    ]  # fmt: skip
    for change in wrong:
        token = signed({**right, **change})
        refused(place.send("GET", job_id, params={"token": token}), 401, "invalid_token")
    for missing in ("iss", "aud", "sub", "scope", "exp", "iat"):
        token = signed({name: value for name, value in right.items() if name != missing})
        refused(place.send("GET", job_id, params={"token": token}), 401, "invalid_token")


def signed(claims: dict[str, Any]) -> str:
    """Sign any claims, even those that PyJWT itself would not."""
    return jwt.api_jws.encode(json.dumps(claims).encode(), KEY, "HS256")


def test_the_routes_of_tokens_exist_only_with_tokens(open_site: Any) -> None:
    with open_site(identify=lambda _: "alice") as site:  # pyright: ignore[reportUnknownLambdaType]
        document = site.client.post("/submit/outside", json={"count": 1}).json()
        assert document.keys().isdisjoint({"token", "tokenUrl", "tokenExpiresAt"})
        url = f"{PREFIX}/{document['jobId']}"
        for path in (f"{url}/token", f"{PREFIX}/token"):
            answer = site.client.post(path, params={"tag": "x"})
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        # Without tokens, the parameter is any other unknown one.
        assert site.client.get(url, params={"token": "x"}).status_code == 200
