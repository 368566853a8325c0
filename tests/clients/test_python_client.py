"""The Python clients on every framework, with faults of HTTP libraries, servers and networks.

`test_follower.py` tests the rules of following without I/O.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
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
    JobNotFound,
    JobsClient,
    JobTimeout,
    JobUpdate,
    NotAJob,
    RemoteFileNotFound,
    RemoteJobCancelled,
    RemoteJobFailed,
    RequestRefused,
    ResultMismatch,
    ServerUnreachable,
    Transport,
    follow,
)
from asyncjobs.errors import ConfigurationError

pytestmark = pytest.mark.every_store

STREAMED = pytest.mark.parametrize("transport", [Transport.EVENTS, Transport.HOLD])


class Doubled(BaseModel):
    doubled: int


class Tripled(BaseModel):
    tripled: int


@pytest.fixture
def client(served: Any) -> Generator[JobsClient]:
    with JobsClient(served.url) as client:
        yield client


def assert_complete(updates: list[JobUpdate]) -> None:
    """Check that updates are ordered, unique, and end with the job's end."""
    versions = [update.version or 0 for update in updates]
    assert versions == sorted(set(versions))
    assert [update.status.terminal for update in updates[:-1]] == [False] * (len(updates) - 1)
    assert updates[-1].status == "completed"


def test_the_result_has_the_requested_type(client: JobsClient) -> None:
    job = client.submit("POST", "/double", json={"count": 21}, type=Doubled)
    assert job.result(timeout=timedelta(minutes=1)).doubled == 42
    with pytest.raises(ResultMismatch, match=r"(?s)not a valid Tripled.*tripled") as caught:
        job.result(type=Tripled)
    assert caught.value.result == {"doubled": 42}


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_an_http_client_that_is_passed_in_stays_open(served: Any, library: Any) -> None:
    with library.Client(base_url=served.url) as http:
        with JobsClient(http=http) as client:
            assert client.submit("POST", "/double", json={"count": 1}).result() == {"doubled": 2}
        assert not http.is_closed


def test_an_http_client_of_the_wrong_kind_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="str is not a client of httpx2 or httpx"):
        JobsClient(http="http://localhost").attach("/api/jobs/1").result()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("transport", list(Transport))
def test_each_transport_yields_the_states_up_to_the_end(
    served: Any, gate: Any, transport: Transport
) -> None:
    with JobsClient(served.url, options=Following(transports=[transport])) as client:
        updates: list[JobUpdate] = []
        for update in client.attach(gate.status_url).updates():
            gate.release()
            updates.append(update)
    assert_complete(updates)
    assert (updates[0].progress, updates[0].message) == (40, "waiting")
    assert updates[-1].result == {"opened": gate.name}


def test_events_need_one_request_for_the_whole_job(served: Any, client: JobsClient) -> None:
    job = client.submit("POST", "/gate", json={"name": "one request"})
    before = len(served.seen)
    for update in job.updates():
        if update.progress == 40:
            served.submit("release", name="one request")
    asked = [one.path for one in served.seen[before:] if one.path != "/release"]
    assert asked == [f"/api/jobs/{job.monitor.job_id}/events"]


def test_a_failed_job_raises_the_servers_message_and_code(client: JobsClient) -> None:
    job = client.submit("POST", "/full", json={})
    with pytest.raises(RemoteJobFailed, match=r"The disk is full\.") as caught:
        job.result()
    assert caught.value.code == "disk_full"
    assert caught.value.update.document["errorCode"] == "disk_full"


@pytest.mark.parametrize("path", ["", "/operation", "/result"])
def test_a_cancelled_job_raises_at_each_status_url(
    client: JobsClient, gate: Any, path: str
) -> None:
    assert client.attach(gate.status_url).cancel().job_id == gate.document["jobId"]
    with pytest.raises(RemoteJobCancelled):
        client.attach(gate.status_url + path).result()


