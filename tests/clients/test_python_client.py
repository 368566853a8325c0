"""The Python client, blocking and not, against every framework."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from threading import Thread
from typing import Any

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest
from pydantic import BaseModel

from asyncjobs.client import (
    AsyncJobsClient,
    Following,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobsClient,
    JobStatus,
    JobTimeout,
    JobUpdate,
    NotAJob,
    RequestRefused,
    ResultMismatch,
    ServerUnreachable,
    Transport,
    follow,
)
from asyncjobs.errors import ConfigurationError

pytestmark = pytest.mark.every_store


class Doubled(BaseModel):
    doubled: int


class Tripled(BaseModel):
    tripled: int


@pytest.fixture
def client(served: Any) -> Generator[JobsClient]:
    with JobsClient(served.url) as client:
        yield client


@pytest.fixture
async def in_loop(served: Any) -> AsyncGenerator[AsyncJobsClient]:
    async with AsyncJobsClient(served.url) as client:
        yield client


def assert_told_once(updates: list[Any], *, status: str = "completed") -> None:
    versions = [one.version for one in updates]
    assert versions == sorted(set(versions))
    assert [one.status.terminal for one in updates] == [False] * (len(updates) - 1) + [True]
    assert updates[-1].status == status


def test_a_job_is_submitted_and_its_result_is_returned(client: JobsClient) -> None:
    job = client.submit("POST", "/double", json={"count": 21})
    assert job.result(timeout=30) == {"doubled": 42}
    assert job.result() == {"doubled": 42}


def test_the_type_of_a_result_is_the_callers(client: JobsClient) -> None:
    job = client.submit("POST", "/double", json={"count": 21}, type=Doubled)
    assert job.result().doubled == 42
    with pytest.raises(ResultMismatch, match=r"(?s)no Tripled.*tripled") as caught:
        job.result(type=Tripled)
    assert caught.value.result == {"doubled": 42}


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_client_of_either_library_can_be_handed_in(served: Any, library: Any) -> None:
    with library.Client(base_url=served.url, headers={"x-tenant": "7"}) as http:
        with JobsClient(http=http) as client:
            assert client.submit("POST", "/double", json={"count": 1}).result() == {"doubled": 2}
        assert not http.is_closed


def test_another_kind_of_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="str is no client of httpx2 or httpx"):
        JobsClient(http="http://localhost").attach("/api/jobs/1").result()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("transport", list(Transport))
def test_each_transport_tells_all_to_the_end(served: Any, gate: Any, transport: Transport) -> None:
    options = Following(transports=[transport])
    with JobsClient(served.url, options=options) as client:
        updates: list[JobUpdate] = []
        for update in client.attach(gate.status_url).updates(timeout=60):
            if not updates:
                gate.release()
            updates.append(update)
    assert_told_once(updates)
    assert (updates[0].progress, updates[0].message) == (40, "waiting")
    assert updates[-1].result == {"opened": gate.name}


def test_following_by_events_takes_one_request(served: Any, client: JobsClient) -> None:
    job = client.submit("POST", "/gate", json={"name": "one request"})
    before = len(served.seen)
    for update in job.updates():
        if update.progress == 40:
            served.submit("release", name="one request")
    asked = [one.path for one in served.seen[before:] if one.path != "/release"]
    assert asked == [f"/api/jobs/{job.monitor.job_id}/events"]


def test_a_failed_job_raises_its_own_words(client: JobsClient) -> None:
    job = client.submit("POST", "/full", json={})
    with pytest.raises(JobFailed, match=r"The disk is full\.") as caught:
        job.result()
    assert caught.value.code == "disk_full"
    assert caught.value.update.document["errorCode"] == "disk_full"


def test_a_job_can_be_cancelled(client: JobsClient, gate: Any) -> None:
    job = client.attach(gate.status_url)
    assert job.cancel().job_id == gate.document["jobId"]
    with pytest.raises(JobCancelled) as caught:
        job.result(timeout=60)
    assert caught.value.update.status is JobStatus.CANCELLED


@pytest.mark.parametrize("words", ["operation", "result"])
def test_a_job_is_followed_in_the_words_of_other_servers(
    client: JobsClient, gate: Any, words: str
) -> None:
    statuses: list[JobStatus] = []
    result = None
    for update in client.attach(f"{gate.status_url}/{words}").updates(timeout=60):
        if not statuses:
            gate.release()
        statuses.append(update.status)
        result = update.result
    assert statuses == ["processing", "completed"]
    assert result == {"opened": gate.name}


@pytest.mark.parametrize("words", ["operation", "result"])
@pytest.mark.parametrize(("kind", "ended"), [("full", JobFailed), ("gate", JobCancelled)])
def test_how_a_job_ended_is_known_in_the_words_of_other_servers(
    client: JobsClient, words: str, kind: str, ended: type[Exception]
) -> None:
    job = client.submit("POST", f"/{kind}", json={"name": "never opened"})
    if ended is JobCancelled:
        job.cancel()
    with pytest.raises(ended):
        client.attach(f"{job.status_url}/{words}").result(timeout=60)


def test_a_job_that_ended_within_the_wait_needs_no_following(
    served: Any, client: JobsClient
) -> None:
    job = client.submit("POST", "/double", json={"count": 2}, headers={"Prefer": "wait=20"})
    before = len(served.seen)
    assert job.result() == {"doubled": 4}
    assert len(served.seen) == before


@pytest.mark.parametrize("transport", list(Transport))
def test_the_callers_time_ends_a_following(served: Any, gate: Any, transport: Transport) -> None:
    with JobsClient(served.url, options=Following(transports=[transport])) as client:
        job = client.attach(gate.status_url)
        began = time.monotonic()
        with pytest.raises(JobTimeout, match=r"after 0\.5 s; it is processing") as caught:
            job.result(timeout=0.5)
        assert time.monotonic() - began >= 0.5
        assert caught.value.update is not None
        gate.release()
        assert job.result(timeout=60) == {"opened": gate.name}


def test_a_connection_that_is_cut_changes_nothing(fragile: Any, gate: Any) -> None:
    with JobsClient(fragile.url) as client:
        updates: list[JobUpdate] = []
        for update in client.attach(fragile.url + gate.document["statusUrl"]).updates(timeout=60):
            if not updates:
                fragile.cut()
                gate.release()
            updates.append(update)
    assert_told_once(updates)


@pytest.mark.parametrize("transport", [Transport.EVENTS, Transport.HOLD])
def test_a_network_that_cuts_all_the_time_is_survived(
    fragile: Any, gate: Any, transport: Transport
) -> None:
    found: list[Any] = []

    def run() -> None:
        options = Following(transports=[transport])
        with JobsClient(fragile.url, options=options) as client:
            found.extend(client.attach(gate.document["statusUrl"]).updates(timeout=60))

    thread = Thread(target=run)
    thread.start()
    for number in range(20):
        fragile.cut()
        thread.join(0.05)
        if number == 15:
            gate.release()
    thread.join()
    assert_told_once(found)


def test_a_submission_whose_answer_was_lost_is_sent_again_and_makes_one_job(served: Any) -> None:
    keys: list[str] = []

    def lose_first(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["idempotency-key"])
        with httpx2.Client() as real:
            answer = real.send(request)
        if len(keys) == 1:
            raise httpx2.ReadError("the connection was cut", request=request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)

    transport = httpx2.MockTransport(lose_first)
    with httpx2.Client(base_url=served.url, transport=transport) as http:
        job = JobsClient(http=http).submit("POST", "/double", json={"count": 3})
    assert len(keys) == 2
    assert len(set(keys)) == 1
    with JobsClient() as client:
        update = client.attach(job.status_url)
        assert update.result(timeout=60) == {"doubled": 6}


def test_the_callers_own_key_is_sent(client: JobsClient) -> None:
    key = f"own-{time.monotonic_ns()}"
    first, again = (
        client.submit("POST", "/double", json={"count": 4}, idempotency_key=key) for _ in range(2)
    )
    assert first.status_url == again.status_url


def test_what_is_refused_says_why(client: JobsClient) -> None:
    with pytest.raises(RequestRefused, match=r"refused with 400: .*cannot be used") as caught:
        client.submit("POST", "/double", json={"count": 1}, idempotency_key="k" * 256)
    assert caught.value.code == "invalid_idempotency_key"
    with pytest.raises(NotAJob, match="nothing, for Illegal header value"):
        client.submit("POST", "/double", json={"count": 1}, idempotency_key="\t")


def test_a_url_that_is_no_jobs_is_named(served: Any, client: JobsClient) -> None:
    unknown = "/api/jobs/job_00000000-0000-4000-8000-000000000000"
    with pytest.raises(JobNotFound, match="404: Job not found"):
        client.attach(unknown).result()
    with pytest.raises(JobNotFound):
        follow(served.url + unknown)
    with pytest.raises(NotAJob, match="nothing"):
        follow("no-scheme/jobs/1")


def test_a_server_that_is_not_there_is_given_up() -> None:
    options = Following(submit_for=0, patience=0)
    with JobsClient("http://127.0.0.1:9", options=options) as client:
        with pytest.raises(ServerUnreachable, match="refused"):
            client.submit("POST", "/double", json={})
        with pytest.raises(ServerUnreachable, match="refused"):
            client.attach("/api/jobs/1").result()


def test_a_bar_shows_how_far_the_job_is(
    client: JobsClient, gate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in client.attach(gate.status_url).updates(progress=True):
        gate.release()
    assert "completed" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_loop_submits_and_follows(in_loop: AsyncJobsClient) -> None:
    job = await in_loop.submit("POST", "/double", json={"count": 21}, type=Doubled)
    assert (await job.result(timeout=30)).doubled == 42
    failing = await in_loop.submit("POST", "/full", json={})
    with pytest.raises(JobFailed):
        await failing.result(progress=True)


@pytest.mark.anyio
@pytest.mark.parametrize("transport", [Transport.EVENTS, Transport.HOLD])
async def test_a_loop_is_told_all_through_cuts(
    fragile: Any, gate: Any, transport: Transport
) -> None:
    updates: list[JobUpdate] = []
    async with (
        AsyncJobsClient(fragile.url, options=Following(transports=[transport])) as client,
        client.attach(gate.document["statusUrl"]).updates(timeout=60) as incoming,
    ):
        async for update in incoming:
            if not updates:
                await anyio.to_thread.run_sync(fragile.cut)
                await anyio.to_thread.run_sync(gate.release)
            updates.append(update)
    assert_told_once(updates)


@pytest.mark.anyio
async def test_a_following_can_be_cancelled_and_leaves_no_connection(
    served: Any, gate: Any
) -> None:
    async with httpx2.AsyncClient(base_url=served.url) as http:
        job = AsyncJobsClient(http=http).attach(gate.status_url)
        with anyio.move_on_after(0.3) as scope:
            await job.result()
        assert scope.cancelled_caught
        assert job.last is not None
        pool: Any = http._transport
        assert pool._pool.connections == []
        cancelled = await job.cancel()
        assert cancelled.job_id == gate.document["jobId"]


@pytest.mark.anyio
async def test_a_loops_client_of_httpx_can_be_handed_in(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        job = await AsyncJobsClient(http=http).submit("POST", "/double", json={"count": 1})
        assert await job.result() == {"doubled": 2}
