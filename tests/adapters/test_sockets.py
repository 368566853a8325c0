"""A job's documents over a WebSocket, read by an independent client."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asyncjobs import Job, JobId
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.http.documents import JobDocument
from asyncjobs.http.mounts import MountOptions
from tests.waiting import until_sync

# Identical in every process: parameters become test ids.
pytestmark = pytest.mark.every_store

NEVER = "job_8e03978e-40d5-43dd-bc93-6894a57f9324"

OpenSite = Callable[..., AbstractContextManager[Any]]

APP = "https://app.example.com"
LIVELY = MountOptions(keep_alive_interval=0.05)


@pytest.fixture(scope="module")
def site(open_site: OpenSite) -> Generator[Any]:
    with open_site(options=LIVELY) as opened:
        yield opened


def begin(site: Any, root: str = "") -> JobId:
    """Submit a job whose work the test does."""
    answer = site.client.post(f"{root}/submit/outside", json={"count": 1})
    return JobId(answer.json()["jobId"])


def finish(site: Any, job_id: JobId) -> int:
    job: Job = site.call(site.jobs.complete, job_id, "done")
    return job.version


@contextmanager
def socket_of(
    site: Any, job_id: str, query: str = "", *, path: str = "/ws/jobs", **headers: str
) -> Generator[ClientConnection]:
    url = f"{site.url.replace('http', 'ws')}{path}/{job_id}{query}"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with connect(url, additional_headers=sent, open_timeout=5, close_timeout=5) as opened:
        yield opened


def documents(opened: ClientConnection) -> Iterator[dict[str, Any]]:
    """Yield messages until the server closes."""
    while True:
        try:
            text = opened.recv(timeout=5)
        except ConnectionClosed:
            return
        assert isinstance(text, str)
        yield json.loads(text)


def code_of(opened: ClientConnection) -> int | None:
    """Return the close code of the server; fails if a message comes first."""
    assert list(documents(opened)) == []
    return opened.close_code


def refused(site: Any, job_id: str, **headers: str) -> int:
    """Return the status of a refused handshake."""
    with pytest.raises(InvalidStatus) as refusal, socket_of(site, job_id, **headers):
        pass
    return refusal.value.response.status_code


def test_a_socket_sends_each_change_and_closes_after_the_terminal_one(site: Any) -> None:
    job_id = begin(site)
    with socket_of(site, job_id) as opened:
        said = documents(opened)
        assert next(said)["status"] == "pending"
        for percent in (10, 60):
            site.call(site.jobs.update_progress, job_id, percent)
            assert next(job for job in said if job["status"] == "processing" and job["progress"])
        finish(site, job_id)
        assert [job["status"] for job in said] == ["completed"]
        assert opened.close_code == 1000


def test_a_socket_sends_status_documents(site: Any) -> None:
    job_id = begin(site)
    finish(site, job_id)
    with socket_of(site, job_id) as opened:
        [document] = documents(opened)
    JobDocument.model_validate(document)
    assert document == site.client.get(f"/api/jobs/{job_id}").json()


@pytest.mark.parametrize("job_id", [NEVER, "job_1", "%00", "%FF", "x" * 1000])
def test_a_socket_of_an_unknown_job_is_closed_with_its_own_code(site: Any, job_id: str) -> None:
    with socket_of(site, job_id) as opened:
        assert code_of(opened) == 1008
        assert opened.close_reason == "Job not found"


def test_a_socket_resumes_after_the_version_in_the_query(site: Any) -> None:
    job_id = begin(site)
    with socket_of(site, job_id, "?after=1") as opened:
        version = finish(site, job_id)
        assert [job["status"] for job in documents(opened)][-1] == "completed"
    with socket_of(site, job_id, f"?after={version}") as opened:
        assert code_of(opened) == 1000
    for query in ("?after=1", "?after=none", "?after="):
        with socket_of(site, job_id, query) as opened:
            assert [job["status"] for job in documents(opened)] == ["completed"]


def test_a_page_of_a_trusted_origin_can_open_a_socket(open_site: OpenSite) -> None:
    with open_site(options=MountOptions(origins=(APP,))) as site:
        job_id = begin(site)
        finish(site, job_id)
        with socket_of(site, job_id, Origin=APP, Sec_Fetch_Site="cross-site") as opened:
            assert len(list(documents(opened))) == 1
        assert refused(site, job_id, Origin=f"{APP}.evil.example") == 403


def test_messages_of_the_client_are_ignored(site: Any) -> None:
    job_id = begin(site)
    with socket_of(site, job_id) as opened:
        opened.recv(timeout=5)
        for words in ("cancel", b"\x00\xff", "x" * 100_000):
            opened.send(words)
        opened.ping().wait(5)
        assert site.client.get(f"/api/jobs/{job_id}").json()["status"] == "pending"
        finish(site, job_id)
        assert [job["status"] for job in documents(opened)][-1] == "completed"


@pytest.mark.parametrize("how", ["close frame", "connection lost"])
def test_a_client_that_disconnects_is_no_longer_followed(open_site: OpenSite, how: str) -> None:
    with open_site(options=LIVELY) as site:
        with socket_of(site, begin(site)) as opened:
            opened.recv(timeout=5)
            assert site.jobs.watchers == 1
            if how == "connection lost":
                opened.socket.close()
        until_sync(lambda: site.jobs.watchers == 0)


def test_a_socket_is_below_the_path_under_which_the_app_is_reached(open_site: OpenSite) -> None:
    with open_site(root="/v1") as site:
        job_id = begin(site, "/v1")
        finish(site, job_id)
        with socket_of(site, job_id, path="/v1/ws/jobs") as opened:
            assert [job["status"] for job in documents(opened)] == ["completed"]


@pytest.mark.parametrize(
    ("terms", "path"),
    [
        ({"prefix": "/api/v2/jobs"}, "/ws/v2/jobs"),
        ({"prefix": "/jobs"}, "/ws/jobs"),
        ({"prefix": "/apis"}, "/ws/apis"),
        ({"options": MountOptions(websocket_prefix="/live")}, "/live"),
    ],
)
def test_sockets_are_served_below_the_configured_prefix(
    open_site: OpenSite, terms: dict[str, Any], path: str
) -> None:
    with open_site(**terms) as site:
        job_id = begin(site)
        finish(site, job_id)
        with socket_of(site, job_id, path=path) as opened:
            assert len(list(documents(opened))) == 1


def test_a_request_without_upgrade_for_a_socket_is_refused(site: Any) -> None:
    answer = site.client.get(f"/ws/jobs/{begin(site)}")
    assert answer.status_code in {400, 404, 426}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_a_disconnect_while_data_is_sent_is_not_an_error(
    new_jobs: Callable[..., Any], kind: str
) -> None:
    jobs = new_jobs()
    monitor = StatusMonitor(jobs)
    sent: list[str] = []

    async def receive() -> Any:
        if sent or kind == "http":
            await anyio.sleep_forever()
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] in {"websocket.send", "http.response.body"}:
            raise OSError("the client has gone")

    async with jobs:
        outside = jobs.registry.find("outside")
        job = await jobs.enqueue(outside, outside.load_payload(b'{"count":1}'))
        path = f"/api/jobs/{job.id}/events" if kind == "http" else f"/ws/jobs/{job.id}"
        with anyio.fail_after(5):
            await monitor({"type": kind, "path": path, "headers": []}, receive, send)
    assert len(sent) == 2