def test_a_job_that_ended_with_its_submission_needs_no_request(
    served: Any, client: JobsClient
) -> None:
    job = client.submit("POST", "/double", json={"count": 2}, headers={"Prefer": "wait=20"})
    before = len(served.seen)
    assert job.result() == {"doubled": 4}
    assert len(served.seen) == before


@pytest.mark.parametrize("transport", list(Transport))
def test_a_job_can_be_followed_again_after_a_timeout(
    served: Any, gate: Any, transport: Transport
) -> None:
    with JobsClient(served.url, options=Following(transports=[transport])) as client:
        job = client.attach(gate.status_url)
        next(job.updates())
        with pytest.raises(JobTimeout, match=r"after 0\.5 s; it is processing"):
            job.result(timeout=0.5)
        gate.release()
        assert job.result() == {"opened": gate.name}


@STREAMED
def test_a_lost_connection_loses_no_state(proxy: Any, gate: Any, transport: Transport) -> None:
    with JobsClient(options=Following(transports=[transport])) as client:
        updates: list[JobUpdate] = []
        for update in client.attach(proxy.through(gate.status_url)).updates():
            if not updates:
                proxy.cut()
                gate.release()
            updates.append(update)
    assert_complete(updates)


def test_a_submission_whose_answer_was_lost_starts_one_job(served: Any, proxy: Any) -> None:
    proxy.lose(1)
    before = len(served.requests("/double"))
    with JobsClient(proxy.through(served.url)) as client:
        job = client.submit("POST", "/double", json={"count": 3})
    first, again = served.requests("/double")[before:]
    assert first.key == again.key
    with JobsClient(served.url) as client:
        repeated = client.submit("POST", "/double", json={"count": 3}, idempotency_key=first.key)
        assert repeated.monitor.job_id == job.monitor.job_id
        assert repeated.result() == {"doubled": 6}


SIZES = {"März 50%.csv": 3_000_000, "empty": 0}


def test_files_are_listed_and_saved_while_connections_are_cut(
    proxy: Any, served: Any, tmp_path: Path
) -> None:
    url = proxy.through(served.submit("saves", sizes=SIZES).status_url)
    with JobsClient() as client:
        job = client.attach(url)
        job.result()
        assert {file.name: file.size for file in job.files} == SIZES
        for file in job.files:
            proxy.lose(1)
            path = job.download(file, tmp_path)
            assert (path.name, path.read_bytes()) == (file.name, bytes(file.size))
        assert len(list(tmp_path.iterdir())) == len(SIZES)
        # A job that was not followed lists no files, so the URL is derived from its own.
        other = client.attach(url)
        assert b"".join(other.read_file("März 50%.csv")) == bytes(3_000_000)
        with pytest.raises(RemoteFileNotFound):
            list(other.read_file("other.csv"))


def test_a_rejected_submission_raises_the_problem(client: JobsClient) -> None:
    with pytest.raises(RequestRefused, match=r"refused with 400: .*cannot be used") as caught:
        client.submit("POST", "/double", json={"count": 1}, idempotency_key="k" * 256)
    assert caught.value.code == "invalid_idempotency_key"
    with pytest.raises(NotAJob, match="nothing: Illegal header value"):
        client.submit("POST", "/double", json={"count": 1}, idempotency_key="\t")


def test_a_url_of_an_unknown_job_raises(served: Any) -> None:
    unknown = "/api/jobs/job_00000000-0000-4000-8000-000000000000"
    with pytest.raises(JobNotFound, match="404: Job not found"):
        follow(served.url + unknown)
    with pytest.raises(NotAJob, match="nothing"):
        follow("no-scheme/jobs/1")


def test_an_unreachable_server_raises() -> None:
    options = Following(submit_for=0, patience=0)
    with JobsClient("http://127.0.0.1:9", options=options) as client:
        with pytest.raises(ServerUnreachable, match="refused"):
            client.submit("POST", "/double", json={})
        with pytest.raises(ServerUnreachable, match="refused"):
            client.attach("/api/jobs/1").result()


