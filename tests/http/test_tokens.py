"""The rules of tokens: secrets, times by the queue's clock, lists, and any text as a token."""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import jwt
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, Batch, EnqueueOptions, JobContext, JobId, Tokens
from asyncjobs.adapters.fastapi import jobs_router, mount
from asyncjobs.core.handlers import JobType
from asyncjobs.errors import ConfigurationError, InvalidToken
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount
from asyncjobs.http.streams import Close
from asyncjobs.http.submissions import Submit
from asyncjobs.testing import ManualClock

FIRST, SECOND = "the first of two secrets, in 32 bytes", "the second of two secrets, in 32 bytes"
TOKENS = Tokens(FIRST, lifetime=900, leeway=30)
NOW = ManualClock().now()
JOB = JobId("job_8e03978e-40d5-43dd-bc93-6894a57f9324")
NOTHING: dict[str, Any] = {}
OF_TOKENS = {"token", "tokenUrl", "tokenExpiresAt"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 31, [], {}, ["x" * 32, "short"], {"a": "b"}, [7], 7, b"x" * 32]
)
def test_a_secret_that_is_missing_or_short_is_a_mistake_and_never_shown(secret: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        Tokens(secret)
    assert "x" * 9 not in str(error.value)
    assert FIRST not in repr(TOKENS)


@pytest.mark.parametrize(
    "terms", [{"lifetime": 0}, {"leeway": -1}, {"scopes": []}, {"scopes": ["write"]}]
)
def test_values_out_of_range_are_a_mistake(terms: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Tokens(FIRST, **terms)


def test_a_secret_that_the_environment_does_not_have_names_the_fix() -> None:
    missing: Any = os.environ.get("A_VARIABLE_THAT_IS_NOT_SET")
    with pytest.raises(ConfigurationError, match="got None: set the environment variable"):
        Tokens(missing)


@pytest.mark.parametrize("options", [{"lifetime": None}, {"leeway": None}, {"scopes": 5}])
def test_an_option_of_a_wrong_type_is_a_mistake(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"must be (seconds|some of)"):
        Tokens(FIRST, **options)


def test_the_first_secret_signs_and_all_verify() -> None:
    before, both = Tokens([FIRST]), Tokens([SECOND, FIRST])
    old, new = before.issue(JOB, NOW).text, both.issue(JOB, NOW).text
    assert both.read(old, NOW) == both.read(new, NOW)
    with pytest.raises(InvalidToken, match="its key is unknown"):
        before.read(new, NOW)
    # The order of the secrets changes no key's id, nor does another process.
    assert Tokens([FIRST, SECOND]).read(new, NOW).subject == JOB


def test_keys_may_have_ids_of_ones_own() -> None:
    tokens = Tokens({"new": SECOND, "old": FIRST})
    issued = tokens.issue(JOB, NOW).text
    assert jwt.get_unverified_header(issued) == {"alg": "HS256", "kid": "new", "typ": "JWT"}
    # A token without an id is that of the first secret.
    without = jwt.encode(claims_of(issued), SECOND, "HS256")
    assert tokens.read(without, NOW).subject == JOB
    with pytest.raises(InvalidToken, match="its signature is wrong"):
        tokens.read(jwt.encode(claims_of(issued), FIRST, "HS256"), NOW)


def test_a_token_says_nothing_but_what_it_opens_and_for_how_long() -> None:
    assert TOKENS.read(TOKENS.issue(JOB, NOW).text, NOW).lasts == 930
    claims = claims_of(TOKENS.issue(JOB, NOW).text)
    assert claims == {
        "iss": "asyncjobs",
        "aud": "asyncjobs",
        "sub": JOB,
        "scope": "read output cancel",
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 900,
    }


@pytest.mark.parametrize(
    ("after", "renews", "allowed"),
    [
        (-31, False, False), (-30, False, True), (0, False, True), (929, False, True),
        (930, False, False), (989, True, True), (990, True, False),
    ],
)  # fmt: skip
def test_clocks_may_differ_by_the_leeway_and_a_renewal_may_be_late(
    after: int, renews: bool, allowed: bool
) -> None:
    token, moment = TOKENS.issue(JOB, NOW).text, NOW + timedelta(seconds=after)
    if allowed:
        assert TOKENS.read(token, moment, renews=renews).subject == JOB
    else:
        with pytest.raises(InvalidToken):
            TOKENS.read(token, moment, renews=renews)


def test_a_mount_that_gives_fewer_scopes_takes_them_from_older_tokens() -> None:
    fewer = Tokens(FIRST, scopes=["read"])
    grant = fewer.read(TOKENS.issue(JOB, NOW).text, NOW)
    assert grant.scopes == ("read",)
    renewed = fewer.issue(JOB, NOW, like=grant).text
    assert TOKENS.read(renewed, NOW).scopes == ("read",)


def encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).rstrip(b"=").decode()


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3),
)

