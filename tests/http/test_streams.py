"""Events, sockets and requests that are held: what they send, when they end, what they leave."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from trio.testing import MockClock

from asyncjobs import AsyncJobs, Job, Settings
from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.errors import NotOpen, StoreUnavailable, UnknownJob
from asyncjobs.http import sse, streams
from asyncjobs.http.documents import Encoded
from asyncjobs.http.headers import Pacing
from asyncjobs.http.messages import Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.streams import Close, Streams
from asyncjobs.protocols import Clock
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Faults, FaultyStore, LoopClock
from tests.http.conftest import followed

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

NOTHING: dict[str, Any] = {}

# Longer than any test may take: who waits that long has not been told.
LONG = 20.0


@dataclass
class Place:
    """A queue whose work is done by the test, and its streams."""

    store: FaultyStore
    jobs: AsyncJobs
    streams: Streams

    async def begun(self) -> Job:
        return await self.jobs.update_progress((await self.waiting()).id, 10)

    async def waiting(self) -> Job:
        return (await self.jobs.enqueue("order", NOTHING)).job

    async def done(self) -> Job:
        return await self.jobs.complete((await self.waiting()).id, {"rows": 2})

    async def events(self, job: Job, after: int = 0) -> Events:
        return Events(await self.streams.events(job.id, anyone, after))

    def socket(self, job: Job, after: int = 0) -> AsyncGenerator[bytes | Close | None]:
        return self.streams.socket(job.id, anyone, after)


class Events:
    """What a client gets of an event stream."""

    def __init__(self, response: Response) -> None:
        assert isinstance(response, StreamingResponse), response
        assert response.status == 200
        assert response.headers == sse.HEADERS
        assert response.body == b""
        self.chunks = response.chunks

    async def next(self) -> str:
        with anyio.fail_after(5):
            return (await anext(self.chunks)).decode()

    async def rest(self) -> list[str]:
        with anyio.fail_after(LONG * 5):
            return [chunk.decode() async for chunk in self.chunks]


def anyone(job: Job) -> Job:
    return job


def stranger(job: Job) -> Job:
    raise UnknownJob(job.id)


PlaceOf = Callable[..., Place]


def place_of(
    store: Any, clock: Clock | None = None, settings: Settings | None = None, **options: Any
) -> Place:
    faulty = FaultyStore(store)
    jobs = AsyncJobs(faulty, clock=clock, settings=settings)
    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    return Place(faulty, jobs, Streams(jobs, MountOptions(**options), Encoded()))


@pytest.fixture
def place(store: Any) -> PlaceOf:
    """Make a place on the test's store."""
    return partial(place_of, store)


def simulated_place(**options: Any) -> Place:
    """Make a place whose jobs know no time but the event loop's, as no server would."""
    return place_of(MemoryStore(), LoopClock(), **options)


def of(event: str) -> dict[str, Any]:
    """Read the document of an event."""
    data = next(line for line in event.splitlines() if line.startswith("data: "))
    document: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return document


def progress_of(said: bytes | Close | None) -> Any:
    assert isinstance(said, bytes)
    return json.loads(said)["progress"]


async def all_of(sayings: AsyncGenerator[bytes | Close | None]) -> list[bytes | Close | None]:
    with anyio.fail_after(LONG * 5):
        return [saying async for saying in sayings]


def in_simulated_time(work: Callable[[], Awaitable[None]]) -> float:
    """Run work whose clock jumps to whatever happens next; return how long it took by it."""
    took: list[float] = []

    async def measured() -> None:
        began = anyio.current_time()
        await work()
        took.append(anyio.current_time() - began)

    clock = MockClock(autojump_threshold=0)
    anyio.run(measured, backend="trio", backend_options={"clock": clock})
    return took[0]


async def test_events_begin_with_the_pause_and_the_job_as_it_stands(place: PlaceOf) -> None:
    at = place(pacing=Pacing(3, 9))
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        first = await events.next()
        await events.chunks.aclose()
    assert first.startswith(f"retry: 3000\n\nid: {job.version}\ndata: ")
    assert of(first)["progress"] == 10


