"""Streams of lists: their messages, endings and limits."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from asyncjobs import EnqueueOptions, Job, Selection, Settings
from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.http.documents import ListEvents
from asyncjobs.http.headers import Pacing
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import JobLinks, Mount
from asyncjobs.http.sse import KEEP_ALIVE
from asyncjobs.protocols import Page
from asyncjobs.testing import Faults, sample_job
from tests.http.followers import Place, in_simulated_time, simulated_place
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

PlaceOf = Callable[..., Place]

SHORT_POLL = Settings(poll_interval=0.02)
WATCHED = (Selection(tag="customer:42"), 100)

Event = tuple[str, Any]


def links_of(job_id: JobId) -> JobLinks:
    return Mount().links(Request("GET"), job_id)


def events_in(text: bytes) -> list[Event]:
    """Return the type and the document of each event."""
    found: list[Event] = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line != ":")
        if "data" in fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


async def add(at: Place, **options: Any) -> Job:
    given = EnqueueOptions(tags=["customer:42"], **options)
    return (await at.jobs.enqueue("order", {}, options=given)).job


async def begun(at: Place, watched: Any = WATCHED) -> Response:
    return await at.streams.list_events(watched, ListEvents(links_of))


async def next_of(response: Response) -> bytes:
    assert isinstance(response, StreamingResponse)
    with anyio.fail_after(PATIENCE_SECONDS):
        return await anext(response.chunks)


async def closed(*responses: Response) -> None:
    for response in responses:
        assert isinstance(response, StreamingResponse)
        await response.chunks.aclose()


async def test_a_stream_begins_with_the_retry_delay_and_the_list(place: PlaceOf) -> None:
    at = place(pacing=Pacing(3, 9))
    async with at.jobs:
        job = await add(at, title="Customers")
        response = await begun(at)
        first = await next_of(response)
        await closed(response)
    assert first.startswith(b"retry: 3000\n\nevent: list\ndata: {")
    [(kind, document)] = events_in(first)
    assert (kind, document["next"]) == ("list", None)
    assert [(one["jobId"], one["title"]) for one in document["jobs"]] == [(job.id, "Customers")]
    assert document["jobs"][0]["statusUrl"] == f"/api/jobs/{job.id}"


async def test_a_slow_reader_gets_each_changed_job_once(place: PlaceOf) -> None:
    at = place(settings=SHORT_POLL)
    async with at.jobs:
        job = await add(at)
        response = await begun(at)
        await next_of(response)
        for percent in range(1, 40):
            await at.jobs.update_progress(job.id, percent)
        seen: list[Event] = []
        while not seen or seen[-1][1]["progress"] < 39:
            seen += events_in(await next_of(response))
        await closed(response)
    progress = [document["progress"] for _, document in seen]
    assert progress == sorted(set(progress))


async def test_a_deleted_job_is_removed(place: PlaceOf, beside: Any) -> None:
    at = place(settings=SHORT_POLL)
    async with at.jobs:
        job, other = await add(at), await add(at)
        response = await begun(at)
        [(_, document)] = events_in(await next_of(response))
        assert [one["jobId"] for one in document["jobs"]] == [other.id, job.id]
        await beside.delete([job.id])
        assert events_in(await next_of(response)) == [("removed", {"jobId": job.id})]
        await closed(response)


def test_the_oldest_job_gives_way_to_a_new_one_in_a_full_list() -> None:
    old, middle, new = (sample_job(given_title=name) for name in ("old", "middle", "new"))
    events = ListEvents(links_of)
    assert [kind for kind, _ in events_in(events.events(Page([middle, old])))] == ["list"]
    removed, added = events_in(events.events(Page([new, middle], "2")))
    assert removed == ("removed", {"jobId": old.id})
    assert (added[0], added[1]["title"]) == ("message", "new")
    assert events.events(Page([new, middle], "3")) == b""


def test_the_whole_list_comes_if_a_new_job_is_not_the_first() -> None:
    # Jobs of one batch are as old as each other, and get into the list of failed ones in any order.
    first, second, third, fourth = (sample_job() for _ in range(4))
    events = ListEvents(links_of)
    pages = ([third, first], [third, second, first], [fourth, third, second], [third, fourth])
    kinds = [[kind for kind, _ in events_in(events.events(Page(jobs)))] for jobs in pages]
    assert kinds == [["list"], ["list"], ["removed", "message"], ["list"]]


def test_of_several_new_jobs_the_newest_comes_last() -> None:
    jobs = [sample_job(given_title=name) for name in ("3", "2", "1")]
    events = ListEvents(links_of)
    events.events(Page([]))
    seen = events_in(events.events(Page(jobs)))
    assert [document["title"] for _, document in seen] == ["1", "2", "3"]


def test_a_title_cannot_begin_an_event() -> None:
    job = sample_job(given_metadata_json=b'{"a":\n"b"}')
    text = ListEvents(links_of).events(Page([job]))
    lines = text.decode().strip().splitlines()
    assert all(line.startswith(("event: ", "data: ")) for line in lines)
    data = "\n".join(line.removeprefix("data: ") for line in lines[1:])
    assert json.loads(data)["jobs"][0]["metadata"] == {"a": "b"}


async def test_without_an_owner_the_list_is_empty_and_the_stream_ends(place: PlaceOf) -> None:
    at = place(pacing=Pacing(3, 9))
    async with at.jobs:
        await add(at)
        response = await begun(at, None)
    assert not isinstance(response, StreamingResponse)
    assert (response.status, response.header("retry-after")) == (200, "9")
    assert events_in(response.body) == [("list", {"jobs": [], "next": None})]


async def test_a_stream_beyond_max_held_has_the_list_and_ends(place: PlaceOf) -> None:
    at = place(max_held=1, pacing=Pacing(3, 9))
    async with at.jobs:
        job = await add(at)
        held = await begun(at)
        response = await begun(at)
        assert not isinstance(response, StreamingResponse)
        assert response.header("content-type") == "text/event-stream"
        assert response.body.startswith(b"retry: 9000\n\n")
        assert [one["jobId"] for one in events_in(response.body)[0][1]["jobs"]] == [job.id]
        assert at.jobs.watchers == 1
        # Streams of jobs have the same limit.
        assert not isinstance(
            await at.streams.events(job.id, lambda one: one, 0), StreamingResponse
        )
        await closed(held)
        del held
        gc.collect()
        again = await begun(at)
        assert isinstance(again, StreamingResponse)
        await closed(again)


async def test_streams_end_when_the_server_stops_and_later_ones_at_once(place: PlaceOf) -> None:
    at = place()
    ended: list[Sequence[bytes]] = []

    async def follow() -> None:
        response = await begun(at)
        assert isinstance(response, StreamingResponse)
        ended.append([chunk async for chunk in response.chunks])

    async with at.jobs:
        await add(at)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await until(lambda: at.jobs.watchers == 1)
            at.streams.end()
            await until(lambda: len(ended) == 1)
        with anyio.fail_after(PATIENCE_SECONDS):
            await follow()
    assert [len(chunks) for chunks in ended] == [1, 1]


async def test_a_store_that_does_not_answer_is_an_error(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        at.store.faults = Faults(before=1)
        with pytest.raises(StoreUnavailable):
            await begun(at)
        at.store.faults = Faults()
        assert at.jobs.watchers == 0


@pytest.mark.own_store
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_quiet_stream_has_comments_and_ends_after_its_time(backend: str) -> None:
    chunks: list[bytes] = []

    async def work() -> None:
        at = simulated_place(keep_alive_interval=15, max_stream_duration=60)
        async with at.jobs:
            response = await begun(at)
            assert isinstance(response, StreamingResponse)
            chunks.extend([chunk async for chunk in response.chunks])

    took = in_simulated_time(work, backend=backend)
    assert took == pytest.approx(60, abs=5)
    assert chunks[1:] == [KEEP_ALIVE] * (len(chunks) - 1)
    assert 3 <= len(chunks) - 1 <= 4


@pytest.mark.own_store
def test_a_list_is_read_at_most_once_a_second() -> None:
    seen: list[Event] = []

    async def work() -> None:
        at = simulated_place()
        async with at.jobs:
            job = await add(at)
            response = await begun(at)
            await next_of(response)
            async with anyio.create_task_group() as tasks:

                async def report() -> None:
                    for percent in range(1, 100):
                        await at.jobs.update_progress(job.id, percent)
                        await anyio.sleep(0.1)

                tasks.start_soon(report)
                while not seen or seen[-1][1]["progress"] < 99:
                    assert isinstance(response, StreamingResponse)
                    seen.extend(events_in(await anext(response.chunks)))
            await closed(response)

    in_simulated_time(work)
    # Ten seconds of reports: one event at once, then one a second.
    assert len(seen) <= 12
