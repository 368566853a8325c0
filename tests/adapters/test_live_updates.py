"""A job's changes as Server-Sent Events, read as any client would read them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs, Job, JobId, Settings
from asyncjobs.core.job import new_job_id
from asyncjobs.http.documents import JobDocument
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.stores.memory import MemoryStore

OpenSite = Callable[..., AbstractContextManager[Any]]
Eventually = Callable[..., None]

pytestmark = pytest.mark.every_store

LIVELY = MountOptions(keep_alive_interval=0.05)
MALFORMED = ["", "abc", "-1", "+1", "1.0", "1_0", "0x1", "9" * 19, "9" * 400, '"1"', "1, 1"]


@dataclass(frozen=True)
class Frame:
    """What stands between two empty lines of a stream."""

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
    """Submit a job whose work is done elsewhere: here."""
    answer = site.client.post("/submit/outside", json={"count": 1})
    return answer.json()["statusUrl"], JobId(answer.json()["jobId"])


def report(site: Any, job_id: JobId, percent: int) -> int:
    job: Job = site.call(site.jobs.update_progress, job_id, percent)
    return job.version


def finish(site: Any, job_id: JobId) -> int:
    job: Job = site.call(site.jobs.complete, job_id, "done")
    return job.version


def ended(site: Any, how: str = "completed") -> tuple[str, int]:
    url, job_id = begin(site)
    if how == "completed":
        return url, finish(site, job_id)
    move = site.jobs.cancel if how == "cancelled" else site.jobs.fail
    job: Job = site.call(move, job_id, *(["It broke."] if how == "failed" else []))
    return url, job.version


def listeners(site: Any, job_id: JobId) -> int:
    return len(site.jobs._engine.feed._listeners.get(job_id, ()))


def test_a_stream_begins_by_a_retry_and_a_snapshot_and_ends_after_the_terminal_event(
    site: Any,
) -> None:
    url, job_id = begin(site)
    with following(site.client, url) as stream:
        assert next(stream).retry == 2000
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
def test_no_proxy_may_keep_or_hold_back_a_stream(site: Any, method: str) -> None:
    url, _ = ended(site)
    answer = site.client.request(method, f"{url}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert bool(answer.content) == (method == "GET")


def test_head_of_a_running_job_ends_at_once(site: Any) -> None:
    url, _ = begin(site)
    answer = site.client.head(f"{url}/events")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_events_of_no_job_are_not_found(site: Any, method: str) -> None:
    answer = site.client.request(method, f"/api/jobs/{new_job_id()}/events")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    if method == "GET":
        assert ProblemDocument.model_validate_json(answer.content).code == "job_not_found"


@pytest.mark.parametrize("by", ["header", "query", "both"])
def test_who_resumes_is_not_told_again_what_it_knows(site: Any, by: str) -> None:
    url, job_id = begin(site)
    known = report(site, job_id, 10)
    query = {"header": "", "query": f"?after={known}", "both": "?after=1"}[by]
    with following(site.client, url, None if by == "query" else known, query) as stream:
        assert next(stream).retry
        newest = report(site, job_id, 20)
        assert next(stream).id == newest
        last = finish(site, job_id)
        assert [frame.id for frame in stream] == [last]


@pytest.mark.parametrize("by", ["header", "query"])
def test_a_gap_is_closed_by_the_newest_snapshot(site: Any, by: str) -> None:
    url, job_id = begin(site)
    known = report(site, job_id, 10)
    newest = [report(site, job_id, percent) for percent in range(20, 60, 10)][-1]
    query = f"?after={known}" if by == "query" else ""
    with following(site.client, url, known if by == "header" else None, query) as stream:
        assert next(stream).retry
        assert next(stream).id == newest
        last = finish(site, job_id)
        assert [frame.id for frame in stream] == [last]


def test_an_id_of_the_future_is_answered_by_the_newest_snapshot(site: Any) -> None:
    url, version = ended(site)
    with following(site.client, url, version + 1000) as stream:
        assert [frame.id for frame in stream] == [None, version]


@pytest.mark.parametrize("by", ["header", "query"])
@pytest.mark.parametrize("known", MALFORMED)
def test_a_malformed_id_is_ignored(site: Any, known: str, by: str) -> None:
    url, version = ended(site)
    query = str(httpx2.QueryParams(after=known)) if by == "query" else ""
    with following(site.client, url, known if by == "header" else None, f"?{query}") as stream:
        assert [frame.id for frame in stream] == [None, version]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_who_has_seen_the_end_is_told_to_come_no_more(site: Any, how: str) -> None:
    url, version = ended(site, how)
    for answer in (
        site.client.get(f"{url}/events", headers={"Last-Event-ID": str(version)}),
        site.client.get(f"{url}/events?after={version}"),
    ):
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-type" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_who_has_not_seen_the_end_is_shown_it(site: Any, how: str) -> None:
    url, version = ended(site, how)
    with following(site.client, url, 1) as stream:
        _, event = stream
    assert event.id == version
    assert event.job is not None
    assert event.job["status"] == how


def test_quiet_times_are_filled_by_comments(open_site: OpenSite) -> None:
    with open_site(options=LIVELY) as site:
        url, job_id = begin(site)
        with following(site.client, url) as stream:
            quiet = [next(stream) for _ in range(5)][2:]
            finish(site, job_id)
            assert [frame.job["status"] for frame in stream if frame.job][-1] == "completed"
        assert all(frame.comment for frame in quiet)


def test_a_stream_that_has_lived_long_enough_is_resumed_unnoticed(open_site: OpenSite) -> None:
    with open_site(options=MountOptions(max_stream_duration=0.1)) as site:
        url, job_id = begin(site)
        assert ids_seen(site, url) == [1]
        assert ids_seen(site, url, known=1) == []
        report(site, job_id, 10)
        newest = report(site, job_id, 20)
        assert ids_seen(site, url, known=1) == [newest]


def ids_seen(site: Any, url: str, known: int | None = None) -> list[int]:
    with following(site.client, url, known) as stream:
        assert next(stream).retry == 2000
        return [frame.id for frame in stream if frame.id is not None]


def test_one_too_many_gets_a_snapshot_and_comes_back_later(
    open_site: OpenSite, eventually: Eventually
) -> None:
    with open_site(options=MountOptions(max_streams=1, keep_alive_interval=0.05)) as site:
        url, job_id = begin(site)
        with following(site.client, url) as stream:
            next(stream)
            with following(site.client, url) as shed:
                assert [(frame.retry, frame.id) for frame in shed] == [(30_000, None), (None, 1)]
        eventually(lambda: retry_told(site.client, url) == 2000)
        finish(site, job_id)


def retry_told(client: httpx2.Client, url: str) -> int | None:
    with following(client, url) as stream:
        return next(stream).retry


def test_who_has_seen_the_end_is_told_so_however_many_there_are(open_site: OpenSite) -> None:
    with open_site(options=MountOptions(max_streams=0)) as site:
        url, version = ended(site)
        known = {"Last-Event-ID": str(version)}
        assert site.client.get(f"{url}/events", headers=known).status_code == 204


def test_a_client_that_has_gone_is_forgotten(open_site: OpenSite, eventually: Eventually) -> None:
    with open_site(options=LIVELY) as site:
        url, job_id = begin(site)
        with following(site.client, url) as one, following(site.client, url) as other:
            assert (next(one).retry, next(other).retry) == (2000, 2000)
            assert listeners(site, job_id) == 2
        eventually(lambda: listeners(site, job_id) == 0)
        with following(site.client, url) as again:
            assert next(again).retry == 2000
            finish(site, job_id)
            assert [frame for frame in again if frame.job]
        eventually(lambda: listeners(site, job_id) == 0)


def raw(site: Any, url: str, *, buffer: int | None = None) -> socket.socket:
    """Ask for a stream by a socket of our own, which reads when it likes."""
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


def test_a_slow_reader_gets_the_newest_state_and_no_heap_of_old_ones(site: Any) -> None:
    url, job_id = begin(site)
    times, size = 1000, 20_000
    with raw(site, url, buffer=4096) as slow:
        read_until(slow, b'"pending"')
        site.call(lambda: chatter(site.jobs, job_id, times=times, size=size))
        got = read_until(slow, b'"at last"')
    # What lies between a server and a client on one machine holds up to a few megabytes.
    assert len(got) < times * size / 2
    ids = [int(line[4:]) for line in got.split(b"\n") if line.startswith(b"id: ")]
    assert ids == sorted(set(ids))


class Counted(MemoryStore):
    """Counts the jobs that are read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        self.read += len(ids)
        return await super().get(ids)


async def told_elsewhere(store: MemoryStore, job_id: JobId) -> None:
    async with AsyncJobs(store) as elsewhere:
        await elsewhere.update_progress(job_id, 77)


def reads_of_a_change(site: Any, store: Counted, watchers: int) -> int:
    """Let so many watch a job, let another queue change it; count what that costs."""
    url, job_id = begin(site)
    with ExitStack() as stack:
        opened = [stack.enter_context(raw(site, url)) for _ in range(watchers)]
        for one in opened:
            read_until(one, b"id: 1\n")
        before = store.read
        site.call(lambda: told_elsewhere(store, job_id))
        for one in opened:
            read_until(one, b'"progress":77')
        return store.read - before


def test_a_change_costs_the_store_the_same_however_many_watch(
    open_site: OpenSite, new_jobs: Callable[..., AsyncJobs]
) -> None:
    store = Counted()
    jobs = new_jobs(store, settings=Settings(poll_interval=timedelta(seconds=0.1)))
    with open_site(jobs, options=LIVELY) as site:
        alone = reads_of_a_change(site, store, 1)
        many = reads_of_a_change(site, store, 200)
    # Besides the one that is needed, the store is read ten times a second in any case.
    assert many - alone < 50
