"""Tokens in the Python client: taken from the 202, renewed before they end, given up if refused."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, Tokens
from asyncjobs.adapters import flask as on_flask
from asyncjobs.client import AsyncJobsClient, JobsClient
from asyncjobs.client.answers import Monitor, MonitorKind, read_submission
from asyncjobs.client.base import RepeatedRequest
from asyncjobs.client.credential import Credential
from asyncjobs.client.errors import AccessRefused, ForeignUrl, NotAJob
from asyncjobs.client.exchange import Answered, Arrived, Ask, Broken, End, Opened, Read, Wait, Woke
from asyncjobs.client.follower import Follower, Following, Transport
from asyncjobs.client.sources import read_source
from asyncjobs.client.tokens import JobToken
from tests.wsgi import serving_wsgi

HOST = "http://jobs.example"
STATUS = f"{HOST}/jobs/job_1"
RENEWAL = f"{STATUS}/token"


def part(claims: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def token(name: str, seconds: float = 900) -> str:
    """Make a token of that many seconds, which no server has to verify here."""
    return f"{part({'name': name})}.{part({'iat': 1_000_000, 'exp': 1_000_000 + seconds})}.x"


@dataclass
class TokenServer:
    """A job that ends after some seconds, for callers with a token that it knows."""

    valid: set[str]
    ends_at: float = 60.0
    renews: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, "str | None"]])

    def perform(self, action: Ask | Read, now: float) -> Any:
        if isinstance(action, Read):
            return Arrived(b":\n\n")
        sent = action.headers.get("authorization")
        self.asked.append((action.method, sent))
        if action.url == RENEWAL:
            return self._renewal(sent, now)
        if sent not in {f"Bearer {one}" for one in self.valid}:
            return answered(action, 401, {"code": "invalid_token"})
        done = now >= self.ends_at
        status = "completed" if done else "processing"
        document = {"jobId": "job_1", "status": status, "version": 1 + done, "result": 7}
        if action.stream and not done:
            return Opened()
        return answered(action, 200, document)

    def _renewal(self, sent: str | None, now: float) -> Any:
        if not self.renews:
            return Broken("the connection was closed")
        if sent not in {f"Bearer {one}" for one in self.valid}:
            return answered(Ask("POST", RENEWAL), 401, {"code": "invalid_token"})
        new = token(f"at {now:g}", 20)
        self.valid = {new}
        return answered(Ask("POST", RENEWAL), 200, {"token": new})


def answered(ask: Ask, status: int, document: Any) -> Answered:
    return Answered(ask.url, ask.url, status, {}, json.dumps(document).encode())


def follow(server: TokenServer, first: str, **options: Any) -> Any:
    """Follow the job to its end in simulated time; return the error, if any."""
    kept = JobToken(first, RENEWAL, 20.0)
    events = f"{STATUS}/events"
    rule = Follower(
        Monitor(STATUS, MonitorKind.JOB, events=events, token=kept),
        Following(**options),
        Random(1),  # noqa: S311  # only for pauses
        credential=Credential(kept, 0.0),
    )
    now = 0.0
    step = rule.start(now)
    for _ in range(500):
        if isinstance(step.then, End):
            return step.then.error
        if isinstance(step.then, Wait):
            now += step.then.seconds
            step = rule.receive(Woke(), now)
        else:
            result = server.perform(step.then, now)
            now += 5.0 if isinstance(step.then, Read) else 0.1
            step = rule.receive(result, now)
    raise AssertionError("no end after 500 steps")


@pytest.mark.parametrize("transport", Transport)
def test_a_token_is_renewed_on_every_transport_until_the_job_ends(transport: Transport) -> None:
    server = TokenServer({token("first", 20)})
    assert follow(server, token("first", 20), transports=[transport]) is None
    renewals = [sent for method, sent in server.asked if method == "POST"]
    # Each is sent halfway to the end of the token before, which it still needs.
    assert renewals[0] == f"Bearer {token('first', 20)}"
    assert len(renewals) >= 4
    assert len(set(renewals)) == len(renewals)


def test_a_token_lasts_while_its_renewal_has_no_answer() -> None:
    server = TokenServer({token("first", 20)}, ends_at=15.0, renews=False)
    assert follow(server, token("first", 20), transports=[Transport.POLL]) is None


def test_a_refused_token_is_renewed_once_and_then_given_up() -> None:
    server = TokenServer({"another"})
    error = follow(server, token("old", 20), transports=[Transport.POLL])
    assert isinstance(error, AccessRefused)
    old = f"Bearer {token('old', 20)}"
    assert server.asked == [("GET", old), ("POST", old), ("GET", None)]


def test_the_token_goes_to_its_own_server_only() -> None:
    credential = Credential(JobToken("abc", RENEWAL, 20.0), 0.0)
    assert credential.headers_for(STATUS) == {"authorization": "Bearer abc"}
    assert credential.headers_for("https://jobs.example/jobs/job_1") == {}
    assert credential.headers_for("http://other.example/jobs/job_1") == {}


ACCEPTED = {"jobId": "job_1", "statusUrl": "/jobs/job_1", "status": "accepted"}


def accepted(**members: Any) -> Monitor:
    body = json.dumps({**ACCEPTED, **members}).encode()
    return read_submission(Answered(f"{HOST}/x", f"{HOST}/x", 202, {}, body)).monitor


def test_the_202_has_the_token_and_how_long_it_lasts() -> None:
    found = accepted(token=token("a", 60), tokenUrl="/jobs/job_1/token").token
    assert found == JobToken(token("a", 60), RENEWAL, 60.0, 1_000_060.0)
    assert token("a", 60) not in repr(found)
    assert accepted(token="a.b.c", tokenUrl="/t", tokenExpiresAt="1970-01-01T00:01:00Z").token == (
        JobToken("a.b.c", f"{HOST}/t", 300.0, 60.0)
    )
    assert accepted().token is None
    with pytest.raises(ForeignUrl):
        accepted(token="a.b.c", tokenUrl="http://other.example/token")


@pytest.mark.parametrize("text", [7, None, "", "a b", "a\nb", "é", "x" * 10_000])
def test_a_text_that_no_header_can_have_is_no_token(text: Any) -> None:
    assert accepted(token=text, tokenUrl="/jobs/job_1/token").token is None


@pytest.mark.parametrize(
    "text", ["opaque", "a.b.c", f"x.{part({})}.x", "x.e30.x", token("a", -5), token("a", 1e300)]
)
def test_a_token_without_times_of_its_own_is_renewed_after_minutes(text: str) -> None:
    found = accepted(token=text, tokenUrl="/jobs/job_1/token").token
    assert found is not None
    assert found.lifetime == 300.0


@contextmanager
def served(scopes: Any = ("read", "output", "cancel")) -> Generator[str]:
    """Serve jobs of callers who name themselves once, when they submit."""
    import flask  # noqa: PLC0415

    app, jobs = flask.Flask(__name__), AsyncJobs("memory://")

    @jobs.handler("double")
    async def double(number: int, job: JobContext) -> int:
        await job.save_file("double.txt", b"%d" % (number * 2))
        return number * 2

    jobs.external("outside", payload=int, result=int)

    def identify(request: Any) -> str:
        if "X-User" not in request.headers:
            flask.abort(401)
        return str(request.headers["X-User"])

    tokens = Tokens("the secret of the tests, in 32 bytes or more", scopes=scopes)
    on_flask.mount(app, jobs, identify=identify, tokens=tokens)
    for kind in ("double", "outside"):
        app.add_url_rule(f"/{kind}", kind, partial(on_flask.accept, kind), methods=["POST"])
    try:
        with serving_wsgi(app) as url:
            yield url
    finally:
        on_flask.portal_of(jobs, app).close()


USER = {"X-User": "ann"}


def test_a_job_is_followed_and_cancelled_by_the_token_of_its_202() -> None:
    with served() as url, JobsClient(url) as client:
        assert client.submit("POST", "/double", json=21, headers=USER).result() == 42
        assert (
            client.submit("POST", "/outside", json=1, headers=USER).cancel().status == "cancelled"
        )
        with pytest.raises(AccessRefused):
            client.attach(f"{url}/api/jobs/job_8e03978e-40d5-43dd-bc93-6894a57f9324").result()


def test_the_asynchronous_client_does_the_same() -> None:
    async def use(url: str) -> None:
        async with AsyncJobsClient(url) as client:
            job = await client.submit("POST", "/double", json=21, headers=USER)
            assert await job.result() == 42
            other = await client.submit("POST", "/outside", json=1, headers=USER)
            assert (await other.cancel()).status == "cancelled"

    with served() as url:
        anyio.run(use, url)


def test_what_the_token_does_not_allow_is_asked_with_the_callers_own_credentials() -> None:
    import httpx2  # noqa: PLC0415

    with served(scopes=["read"]) as url:
        with JobsClient(url) as client:
            job = client.submit("POST", "/outside", json=1, headers=USER)
            with pytest.raises(AccessRefused):
                job.cancel()
        with httpx2.Client(base_url=url, headers=USER) as http, JobsClient(http=http) as client:
            assert client.submit("POST", "/outside", json=1).cancel().status == "cancelled"


def test_a_job_that_ended_with_its_submission_is_opened_by_the_token_of_its_200() -> None:
    waiting = {**USER, "Prefer": "wait=20"}
    with served() as url, JobsClient(url) as client:
        job = client.submit("POST", "/double", json=21, headers=waiting)
        assert job.last is not None
        assert job.last.result == 42
        assert list(job.output()) == []
        assert [file.name for file in job.files] == ["double.txt"]
        assert b"".join(job.read_file("double.txt")) == b"42"
        with pytest.raises(AccessRefused):
            list(client.attach(job.status_url).output())


OURS = f"x.{part({'iss': 'asyncjobs', 'iat': 1_000_000, 'exp': 1_000_900})}.x"
GIVEN = {**ACCEPTED, "eventsUrl": "/jobs/job_1/events", "cancelUrl": "/jobs/job_1/cancel"}


class Model:
    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        assert (mode, by_alias) == ("json", True)
        return {**GIVEN, "token": OURS, "tokenUrl": "/elsewhere"}


def source(job: Any, **given: Any) -> Any:
    """Return the job that `attach` makes of a source, with the paths of `HOST`."""
    return read_source(job, lambda url: url if "://" in url else f"{HOST}{url}", **given)


@pytest.mark.parametrize(
    ("job", "given", "text", "renewal"),
    [
        (STATUS, {}, None, None),
        ("/jobs/job_1", {"token": "opaque"}, "opaque", RENEWAL),
        (STATUS, {"token": "a.b.c", "token_url": "/renewal"}, "a.b.c", f"{HOST}/renewal"),
        (f"{STATUS}?token={OURS}", {}, OURS, RENEWAL),
        (f"{STATUS}?token={OURS}", {"token": "a.b.c"}, "a.b.c", RENEWAL),
        (ACCEPTED, {}, None, None),
        (GIVEN, {"token": "a.b.c"}, "a.b.c", RENEWAL),
        ({**GIVEN, "token": OURS, "tokenUrl": "/elsewhere"}, {}, OURS, f"{HOST}/elsewhere"),
        ({**GIVEN, "token": "a b"}, {}, None, None),
        (Model(), {}, OURS, f"{HOST}/elsewhere"),
    ],
)
def test_a_job_of_another_program_is_named_by_its_url_or_document(
    job: Any, given: dict[str, Any], text: str | None, renewal: str | None
) -> None:
    monitor = source(job, **given).monitor
    assert monitor.status == STATUS
    held = monitor.token
    assert (held and held.text, held and held.url) == (text, renewal)
    if not isinstance(job, str):
        assert (monitor.kind, monitor.job_id) == (MonitorKind.JOB, "job_1")
    if isinstance(job, dict) and "cancelUrl" in job:
        assert (monitor.events, monitor.cancel) == (f"{STATUS}/events", f"{STATUS}/cancel")


def test_a_token_of_another_service_stays_in_its_url() -> None:
    url = f"{STATUS}?a=%20&token=secret&b"
    assert source(url).monitor == Monitor(url)
    found = source(f"{STATUS}?a=%20&token={OURS}&b").monitor
    assert (found.status, found.token and found.token.text) == (f"{STATUS}?a=%20&b", OURS)


def test_a_job_that_ended_with_its_submission_is_attached_with_its_result() -> None:
    ended = {"jobId": "job_1", "status": "completed", "result": 42, "tokenUrl": "/jobs/job_1/token"}
    found = source({**ended, "token": OURS})
    assert found.monitor.status == STATUS
    assert found.update is not None
    assert found.update.result == 42


@pytest.mark.parametrize(
    ("job", "given", "error"),
    [
        (7, {}, TypeError),
        (None, {}, TypeError),
        ({}, {}, ValueError),
        ({"jobId": "job_1", "tokenUrl": "/else"}, {}, ValueError),
        (STATUS, {"token": 7}, TypeError),
        (STATUS, {"token": "hunter2\n"}, ValueError),
        (STATUS, {"token": ""}, ValueError),
        ({**GIVEN, "cancelUrl": "http://other.example/x"}, {}, ForeignUrl),
        (STATUS, {"token": "a.b.c", "token_url": "http://other.example/x"}, ForeignUrl),
    ],
)
def test_what_names_no_job_or_is_no_token_is_refused_and_not_shown(
    job: Any, given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        source(job, **given)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("ends", "age"),
    [(1000.0, 0.0), (990.0, 10.0), (900.5, 99.5), (800.0, 100.0), (1001.0, 0.0), (1060.0, 100.0)],
)
def test_a_token_of_unknown_age_counts_as_at_its_end(ends: float, age: float) -> None:
    assert JobToken("abc", RENEWAL, 100.0, ends).age(900.0) == age
    assert JobToken("abc", RENEWAL, 100.0).age(900.0) == 100.0


def cancel(server: TokenServer, first: str, received: float) -> Any:
    """Cancel the job of a token in simulated time; return the error, if any."""
    credential = Credential(JobToken(first, RENEWAL, 20.0), received)
    ask = Ask("POST", f"{STATUS}/cancel")
    rule = RepeatedRequest(ask, 30.0, Random(1), credential=credential)  # noqa: S311
    now = 0.0
    step = rule.start(now)
    while not isinstance(step.then, End):
        if isinstance(step.then, Wait):
            now += step.then.seconds
            step = rule.receive(Woke(), now)
        else:
            step = rule.receive(server.perform(step.then, now), now)
    return step.then.error


def test_a_cancellation_renews_a_token_that_is_due_or_refused() -> None:
    old = token("old", 20)
    due = TokenServer({old})
    assert cancel(due, old, received=-15.0) is None
    new = f"Bearer {token('at 0', 20)}"
    assert due.asked == [("POST", f"Bearer {old}"), ("POST", new)]
    stale = TokenServer({"another"})
    assert isinstance(cancel(stale, old, received=0.0), AccessRefused)
    assert stale.asked == [("POST", f"Bearer {old}"), ("POST", f"Bearer {old}"), ("POST", None)]


@pytest.mark.parametrize("how", ["document", "link", "token"])
def test_a_job_of_another_program_is_followed_and_cancelled_by_its_token(how: str) -> None:
    import httpx2  # noqa: PLC0415

    async def use(url: str, job: Any, given: Any) -> None:
        async with AsyncJobsClient(url) as client:
            assert (await client.attach(job, **given).cancel()).status == "cancelled"

    with served() as url, httpx2.Client(base_url=url, headers=USER) as ann:
        for kind in ("double", "outside"):
            document = ann.post(f"/{kind}", json=21).json()
            status, text = document["statusUrl"], document["token"]
            job = {"document": document, "link": f"{status}?token={text}", "token": status}[how]
            given = {"token": text} if how == "token" else {}
            if kind == "outside":
                anyio.run(use, url, job, given)
                continue
            with JobsClient(url) as client:
                attached = client.attach(job, **given)
                assert attached.result() == 42
                assert list(attached.output()) == []
                assert attached.status_url == f"{url}{status}"
                assert b"".join(attached.read_file("double.txt")) == b"42"


def test_a_job_is_attached_before_there_is_an_event_loop() -> None:
    import httpx2  # noqa: PLC0415

    async def use(job: Any) -> None:
        assert await job.result() == 42

    with served() as url, httpx2.Client(base_url=url, headers=USER) as ann:
        document = ann.post("/double", json=21).json()
        anyio.run(use, AsyncJobsClient(url).attach(document))


def test_a_foreign_answer_is_still_no_job() -> None:
    with pytest.raises(NotAJob):
        read_submission(Answered(HOST, HOST, 202, {}, b'{"token":"a.b.c","tokenUrl":"/t"}'))
