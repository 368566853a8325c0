"""A job's changes as Server-Sent Events, parsed by an independent client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs, Job, JobId
from asyncjobs.core.job import new_job_id
from asyncjobs.http.documents import JobDocument
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from tests.waiting import until_sync

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

LIVELY = MountOptions(keep_alive_interval=0.05)


@dataclass(frozen=True)
class Frame:
    """One block of a stream, between two empty lines."""

    retry: int | None = None
    id: int | None = None
    job: dict[str, Any] | None = None
    comment: bool = False

    @classmethod
    def of(cls, lines: Sequence[str]) -> Frame:
        if lines == [":"]:
            return cls(comment=True)
        fields = dict(line.split(": ", 1) for line in lines)
        assert fields.keys() in ({"retry"}, {"id", "data"})
        if "retry" in fields:
            return cls(retry=int(fields["retry"]))
        return cls(id=int(fields["id"]), job=json.loads(fields["data"]))


def frames(answer: httpx2.Response) -> Iterator[Frame]:
    lines: list[str] = []
    patience = time.monotonic() + 15
    for line in answer.iter_lines():
        assert time.monotonic() < patience, "the stream does not end"
        if line:
            lines.append(line)
        else:
            yield Frame.of(lines)
            lines = []
    assert lines == [], "the stream ends in the middle of a frame"


@contextmanager
def following(
    client: httpx2.Client, url: str, known: object = None, query: str = ""
) -> Generator[Iterator[Frame]]:
    headers = {} if known is None else {"Last-Event-ID": str(known)}
    with client.stream("GET", f"{url}/events{query}", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield frames(answer)


def begin(site: Any) -> tuple[str, JobId]:
    """Submit a job whose work the test does."""
    answer = site.client.post("/submit/outside", json={"count": 1})
    return answer.json()["statusUrl"], JobId(answer.json()["jobId"])


def report(site: Any, job_id: JobId, percent: int) -> int:
    job: Job = site.call(site.jobs.update_progress, job_id, percent)
    return job.version


def finish(site: Any, job_id: JobId) -> int:
    job: Job = site.call(site.jobs.complete, job_id, "done")
    return job.version


def ended(site: Any) -> tuple[str, int]:
    url, job_id = begin(site)
    return url, finish(site, job_id)


def test_a_stream_starts_with_the_job_and_ends_after_its_terminal_event(
    site: Any,
) -> None:
    url, job_id = begin(site)
    with following(site.client, url) as stream:
        assert next(stream).retry == 3000
        seen = [next(stream)]
        assert seen[0].job is not None
        assert seen[0].job["status"] == "pending"
        for percent in (10, 50, 90):
            newest = report(site, job_id, percent)
            while seen[-1].id != newest:
                seen.append(next(stream))
            assert seen[-1].job is not None
            assert (seen[-1].job["status"], seen[-1].job["progress"]) == ("processing", percent)
        last = finish(site, job_id)
        seen += stream
    ids = [frame.id or 0 for frame in seen]
    assert ids == sorted(set(ids))
    assert ids[-1] == last


def test_events_are_status_documents(site: Any) -> None:
    url, version = ended(site)
    with following(site.client, url) as stream:
        _, event = stream
    assert (event.id, event.job) == (version, site.client.get(url).json())
    JobDocument.model_validate(event.job)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_forbid_proxies_to_cache_or_buffer_a_stream(site: Any, method: str) -> None:
    url, _ = ended(site)
    answer = site.client.request(method, f"{url}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["incremental"] == "?1"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert bool(answer.content) == (method == "GET")


def test_head_of_a_running_job_ends_at_once(site: Any) -> None:
    url, _ = begin(site)
    answer = site.client.head(f"{url}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert "content-length" not in answer.headers


def test_head_after_the_terminal_version_is_204_as_get_is(site: Any) -> None:
    url, version = ended(site)
    for method in ("GET", "HEAD"):
        answer = site.client.request(method, f"{url}/events?after={version}")
        assert (answer.status_code, answer.headers.get("content-length")) == (204, None), method


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_events_of_an_unknown_job_are_not_found(site: Any, method: str) -> None:
    answer = site.client.request(method, f"/api/jobs/{new_job_id()}/events")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    if method == "GET":
        assert ProblemDocument.model_validate_json(answer.content).code == "job_not_found"


@pytest.mark.parametrize("by", ["header", "query", "both"])
def test_a_client_that_resumes_gets_later_versions_only(site: Any, by: str) -> None:
    url, job_id = begin(site)
    known = report(site, job_id, 10)
    query = {"header": "", "query": f"?after={known}", "both": "?after=1"}[by]
    with following(site.client, url, None if by == "query" else known, query) as stream:
        assert next(stream).retry
        newest = report(site, job_id, 20)
        assert next(stream).id == newest
        last = finish(site, job_id)
        assert [frame.id for frame in stream] == [last]


def test_a_client_that_has_the_terminal_version_gets_204(site: Any) -> None:
    url, version = ended(site)
    for answer in (
        site.client.get(f"{url}/events", headers={"Last-Event-ID": str(version)}),
        site.client.get(f"{url}/events?after={version}"),
    ):
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-type" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"


def test_a_quiet_stream_sends_comments(open_site: OpenSite) -> None:
    with open_site(options=LIVELY) as site:
        url, job_id = begin(site)
        with following(site.client, url) as stream:
            quiet = [next(stream) for _ in range(5)][2:]
            finish(site, job_id)
            assert [frame.job["status"] for frame in stream if frame.job][-1] == "completed"
        assert all(frame.comment for frame in quiet)


def test_a_client_that_disconnects_is_no_longer_followed(open_site: OpenSite) -> None:
    with open_site(options=LIVELY) as site:
        url, job_id = begin(site)
        with following(site.client, url) as one, following(site.client, url) as other:
            assert (next(one).retry, next(other).retry) == (3000, 3000)
            assert site.jobs.watchers == 2
        until_sync(lambda: site.jobs.watchers == 0)
        with following(site.client, url) as again:
            assert next(again).retry == 3000
            finish(site, job_id)
            assert [frame for frame in again if frame.job]
        until_sync(lambda: site.jobs.watchers == 0)


def raw(site: Any, url: str, *, buffer: int | None = None) -> socket.socket:
    """Request a stream over a raw socket, which the test reads at its own speed."""
    opened = socket.socket()
    if buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    opened.settimeout(10)
    address = httpx2.URL(site.url)
    opened.connect((address.host, address.port))
    opened.sendall(f"GET {url}/events HTTP/1.1\r\nHost: {address.host}\r\n\r\n".encode())
    return opened


def read_until(opened: socket.socket, word: bytes) -> bytes:
    got = b""
    while word not in got:
        piece = opened.recv(65536)
        assert piece, got[-200:]
        got += piece
    return got


async def chatter(jobs: AsyncJobs, job_id: JobId, *, times: int, size: int) -> None:
    for number in range(times):
        await jobs.update_progress(job_id, number * 100 // times, f"{number} " + "x" * size)
    await jobs.complete(job_id, "at last")


def test_a_slow_reader_gets_the_newest_state_instead_of_every_state(site: Any) -> None:
    url, job_id = begin(site)
    times, size = 1000, 20_000
    with raw(site, url, buffer=4096) as slow:
        read_until(slow, b'"pending"')
        site.call(lambda: chatter(site.jobs, job_id, times=times, size=size))
        got = read_until(slow, b'"at last"')
    # The buffers between a server and a client on one machine hold up to a few megabytes.
    assert len(got) < times * size / 2
    ids = [int(line[4:]) for line in got.split(b"\n") if line.startswith(b"id: ")]
    assert ids == sorted(set(ids))