@pytest.mark.anyio
@pytest.mark.parametrize("library", [None, httpx, httpx2], ids=["own", "httpx", "httpx2"])
async def test_the_asynchronous_client_submits_and_follows(
    served: Any, library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    http = None if library is None else library.AsyncClient(base_url=served.url)
    async with AsyncJobsClient(served.url, http=http) as client:
        job = await client.submit("POST", "/double", json={"count": 21}, type=Doubled)
        assert (await job.result()).doubled == 42
        failing = await client.submit("POST", "/full", json={})
        with pytest.raises(RemoteJobFailed):
            await failing.result(progress=True)
    assert "failed" in capsys.readouterr().err
    if http is not None:
        assert not http.is_closed
        await http.aclose()


@pytest.mark.anyio
async def test_files_are_saved_in_async_code(served: Any, tmp_path: Path) -> None:
    async with AsyncJobsClient(served.url) as client:
        job = await client.submit("POST", "/saves", json={"sizes": SIZES})
        await job.result()
        for file in job.files:
            path = await job.download(file, tmp_path / "saved")
            assert path.read_bytes() == bytes(file.size)
        async with job.read_file("März 50%.csv") as pieces:
            assert b"".join([piece async for piece in pieces]) == bytes(3_000_000)


@pytest.mark.anyio
@STREAMED
async def test_a_lost_connection_loses_no_state_in_async_code(
    proxy: Any, gate: Any, transport: Transport
) -> None:
    updates: list[JobUpdate] = []
    url = proxy.through(gate.status_url)
    async with (
        AsyncJobsClient(options=Following(transports=[transport])) as client,
        client.attach(url).updates() as incoming,
    ):
        async for update in incoming:
            if not updates:
                await anyio.to_thread.run_sync(proxy.cut)
                await anyio.to_thread.run_sync(gate.release)
            updates.append(update)
    assert_complete(updates)


@pytest.mark.anyio
@pytest.mark.parametrize("cancel", [False, True], ids=["left", "cancelled"])
async def test_leaving_updates_early_closes_the_connection(served: Any, *, cancel: bool) -> None:
    # With a connection limit of one, a request only succeeds if no other connection is open.
    limits = httpx2.Limits(max_connections=1)
    async with httpx2.AsyncClient(base_url=served.url, limits=limits) as http:
        client = AsyncJobsClient(http=http, options=Following(transports=[Transport.EVENTS]))
        job = await client.submit("POST", "/gate", json={"name": "left"})
        with anyio.CancelScope() as scope:
            async with job.updates() as updates:
                async for _ in updates:
                    if not cancel:
                        break
                    scope.cancel()
        assert scope.cancelled_caught is cancel
        with anyio.fail_after(60):
            assert (await job.cancel()).job_id == job.monitor.job_id


MISSING = """
import sys
sys.modules["httpx2"] = sys.modules["rich"] = None
import httpx
from asyncjobs.client import AsyncJobsClient, JobsClient, follow
from asyncjobs.errors import ConfigurationError

def refused(call):
    try:
        call()
    except ConfigurationError as error:
        print(error)

for kind in (JobsClient, AsyncJobsClient):
    refused(lambda: kind("http://127.0.0.1:1"))
refused(lambda: follow("http://127.0.0.1:1"))
job = JobsClient(http=httpx.Client()).attach("http://127.0.0.1:1")
refused(lambda: next(job.updates(progress=True)))
"""


def test_a_missing_library_is_named_with_its_extra_where_it_is_first_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISSING], check=True, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    kinds = ["JobsClient", "AsyncJobsClient", "JobsClient", "A progress bar"]
    assert [line.partition(" needs the package ")[0] for line in lines] == kinds
    assert all("pip install 'asyncjobs-http[client]'" in line for line in lines)