async def test_each_change_is_an_event_and_the_last_is_the_end(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.waiting()
        events = await at.events(job)
        seen = [await events.next()]
        for percent in (20, 40):
            await at.jobs.update_progress(job.id, percent)
            seen.append(await events.next())
        done = await at.jobs.complete(job.id, {"rows": 2})
        seen += await events.rest()
    documents = [of(event) for event in seen]
    assert [one["progress"] for one in documents] == [0, 20, 40, 100]
    assert (documents[-1]["status"], documents[-1]["result"]) == ("completed", {"rows": 2})
    assert seen[-1].startswith(f"id: {done.version}\n")


async def test_a_slow_reader_is_sent_the_newest_state_only(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        await events.next()
        for percent in range(11, 100):
            await at.jobs.update_progress(job.id, percent)
        assert of(await events.next())["progress"] == 99
        await at.jobs.cancel(job.id)
        await at.jobs.stop(job.id)
        [last] = await events.rest()
    assert of(last)["status"] == "cancelled"


async def test_who_resumes_where_it_left_is_sent_what_is_new_only(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job, after=job.version)
        assert await events.next() == "retry: 2000\n\n"
        await at.jobs.complete(job.id, {})
        [last] = await events.rest()
    assert of(last)["status"] == "completed"


@pytest.mark.parametrize("after", [1, 999])
async def test_a_gap_is_answered_by_the_job_as_it_stands(place: PlaceOf, after: int) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        assert job.version != after
        events = await at.events(job, after=after)
        assert of(await events.next())["progress"] == 10
        await events.chunks.aclose()


async def test_who_saw_the_end_is_told_to_stop(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        response = await at.streams.events(job.id, anyone, job.version)
    assert not isinstance(response, StreamingResponse)
    assert (response.status, response.body) == (204, b"")
    assert response.header("Cache-Control") == "no-store"


@pytest.mark.parametrize("after", [0, 1, 999])
async def test_who_missed_the_end_is_sent_it_and_no_more(place: PlaceOf, after: int) -> None:
    at = place()
    async with at.jobs:
        events = await at.events(await at.done(), after=after)
        [only] = await events.rest()
    assert of(only)["status"] == "completed"


async def test_a_stranger_gets_the_events_of_no_job(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        with pytest.raises(UnknownJob):
            await at.streams.events(job.id, stranger, 0)
        with pytest.raises(UnknownJob):
            await at.streams.events(new_job_id(), anyone, 0)


async def test_where_too_many_follow_one_more_is_shown_the_job_and_sent_away_for_a_while(
    place: PlaceOf,
) -> None:
    at = place(streams=2)
    async with at.jobs:
        job = await at.begun()
        kept = [await at.events(job) for _ in range(2)]
        crowded = await at.streams.events(job.id, anyone, 0)
        # As is who has this version: a client with nothing to read would never come to an end.
        again = await at.streams.events(job.id, anyone, job.version)
        for events in kept:
            await events.chunks.aclose()
    for response in (crowded, again):
        assert not isinstance(response, StreamingResponse)
        assert (response.status, response.headers) == (200, sse.HEADERS)
        text = response.body.decode()
        assert text.startswith(f"retry: 30000\n\nid: {job.version}\n")
        assert of(text)["progress"] == 10


async def test_who_saw_the_end_is_told_to_stop_however_many_follow(place: PlaceOf) -> None:
    at = place(streams=0)
    async with at.jobs:
        job = await at.done()
        assert (await at.streams.events(job.id, anyone, job.version)).status == 204


async def test_a_place_is_free_again_when_a_stream_is_closed_or_left(place: PlaceOf) -> None:
    at = place(streams=1)
    async with at.jobs:
        job = await at.begun()
        for _ in range(3):
            events = await at.events(job)
            await events.next()
            await events.chunks.aclose()
            del events
            gc.collect()
        # The answer may never be sent at all.
        response: Response | None = await at.streams.events(job.id, anyone, 0)
        assert isinstance(response, StreamingResponse)
        response = None
        gc.collect()
        last = await at.streams.events(job.id, anyone, 0)
        assert isinstance(last, StreamingResponse)
        await last.chunks.aclose()


async def test_a_stranger_takes_no_place(place: PlaceOf) -> None:
    at = place(streams=1)
    async with at.jobs:
        job = await at.begun()
        for _ in range(3):
            with pytest.raises(UnknownJob):
                await at.streams.events(job.id, stranger, 0)
        gc.collect()
        events = await at.events(job)
        await events.chunks.aclose()


def test_quiet_times_are_filled_by_signs_of_life_until_the_streams_life_ends() -> None:
    at = simulated_place(keep_alive=15, stream_life=50)

    async def follow() -> None:
        async with at.jobs:
            events = await at.events(await at.begun())
            began = anyio.current_time()
            await events.next()
            moments = [(chunk, anyio.current_time() - began) async for chunk in events.chunks]
        assert [moment for _, moment in moments] == pytest.approx([15, 30, 45, 50])
        assert {chunk for chunk, _ in moments} == {sse.KEEP_ALIVE}

    assert in_simulated_time(follow) < 60


def test_a_busy_stream_ends_in_time_too() -> None:
    at = simulated_place(keep_alive=15, stream_life=50)

    async def follow() -> None:
        async with at.jobs:
            job = await at.begun()
            async with anyio.create_task_group() as tasks:

                async def work() -> None:
                    for percent in range(11, 100):
                        await anyio.sleep(7)
                        await at.jobs.update_progress(job.id, percent)

                tasks.start_soon(work)
                events = await at.events(job)
                seen = [of(event)["progress"] for event in await events.rest() if "data" in event]
                assert seen == [*range(10, 18)]
                tasks.cancel_scope.cancel()

    assert in_simulated_time(follow) == pytest.approx(50, abs=1)


def test_a_socket_is_kept_awake_and_told_to_connect_again_when_its_life_ends() -> None:
    at = simulated_place(keep_alive=15, stream_life=40)

    async def follow() -> None:
        async with at.jobs:
            first, *quiet, last = await all_of(at.socket(await at.begun()))
        assert progress_of(first) == 10
        assert quiet == [None, None, None]
        assert last == Close(1001, "Connect again to go on.")

    assert in_simulated_time(follow) == pytest.approx(40, abs=1)


async def test_a_socket_is_sent_the_job_each_change_and_a_normal_end(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.waiting()
        socket = at.socket(job)
        seen = [progress_of(await anext(socket))]
        await at.jobs.update_progress(job.id, 30)
        seen.append(progress_of(await anext(socket)))
        await at.jobs.complete(job.id, {})
        last, end = await all_of(socket)
    assert [*seen, progress_of(last)] == [0, 30, 100]
    assert end == Close(1000, "The job is finished.")


async def test_sockets_and_events_carry_the_same_documents(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        document, _ = await all_of(at.socket(job))
        [event] = await (await at.events(job)).rest()
    assert isinstance(document, bytes)
    assert json.loads(document) == of(event)


async def test_a_socket_of_who_saw_the_end_is_closed_without_a_document(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        assert await all_of(at.socket(job, after=job.version)) == [
            Close(1000, "The job is finished.")
        ]


async def test_a_stranger_and_an_unknown_job_close_a_socket_in_one_way(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        foreign = await all_of(at.streams.socket(job.id, stranger, 0))
        unknown = await all_of(at.streams.socket(new_job_id(), anyone, 0))
        nonsense = await all_of(at.streams.socket(JobId("../\x00é"), anyone, 0))
    assert foreign == unknown == nonsense == [Close(1008, "Job not found")]


async def test_a_socket_is_asked_to_come_later_where_the_store_is_away(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        at.store.faults = Faults(before=1, only=["get"])
        [end] = await all_of(at.socket(job))
        with pytest.raises(StoreUnavailable):
            await at.streams.events(job.id, anyone, 0)
        at.store.faults = Faults()
    assert end == Close(1013, "Jobs cannot be read at the moment; try again later.")


async def test_a_socket_too_many_is_shown_the_job_and_asked_to_come_later(place: PlaceOf) -> None:
    at = place(streams=1)
    async with at.jobs:
        job, done = await at.begun(), await at.done()
        socket = at.socket(job)
        await anext(socket)
        shown, end = await all_of(at.socket(job))
        finished = await all_of(at.socket(done))
        await socket.aclose()
    assert progress_of(shown) == 10
    assert end == Close(1013, "Too many are watching; try again later.")
    assert finished[-1] == Close(1000, "The job is finished.")


async def test_sockets_and_events_are_counted_together(place: PlaceOf) -> None:
    at = place(streams=1)
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        assert (await all_of(at.socket(job)))[-1] == Close(
            1013, "Too many are watching; try again later."
        )
        await events.chunks.aclose()


@pytest.mark.parametrize("closing", [1000, 1001, 1008, 1013])
def test_the_reasons_of_closing_fit_into_a_close_frame(closing: int) -> None:
    ends = [one for one in vars(streams).values() if isinstance(one, Close)]
    reasons = [one.reason for one in ends if one.code == closing]
    assert reasons
    assert all(len(reason.encode()) <= 123 for reason in reasons)


async def test_all_that_is_under_way_ends_when_the_server_stops(place: PlaceOf) -> None:
    at = place()
    ended: list[object] = []
    async with at.jobs:
        job = await at.begun()
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                ended.append(len(await (await at.events(job)).rest()))

            async def talk() -> None:
                ended.append((await all_of(at.socket(job)))[-1])

            async def hold() -> None:
                ended.append(await at.streams.next_change(job, LONG))

            async def await_end() -> None:
                ended.append(await at.streams.ended(job.id, LONG))

            for one in (follow, talk, hold, await_end):
                tasks.start_soon(one)
            await followed(at.jobs, by=4)
            assert ended == []
            with anyio.fail_after(5):
                at.streams.end()
                while len(ended) < 4:  # each ends by itself
                    await anyio.lowlevel.checkpoint()
    assert 1 in ended
    assert Close(1001, "Connect again to go on.") in ended
    assert ended.count(job) == 2


async def test_what_begins_after_the_end_says_how_things_are_and_ends_at_once(
    place: PlaceOf,
) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        at.streams.end()
        [event] = await (await at.events(job)).rest()
        document, end = await all_of(at.socket(job))
        held = [await at.streams.next_change(job, LONG), await at.streams.ended(job.id, LONG)]
    assert of(event)["progress"] == progress_of(document) == 10
    assert end == Close(1001, "Connect again to go on.")
    assert held == [job, job]


async def test_a_server_that_begins_again_lets_streams_go_on(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        at.streams.end()
        at.streams.begin()
        events = await at.events(job)
        await events.next()
        await at.jobs.update_progress(job.id, 50)
        assert of(await events.next())["progress"] == 50
        await events.chunks.aclose()


async def test_a_held_request_is_answered_by_the_change(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.next_change(job, LONG)) as found:
            assert found == []
            await at.jobs.update_progress(job.id, 60)
        assert found == [await at.jobs.find(job.id)]


async def test_a_held_request_outlasts_reads_that_fail_or_are_slow(place: PlaceOf) -> None:
    at = place(settings=Settings(poll_interval=timedelta(seconds=0.02)))
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.next_change(job, LONG)) as found:
            for share, delay in ((1.0, 0.0), (0.5, 0.02), (0.0, 0.02)):
                at.store.faults = Faults(before=share, after=share, delay=delay, only=["get"])
                await read_again(at.store, times=3)
            assert found == []
            at.store.faults = Faults()
            await at.jobs.update_progress(job.id, 60)
        assert found == [await at.jobs.find(job.id)]


@asynccontextmanager
async def held(at: Place, answer: Coroutine[Any, Any, Job]) -> AsyncGenerator[list[Job]]:
    """Hold a request in the block, which ends when that is answered: into the list."""
    found: list[Job] = []

    async def hold() -> None:
        found.append(await answer)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await followed(at.jobs)
        yield found


async def read_again(store: FaultyStore, *, times: int) -> None:
    """Return when jobs were read so often from now on, whatever came of it."""
    before = len(store.calls)
    with anyio.fail_after(60):
        while [call.method for call in store.calls[before:]].count("get") < times:  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def test_a_change_since_the_job_was_read_is_not_waited_for(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        old = await at.begun()
        new = await at.jobs.update_progress(old.id, 60)
        with anyio.fail_after(5):
            assert await at.streams.next_change(old, LONG) == new


async def test_who_waits_for_the_end_is_not_answered_by_less(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        async with held(at, at.streams.ended(job.id, LONG)) as found:
            for percent in (60, 70):
                await at.jobs.update_progress(job.id, percent)
            assert found == []
            await at.jobs.complete(job.id, {})
        assert found == [await at.jobs.find(job.id)]


async def test_what_has_ended_is_not_waited_for(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        with anyio.fail_after(5):
            assert await at.streams.ended(job.id, LONG) == job
            assert await at.streams.next_change(job, LONG) == job


def test_a_held_request_is_answered_as_things_stand_when_its_time_is_over() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            job = await at.begun()
            began = anyio.current_time()
            assert await at.streams.next_change(job, 20) == job
            assert anyio.current_time() - began == pytest.approx(20)
            assert await at.streams.ended(job.id, 20) == job
            assert anyio.current_time() - began == pytest.approx(40)

    in_simulated_time(hold)


def test_who_waits_for_the_end_is_answered_by_the_newest_state_in_the_end() -> None:
    at = simulated_place()

    async def hold() -> None:
        async with at.jobs:
            job = await at.begun()
            async with anyio.create_task_group() as tasks:

                async def work() -> None:
                    await anyio.sleep(5)
                    await at.jobs.update_progress(job.id, 60)

                tasks.start_soon(work)
                found = await at.streams.ended(job.id, 20)
                assert found.progress == 60

    in_simulated_time(hold)


async def test_an_unknown_job_is_not_waited_for(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        gone = (await at.waiting()).model_copy(update={"id": new_job_id()})
        with pytest.raises(UnknownJob):
            await at.streams.next_change(gone, LONG)
        with pytest.raises(UnknownJob):
            await at.streams.ended(gone.id, LONG)


async def test_a_job_that_is_forgotten_meanwhile_ends_what_is_under_way(place: PlaceOf) -> None:
    at = place()
    ended: list[object] = []
    async with at.jobs:
        job = await at.begun()
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                ended.append(len(await (await at.events(job)).rest()))

            async def talk() -> None:
                ended.append((await all_of(at.socket(job)))[-1])

            async def hold() -> None:
                ended.append(await at.streams.ended(job.id, LONG))

            for one in (follow, talk, hold):
                tasks.start_soon(one)
            await followed(at.jobs, by=3)
            with anyio.fail_after(5):
                await at.jobs._running.repository.forget([job.id])
                while len(ended) < 3:  # each ends by itself
                    await anyio.lowlevel.checkpoint()
            assert await all_of(at.socket(job)) == [Close(1008, "Job not found")]
    assert {1, Close(1001, "Connect again to go on.")} <= {one for one in ended if one != job}
    assert job in ended


async def test_a_queue_that_closes_ends_what_is_under_way(place: PlaceOf) -> None:
    at = place()
    ended: list[object] = []

    async def follow(events: Events) -> None:
        ended.append(len(await events.rest()))

    async def talk(socket: AsyncGenerator[bytes | Close | None]) -> None:
        ended.append((await all_of(socket))[-1])

    async def hold(job: Job) -> None:
        ended.append(await at.streams.next_change(job, LONG))

    async with anyio.create_task_group() as tasks, at.jobs:
        job = await at.begun()
        tasks.start_soon(follow, await at.events(job))
        tasks.start_soon(talk, at.socket(job))
        tasks.start_soon(hold, job)
        await followed(at.jobs, by=3)
    assert len(ended) == 3
    assert any(isinstance(one, Job) and one.progress == 10 for one in ended)
    assert Close(1001, "Connect again to go on.") in ended


async def test_a_queue_that_was_closed_a_moment_ago_is_not_open(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        at.jobs._running.feed.close()
        with pytest.raises(NotOpen):
            await at.streams.events(job.id, anyone, 0)
        with pytest.raises(NotOpen):
            await at.streams.ended(job.id, LONG)
    with pytest.raises(NotOpen):
        await at.streams.next_change(job, LONG)


async def test_a_thousand_followers_cost_one_text_per_change(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        followers: list[Events] = []

        async def begin() -> None:
            followers.append(await at.events(job))

        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(begin)
        for one in followers:
            await one.next()
        await at.jobs.update_progress(job.id, 50)
        texts = {id(await anext(one.chunks)) for one in followers}
        for one in followers:
            await one.chunks.aclose()
    assert len(texts) == 1


async def test_an_invisible_change_is_no_event(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        await events.next()
        at.jobs._running.feed.announce(job.model_copy(update={"revision": job.revision + 1}))
        await at.jobs.update_progress(job.id, 50)
        assert of(await events.next())["progress"] == 50
        await events.chunks.aclose()


@pytest.mark.parametrize("way", ["events", "socket"])
async def test_a_stream_left_in_the_middle_leaves_nothing_for_the_collector_to_close(
    place: PlaceOf, way: str
) -> None:
    at = place()
    left: list[object] = []
    async with at.jobs:
        job = await at.begun()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=left.append)
        try:
            chunks = (await at.events(job)).chunks if way == "events" else at.socket(job)
            await anext(chunks)
            await at.jobs.update_progress(job.id, 50)
            await anext(chunks)
            await chunks.aclose()
            del chunks
            gc.collect()
        finally:
            sys.set_asyncgen_hooks(*hooks)
        for one in left:
            await one.aclose()  # type: ignore[attr-defined]
    assert left == []