parts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(TOKENS.issue(JOB, NOW).text.split(".")),
    json_values.map(lambda value: encoded(json.dumps(value).encode())),
)


@given(st.one_of(st.text(max_size=60), st.lists(parts, max_size=5).map(".".join)))
def test_any_other_text_is_an_invalid_token(text: str) -> None:
    if text != TOKENS.issue(JOB, NOW).text:
        with pytest.raises(InvalidToken):
            TOKENS.read(text, NOW)
    TOKENS.find(Request("GET", headers=bearer(text)))
    TOKENS.find(Request("GET", query=f"token={text}"))


@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "scope", "iat", "exp", "nbf", "owner", "jti"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
        | st.lists(st.text(max_size=3), max_size=2),
        max_size=4,
    )
)  # fmt: skip
def test_signed_claims_of_any_type_are_read_or_refused(change: dict[str, Any]) -> None:
    claims = {**claims_of(TOKENS.issue(JOB, NOW).text), **change}
    text = jwt.api_jws.encode(json.dumps(claims).encode(), FIRST, "HS256")
    try:
        grant = TOKENS.read(text, NOW)
    except InvalidToken:
        return
    assert isinstance(grant.subject, str)
    assert set(grant.scopes) <= {"read", "output", "cancel"}


def test_nesting_and_length_are_refused_like_any_other_mistake() -> None:
    deep = encoded(b"[" * 2_000)
    for text in (f"{deep}.{deep}.x", f"e30.{deep}.x", "a" * 100_000, "." * 5_000):
        with pytest.raises(InvalidToken):
            TOKENS.read(text, NOW)
        assert TOKENS.find(Request("GET", headers=bearer(text))) is None


@asynccontextmanager
async def opened(
    clock: ManualClock | None = None, *, identified: bool = True, tokens: Tokens = TOKENS
) -> AsyncGenerator[Endpoints]:
    jobs = AsyncJobs("memory://", clock=clock)
    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    endpoints = Endpoints(jobs, Mount(identified=identified, tokens=tokens))
    async with jobs:
        yield endpoints


async def _nothing() -> None: ...


def document(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.body)
    return found


def test_a_token_ends_by_the_clock_of_the_queue() -> None:
    async def use() -> None:
        clock = ManualClock()
        async with opened(clock) as endpoints:
            job = (await endpoints.jobs.enqueue("order", NOTHING, user_id="ann")).job
            given = await endpoints.handle(Request("POST", f"{job.id}/token", owner="ann"))
            headers = bearer(document(given)["token"])
            read, renew = (
                Request("GET", job.id, headers=headers),
                Request("POST", f"{job.id}/token", headers=headers),
            )
            assert (await endpoints.handle(read)).status == 200
            clock.advance(timedelta(minutes=15, seconds=31))
            assert (await endpoints.handle(read)).status == 401
            assert (await endpoints.handle(renew)).status == 200
            clock.advance(timedelta(minutes=1))
            assert (await endpoints.handle(renew)).status == 401

    anyio.run(use)


