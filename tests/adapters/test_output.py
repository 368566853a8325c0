"""Every framework serves the output of jobs: at once, held, and as events."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import anyio
import httpx2
import pytest

from asyncjobs import AsyncJobs, JobContext, JobId, Retry
from asyncjobs.core.job import new_job_id
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.http.mounts import MountOptions
from asyncjobs.stores.memory import MemoryStore
from tests.adapters.conftest import QUICK, Order, Site
from tests.waiting import until_sync

OpenSite = Callable[..., AbstractContextManager[Site]]

pytestmark = pytest.mark.every_store

HELD = MountOptions(max_wait=0.3)
TEXT = "a\r\nb ü\n"


def make_jobs(store: Any) -> AsyncJobs:  # noqa: C901  # one branch per handler
    """Register handlers that emit; those that end wait for the job `release` of their note."""
    jobs = AsyncJobs(store, dispatcher=LocalDispatcher(50), settings=QUICK)
    gates: dict[str, anyio.Event] = {}

    async def gate(order: Order) -> None:
        await gates.setdefault(order.note, anyio.Event()).wait()

    @jobs.handler("numbers", output=int)
    async def numbers(order: Order, job: JobContext) -> None:
        for number in range(order.count):
            await job.emit(number)
        if order.note:
            await gate(order)
            await job.emit(order.count)

    @jobs.handler("kinds")
    async def kinds(order: Order, job: JobContext) -> None:
        await job.emit(TEXT)
        await job.stream("raw").emit(b"\x00\xff")
        await job.stream("json").emit({"a": [1]})
        if order.note:
            await gate(order)

    @jobs.handler("silent")
    async def silent(order: Order, job: JobContext) -> None:
        await gate(order)
        if order.count > 1:
            await job.emit(order.note)

    @jobs.handler("twice", retry=Retry(max_attempts=2, initial_delay=timedelta(0)))
    async def twice(_: Order, job: JobContext) -> None:
        await job.emit([job.attempt])
        if job.attempt == 1:
            raise LookupError

    @jobs.handler("release")
    async def release(order: Order, _: JobContext) -> None:
        gates.setdefault(order.note, anyio.Event()).set()

    return jobs


@pytest.fixture(scope="module")
def site(open_site: OpenSite, new_url: Callable[[], str]) -> Generator[Site]:
    with open_site(make_jobs(new_url()), options=HELD) as opened:
        yield opened


class Posted:
    """A submitted job."""

    def __init__(self, site: Site, kind: str, count: int = 3, note: str = "") -> None:
        self._site = site
        self._note = note
        order = {"count": count, "note": note}
        self.id = JobId(site.client.post(f"/submit/{kind}", json=order).json()["jobId"])
        self.url = f"/api/jobs/{self.id}"

    def release(self) -> None:
        self._site.client.post("/submit/release", json={"count": 1, "note": self._note})

    def ended(self) -> Posted:
        until_sync(lambda: self.document()["completedAt"])
        return self

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = self._site.client.get(self.url).json()
        return found

    def get(self, query: str = "", stream: str = "", **headers: str) -> httpx2.Response:
        url = f"{self.url}/output{stream}{query}"
        return self._site.client.get(url, headers={key: headers[key] for key in headers})

    def until(self, count: int) -> Posted:
        """Wait until that many items are stored."""
        until_sync(lambda: len(self.get().json()) == count)
        return self


def events_of(text: str) -> list[tuple[str, str]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event")]
    return [
        (kind.partition(": ")[2], "\n".join(line.removeprefix("data:") for line in lines))
        for kind, *lines in blocks
    ]


def test_the_output_of_an_ended_job_is_read_at_once(site: Site) -> None:
    answer = Posted(site, "numbers").ended().get()
    assert (answer.status_code, answer.json()) == (200, [0, 1, 2])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["stream-up-to-date"] == answer.headers["stream-closed"] == "true"
    assert (answer.headers["stream-epoch"], answer.headers["stream-kind"]) == ("1", "json")
    assert answer.headers["cache-control"] == "private, no-cache"


def test_each_kind_of_stream_is_served_as_it_was_emitted(site: Site) -> None:
    job = Posted(site, "kinds").ended()
    text, raw, values = (job.get(stream=stream) for stream in ("", "/raw", "/json"))
    assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", TEXT)
    assert (raw.headers["content-type"], raw.content) == ("application/octet-stream", b"\x00\xff")
    assert (values.headers["content-type"], values.json()) == ("application/json", [{"a": [1]}])


def test_the_status_names_the_streams_and_their_sizes(site: Site) -> None:
    job = Posted(site, "kinds").ended()
    [values, text, raw] = job.document()["outputs"]
    url = f"{job.url}/output"
    assert values == {"name": "json", "kind": "json", "items": 1, "bytes": 9, "url": f"{url}/json"}
    size = len(TEXT.encode())
    assert text == {
        "name": "output", "kind": "text", "items": 1, "bytes": size, "url": f"{url}/output"
    }  # fmt: skip
    assert (raw["kind"], raw["bytes"]) == ("bytes", 2)
    assert site.client.get(text["url"]).text == TEXT
    assert "outputs" not in Posted(site, "release", note="nothing").ended().document()


def test_an_offset_is_where_reading_goes_on(site: Site) -> None:
    job = Posted(site, "numbers", note="goes-on").until(3)
    offset = job.get().headers["stream-next-offset"]
    empty = job.get(f"?offset={offset}")
    assert (empty.json(), empty.headers["stream-next-offset"]) == ([], offset)
    assert "stream-closed" not in empty.headers
    job.release()
    rest = job.ended().get(f"?offset={offset}")
    assert (rest.json(), rest.headers["stream-closed"]) == ([3], "true")
    assert rest.headers["stream-next-offset"] > offset


def test_head_finds_the_end(site: Site) -> None:
    job = Posted(site, "numbers").ended()
    head = site.client.head(f"{job.url}/output")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["stream-next-offset"] == job.get().headers["stream-next-offset"]
    assert (head.headers["stream-closed"], head.headers["cache-control"]) == ("true", "no-store")
    now = job.get("?offset=now")
    assert (now.json(), now.headers["stream-closed"]) == ([], "true")
    assert "etag" not in now.headers


def test_a_client_does_not_get_what_it_has(site: Site) -> None:
    job = Posted(site, "numbers", note="known").until(3)
    etag = job.get().headers["etag"]
    known = job.get(**{"If-None-Match": etag})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["stream-next-offset"] == job.get().headers["stream-next-offset"]
    job.release()
    assert job.ended().get(**{"If-None-Match": etag}).status_code == 200


def test_a_held_request_is_answered_when_there_is_more(site: Site) -> None:
    job = Posted(site, "numbers", note="held").until(3)
    offset = job.get().headers["stream-next-offset"]
    none = job.get(f"?offset={offset}&live=long-poll")
    assert (none.status_code, none.headers["stream-up-to-date"]) == (204, "true")
    assert none.headers["stream-next-offset"] == offset
    cursor = none.headers["stream-cursor"]
    job.release()
    job.ended()
    more = job.get(f"?offset={offset}&live=long-poll&cursor={cursor}")
    assert (more.status_code, more.json(), more.headers["cache-control"]) == (200, [3], "no-store")
    end = job.get(f"?offset={more.headers['stream-next-offset']}&live=long-poll")
    assert (end.status_code, end.headers["stream-closed"]) == (204, "true")


def test_events_come_to_the_end_of_the_job(site: Site) -> None:
    job = Posted(site, "numbers", note="events").until(3)
    seen, released = "", False
    with site.client.stream("GET", f"{job.url}/output?offset=-1&live=sse") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["stream-kind"] == "json"
        for text in answer.iter_text():
            seen += text
            if not released and "control" in seen:
                released = True
                job.release()
    events = events_of(seen)
    assert [x for kind, data in events if kind == "data" for x in json.loads(data)] == [0, 1, 2, 3]
    last = json.loads(events[-1][1])
    assert (events[-1][0], last["streamClosed"], last["streamEpoch"]) == ("control", True, 1)
    assert last["streamNextOffset"] == job.get().headers["stream-next-offset"]


def test_bytes_are_encoded_in_events(site: Site) -> None:
    job = Posted(site, "kinds").ended()
    answer = job.get("?offset=-1&live=sse", "/raw")
    assert answer.headers["stream-sse-data-encoding"] == "base64"
    assert events_of(answer.text)[0] == ("data", "AP8=")
    assert events_of(job.get("?offset=-1&live=sse").text)[0] == ("data", "a\nb ü\n")


def test_a_stream_may_be_followed_before_it_exists(site: Site) -> None:
    job = Posted(site, "silent", count=2, note="later")
    early = job.get()
    assert (early.status_code, early.content, early.headers["stream-epoch"]) == (200, b"", "0")
    assert "stream-closed" not in early.headers
    offset = early.headers["stream-next-offset"]
    assert job.get(f"?offset={offset}&live=long-poll").status_code == 204
    [(kind, control)] = events_of(job.get(f"?offset={offset}&live=sse").text)
    assert (kind, json.loads(control)["upToDate"]) == ("control", True)
    job.release()
    rest = job.ended().get(f"?offset={offset}")
    assert (rest.text, rest.headers["stream-closed"]) == ("later", "true")


def test_a_stream_that_never_came_is_empty_and_closed(site: Site) -> None:
    job = Posted(site, "numbers").ended()
    answer = job.get(stream="/log")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["stream-closed"] == "true"
    assert job.get("?offset=-1&live=long-poll", "/log").status_code == 204
    assert '"streamClosed":true' in job.get("?offset=-1&live=sse", "/log").text


def test_no_answer_has_the_items_of_two_attempts(site: Site) -> None:
    job = Posted(site, "twice").ended()
    first = job.get()
    assert (first.json(), first.headers["stream-epoch"]) == ([[1]], "1")
    assert not {"stream-up-to-date", "stream-closed"} & first.headers.keys()
    second = job.get(f"?offset={first.headers['stream-next-offset']}")
    assert (second.json(), second.headers["stream-epoch"]) == ([[2]], "2")
    assert second.headers["stream-closed"] == "true"
    events = events_of(job.get("?offset=-1&live=sse").text)
    assert [kind for kind, _ in events] == ["data", "control"] * 2
    assert [json.loads(data)["streamEpoch"] for _, data in events[1::2]] == [1, 2]


@pytest.mark.parametrize(
    "query", ["?offset=", "?offset=x", "?live=sse", "?offset=-1&live=ws", "?offset=1&offset=2"]
)
def test_invalid_parameters_are_refused(site: Site, query: str) -> None:
    answer = Posted(site, "numbers").get(query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")


def test_the_offset_of_another_stream_is_refused(site: Site) -> None:
    job, other = Posted(site, "kinds").ended(), Posted(site, "kinds").ended()
    offset = other.get().headers["stream-next-offset"]
    for live in ("", "&live=sse", "&live=long-poll"):
        for answer in (
            job.get(f"?offset={offset}{live}"),
            other.get(f"?offset={offset}{live}", "/raw"),
        ):
            assert answer.status_code == 400
            assert "another stream" in answer.json()["detail"]


def test_an_offset_after_the_end_is_refused(site: Site) -> None:
    job = Posted(site, "numbers").ended()
    _, position, mark = job.get().headers["stream-next-offset"].split("-")
    for far in (int(position) + 1, 10**16 - 1):
        for live in ("", "&live=sse", "&live=long-poll"):
            answer = job.get(f"?offset=000001-{far:016d}-{mark}{live}")
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")


@pytest.mark.parametrize("name", ["a%2Fb", "a/b", ".hidden", "%00", "a b", "x" * 65])
def test_a_name_that_no_stream_has_is_not_found(site: Site, name: str) -> None:
    answer = Posted(site, "numbers").get(stream=f"/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found")


def test_the_output_of_an_unknown_job_is_not_found(site: Site) -> None:
    for live in ("", "?offset=-1&live=sse", "?offset=now&live=long-poll"):
        answer = site.client.get(f"/api/jobs/{new_job_id()}/output{live}")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_without_room_requests_are_answered_at_once(
    open_site: OpenSite, new_url: Callable[[], str]
) -> None:
    full = MountOptions(max_held=0)
    with open_site(make_jobs(new_url()), options=full) as site:
        job = Posted(site, "numbers", note="full").until(3)
        events = job.get("?offset=-1&live=sse")
        assert json.loads(events_of(events.text)[0][1]) == [0, 1, 2]
        assert int(events.headers["retry-after"]) >= 1
        more = job.get("?offset=-1&live=long-poll")
        assert (more.status_code, more.json()) == (200, [0, 1, 2])
        offset = more.headers["stream-next-offset"]
        none = job.get(f"?offset={offset}&live=long-poll")
        assert (none.status_code, none.json()["code"]) == (503, "too_many_connections")
        assert int(none.headers["retry-after"]) >= 1
        job.release()
        job.ended()
        assert job.get(f"?offset={offset}&live=long-poll").json() == [3]


@pytest.mark.own_store
def test_a_store_without_streams_has_no_output(open_site: OpenSite) -> None:
    class Plain(MemoryStore):
        powers = frozenset[type]()

    with open_site(AsyncJobs(Plain())) as site:
        site.jobs.external("other", payload=Order, result=str)
        job = site.call(site.jobs.enqueue, "other", Order(count=1))
        answer = site.client.get(f"/api/jobs/{job.id}/output")
        assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found")
        assert "outputs" not in site.client.get(f"/api/jobs/{job.id}").json()