def test_no_url_in_an_answer_repeats_the_token() -> None:
    async def use() -> None:
        async with opened() as endpoints:
            options = EnqueueOptions(tags=["nightly"])
            for _ in range(3):
                await endpoints.jobs.enqueue("order", NOTHING, user_id="ann", options=options)
            given = Request("POST", "token", query="tag=nightly", owner="ann")
            token = document(await endpoints.handle(given))["token"]
            query = f"tag=nightly&limit=1&token={token}"
            first = await endpoints.handle(Request("GET", "", query=query))
            assert document(first)["next"].startswith("/api/jobs?tag=nightly&limit=1&cursor=")
            assert token not in str(first)
            # The next page has the same token, given again by the client.
            following = document(first)["next"].partition("?")[2]
            second = Request("GET", "", query=f"{following}&token={token}")
            assert len(document(await endpoints.handle(second))["jobs"]) == 1
            events = Request("GET", "", query=query, headers={"accept": "text/event-stream"})
            stream = await endpoints.handle(events)
            assert (stream.status, stream.header("Referrer-Policy")) == (200, "no-referrer")
            assert isinstance(stream, StreamingResponse)
            await stream.chunks.aclose()

    anyio.run(use)


def test_the_token_of_a_batch_lists_its_jobs_and_opens_none_of_them() -> None:
    async def use() -> None:
        async with opened() as endpoints:
            jobs = endpoints.jobs
            batch = await jobs.enqueue_batch("order", [NOTHING, NOTHING], user_id="ann")
            headers = bearer(TOKENS.issue(batch.id, jobs.clock.now()).text)
            answer = await endpoints.handle(
                Request("GET", "", query=f"batch={batch.id}", headers=headers)
            )
            members = [one["jobId"] for one in document(answer)["jobs"]]
            assert len(members) == 2
            assert (await endpoints.handle(Request("GET", batch.id, headers=headers))).status == 200
            assert (
                await endpoints.handle(Request("GET", members[0], headers=headers))
            ).status == 404
            other = Request("GET", "", query=f"batch={members[0]}", headers=headers)
            assert (await endpoints.handle(other)).status == 404

    anyio.run(use)


def test_no_other_parameter_stands_for_the_tag_of_a_token() -> None:
    async def use() -> None:
        async with opened() as endpoints:
            jobs = endpoints.jobs
            options = EnqueueOptions(tags=["secret"])
            job = (await jobs.enqueue("order", NOTHING, user_id="ann", options=options)).job
            now = jobs.clock.now()
            of_tag = bearer(TOKENS.issue("tag:public", now, owner="ann").text)
            of_job = bearer(TOKENS.issue(job.id, now).text)

            async def status(method: str, path: str, query: str, headers: dict[str, str]) -> int:
                asked = Request(method, path, query=query, headers=headers)
                return (await endpoints.handle(asked)).status

            assert await status("POST", "token", "tag=public", of_tag) == 200
            for query in ("tag=secret", "tag=secret&batch=tag:public", "tag=secret&tag=public"):
                assert await status("POST", "token", query, of_tag) == 404
            for query in (f"tag=secret&batch={job.id}", f"tag={job.id}"):
                assert await status("POST", "token", query, of_job) == 404
            assert await status("POST", "token", "batch=tag:public", of_tag) == 400
            assert await status("GET", "", "tag=public", of_tag) == 200
            assert await status("GET", "", "batch=tag:public", of_tag) == 400
            assert await status("GET", "", "tag=secret&batch=tag:public", of_tag) == 400
            assert await status("GET", "", f"tag=secret&batch={job.id}", of_tag) == 404
            assert await status("GET", "tag:public", "", of_tag) == 404
            assert await status("POST", "tag:public/token", "", of_tag) == 404

    anyio.run(use)


@pytest.fixture(params=["mount", "router"])
def app(request: pytest.FixtureRequest) -> tuple[FastAPI, AsyncJobs]:
    """An application whose callers have the app's own bearer tokens; its whole is guarded, too."""
    scheme = OAuth2PasswordBearer("login")

    def guard(x_blocked: str | None = None) -> None:
        if x_blocked is not None:
            raise HTTPException(418)

    async def current_user(token: str = Depends(scheme)) -> str:
        return f"user of {token}"

    app = FastAPI(dependencies=[Depends(guard)])
    jobs = AsyncJobs("memory://")
    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    if request.param == "mount":
        mount(app, jobs, identify=current_user, tokens=TOKENS)
    else:
        app.include_router(
            jobs_router(jobs, identify=current_user, tokens=TOKENS), prefix="/api/jobs"
        )
    app.dependency_overrides[guard] = guard
    return app, jobs


def test_on_fastapi_identify_is_resolved_only_without_a_token(
    app: tuple[FastAPI, AsyncJobs],
) -> None:
    site, jobs = app
    with TestClient(site) as client:
        job = jobs.sync.enqueue("order", NOTHING, user_id="user of x").job
        token = TOKENS.issue(job.id, jobs.clock.now()).text
        url = f"/api/jobs/{job.id}"
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"Authorization": "Bearer x"}).status_code == 200
        assert client.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        # The dependencies of the whole app still apply.
        blocked = client.get(url, params={"token": token, "x_blocked": "1"})
        assert blocked.status_code == 418


def test_openapi_names_the_schemes_of_identify_and_the_token(
    app: tuple[FastAPI, AsyncJobs],
) -> None:
    described = app[0].openapi()
    paths = described["paths"]
    assert {"/api/jobs/{job_id}/token", "/api/jobs/token"} <= paths.keys()
    schemes = described["components"]["securitySchemes"]
    assert schemes["JobToken"]["bearerFormat"] == "JWT"
    for path in (one for one in paths if one.startswith("/api/jobs")):
        for method, operation in paths[path].items():
            named = {name for one in operation["security"] for name in one}
            assert named == {"OAuth2PasswordBearer", "JobToken"}, (method, path)
            assert {"401", "403"} <= operation["responses"].keys()
            parameters = {one["name"] for one in operation["parameters"]}
            assert ("token" in parameters) == (method == "get")


def test_a_batch_submitted_by_a_route_has_a_token_of_its_own() -> None:
    async def use() -> None:
        async with opened() as endpoints:
            asked = Request("POST", owner="ann")
            kind: JobType[Any, Any] = endpoints.jobs.registry.find("order")
            answer = await endpoints.accept(asked, kind, Batch([NOTHING]), Submit())
            accepted = document(answer)
            assert claims_of(accepted["token"])["sub"] == accepted["jobId"]
            assert accepted["tokenUrl"] == f"/api/jobs/{accepted['jobId']}/token"
            ends = datetime.fromisoformat(accepted["tokenExpiresAt"])
            assert ends.timestamp() == claims_of(accepted["token"])["exp"]

    anyio.run(use)


@pytest.mark.parametrize(
    ("caller", "user_id", "identified", "given"),
    [
        ("ann", None, True, True),
        ("ann", "ann", True, True),
        ("admin", "ann", True, False),
        (None, "ann", True, False),
        (None, None, True, True),
        (None, "ann", False, True),
    ],
)
def test_only_a_caller_with_access_to_the_job_gets_its_token(
    caller: str | None, user_id: str | None, identified: bool, given: bool
) -> None:
    async def use() -> None:
        async with opened(identified=identified) as endpoints:
            kind: JobType[Any, Any] = endpoints.jobs.registry.find("order")
            asked, submit = Request("POST", owner=caller), Submit(user_id=user_id)
            for payload in (NOTHING, Batch([NOTHING])):
                answer = await endpoints.accept(asked, kind, payload, submit)
                assert answer.status == 202
                found = document(answer).keys() & OF_TOKENS
                assert found == (OF_TOKENS if given else set())

    anyio.run(use)


def test_an_answer_that_waited_for_the_end_has_a_token_too() -> None:
    async def use() -> None:
        async with opened() as endpoints:
            kind = endpoints.jobs.handler("quick", inline_wait=30)(_nothing)
            for caller, user_id in (("ann", None), ("admin", "ann")):
                asked = Request("POST", owner=caller, headers={"prefer": "wait=30"})
                answer = await endpoints.accept(asked, kind, None, Submit(user_id=user_id))
                assert answer.status == 200
                ended = document(answer)
                assert ended["status"] == "completed"
                if caller == "admin":
                    assert not ended.keys() & OF_TOKENS
                    continue
                assert ended["tokenUrl"] == f"/api/jobs/{ended['jobId']}/token"
                read = Request("GET", ended["jobId"], headers=bearer(ended["token"]))
                shown = document(await endpoints.handle(read))
                assert not shown.keys() & OF_TOKENS
                ends = datetime.fromisoformat(ended["tokenExpiresAt"])
                assert ends.timestamp() == claims_of(ended["token"])["exp"]

    anyio.run(use)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
def test_a_token_that_only_cancels_reads_nothing_in_the_answer(
    method: str, suffix: str, ended: bool
) -> None:
    async def use() -> None:
        async with opened() as endpoints:
            jobs = endpoints.jobs
            job = (await jobs.enqueue("order", NOTHING, user_id="ann")).job
            await jobs.update_progress(job.id, 10)
            if ended:
                await jobs.complete(job.id, {"rows": 7})
            narrow = Tokens(FIRST, scopes=["cancel"]).issue(job.id, jobs.clock.now()).text
            full = TOKENS.issue(job.id, jobs.clock.now()).text
            asked = Request(method, f"{job.id}{suffix}", headers=bearer(narrow))
            answer = await endpoints.handle(asked)
            shown = document(answer)
            assert shown == {
                "jobId": job.id,
                "status": (await jobs.find(job.id)).status,
                "statusUrl": f"/api/jobs/{job.id}",
            }
            whole = await endpoints.handle(asked._replace(headers=bearer(full)))
            assert (answer.status, answer.headers) == (whole.status, whole.headers)
            assert document(whole)["result"] == ({"rows": 7} if ended else None)

    anyio.run(use)


@pytest.mark.parametrize(
    ("path", "query", "accept"),
    [
        ("{job}/events", "", "text/event-stream"),
        ("", "tag=nightly", "text/event-stream"),
        ("{job}/output", "offset=-1&live=sse", "*/*"),
        (None, "", "*/*"),
    ],
)
def test_no_stream_lasts_longer_than_its_token(path: str | None, query: str, accept: str) -> None:
    async def use() -> None:
        brief = Tokens(FIRST, lifetime=1, leeway=1)
        async with opened(tokens=brief) as endpoints:
            jobs = endpoints.jobs
            done = anyio.Event()

            @jobs.handler("talk")
            async def talk(job: JobContext) -> None:
                await job.emit("hello")
                await done.wait()

            options = EnqueueOptions(tags=["nightly"])
            job = (await jobs.enqueue(talk, user_id="ann", options=options)).job
            now = jobs.clock.now()
            token = brief.issue(job.id if path != "" else "tag:nightly", now, owner="ann").text
            asked = Request("GET", job.id, headers={"accept": accept, **bearer(token)}, query=query)
            with anyio.fail_after(60):
                if path is None:
                    *_, last = [one async for one in endpoints.follow(asked)]
                    assert isinstance(last, Close)
                    assert last.code == 1001
                    done.set()
                    return
                answer = await endpoints.handle(asked._replace(path=path.format(job=job.id)))
                assert isinstance(answer, StreamingResponse)
                assert [one async for one in answer.chunks]
                done.set()
                await answer.chunks.aclose()

    anyio.run(use)
