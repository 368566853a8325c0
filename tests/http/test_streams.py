"""Event streams and WebSockets: messages, endings and resources."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import AsyncGenerator, Callable

import anyio
import pytest

from asyncjobs import Job, Settings
from asyncjobs.core.job import JobId, new_job_id
from asyncjobs.errors import NotOpen, StoreUnavailable, UnknownJob
from asyncjobs.http import sse, streams
from asyncjobs.http.headers import Pacing
from asyncjobs.http.messages import Response, StreamingResponse
from asyncjobs.http.streams import Close
from asyncjobs.protocols import Change
from asyncjobs.testing import Faults
from tests.http.followers import (
    LONG,
    Events,
    Place,
    all_of,
    anyone,
    followed,
    in_simulated_time,
    of,
    progress_of,
    read_again,
    simulated_place,
    stranger,
)
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

PlaceOf = Callable[..., Place]

SHORT_POLL = Settings(poll_interval=0.02)


async def test_events_begin_with_the_retry_delay_and_the_job(place: PlaceOf) -> None:
    at = place(pacing=Pacing(3, 9))
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        first = await events.next()
        await events.chunks.aclose()
    assert first.startswith(f"retry: 3000\n\nid: {job.version}\ndata: ")
    assert of(first)["progress"] == 10


async def test_each_change_is_an_event_and_the_terminal_one_is_the_last(place: PlaceOf) -> None:
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


async def test_a_slow_reader_gets_the_newest_state_only(place: PlaceOf) -> None:
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


async def test_a_client_that_resumes_gets_later_versions_only(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job, after=job.version)
        assert await events.next() == "retry: 3000\n\n"
        await at.jobs.complete(job.id, {})
        [last] = await events.rest()
    assert of(last)["status"] == "completed"


@pytest.mark.parametrize("after", [1, 999])
async def test_a_client_of_another_version_gets_the_job_first(place: PlaceOf, after: int) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        assert job.version != after
        events = await at.events(job, after=after)
        assert of(await events.next())["progress"] == 10
        await events.chunks.aclose()


async def test_events_return_204_if_the_client_has_the_terminal_version(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        response = await at.streams.events(job.id, anyone, job.version)
    assert not isinstance(response, StreamingResponse)
    assert (response.status, response.body) == (204, b"")
    assert response.header("Cache-Control") == "no-store"


@pytest.mark.parametrize("after", [0, 1, 999])
async def test_events_of_a_terminal_job_are_its_terminal_state(place: PlaceOf, after: int) -> None:
    at = place()
    async with at.jobs:
        events = await at.events(await at.done(), after=after)
        [only] = await events.rest()
    assert of(only)["status"] == "completed"


async def test_another_caller_gets_the_events_of_an_unknown_job(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        with pytest.raises(UnknownJob):
            await at.streams.events(job.id, stranger, 0)
        with pytest.raises(UnknownJob):
            await at.streams.events(new_job_id(), anyone, 0)


async def test_events_beyond_max_held_return_the_job_and_a_retry_delay(
    place: PlaceOf,
) -> None:
    at = place(max_held=2)
    async with at.jobs:
        job = await at.begun()
        kept = [await at.events(job) for _ in range(2)]
        crowded = await at.streams.events(job.id, anyone, 0)
        # The client has this version already: with an empty answer it would never finish.
        again = await at.streams.events(job.id, anyone, job.version)
        for events in kept:
            await events.chunks.aclose()
    for response in (crowded, again):
        assert not isinstance(response, StreamingResponse)
        headers = (*sse.HEADERS, ("Retry-After", "6"))
        assert (response.status, response.headers) == (200, headers)
        text = response.body.decode()
        assert text.startswith(f"retry: 6000\n\nid: {job.version}\n")
        assert of(text)["progress"] == 10


async def test_events_beyond_max_held_return_204_for_a_terminal_version(place: PlaceOf) -> None:
    at = place(max_held=0)
    async with at.jobs:
        job = await at.done()
        assert (await at.streams.events(job.id, anyone, job.version)).status == 204


async def test_a_stream_that_is_closed_or_dropped_no_longer_counts(place: PlaceOf) -> None:
    at = place(max_held=1)
    async with at.jobs:
        job = await at.begun()
        for _ in range(3):
            events = await at.events(job)
            await events.next()
            await events.chunks.aclose()
            del events
            gc.collect()
        # The response may never be sent at all.
        response: Response | None = await at.streams.events(job.id, anyone, 0)
        assert isinstance(response, StreamingResponse)
        response = None
        gc.collect()
        last = await at.streams.events(job.id, anyone, 0)
        assert isinstance(last, StreamingResponse)
        await last.chunks.aclose()


async def test_a_refused_caller_does_not_count_as_a_stream(place: PlaceOf) -> None:
    at = place(max_held=1)
    async with at.jobs:
        job = await at.begun()
        for _ in range(3):
            with pytest.raises(UnknownJob):
                await at.streams.events(job.id, stranger, 0)
        gc.collect()
        events = await at.events(job)
        await events.chunks.aclose()


BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@BACKENDS
def test_an_idle_stream_is_kept_alive_up_to_its_max_duration(backend: str) -> None:
    at = simulated_place(keep_alive_interval=15, max_stream_duration=50)

    async def follow() -> None:
        async with at.jobs:
            events = await at.events(await at.begun())
            began = anyio.current_time()
            await events.next()
            moments = [(chunk, anyio.current_time() - began) async for chunk in events.chunks]
        assert [moment for _, moment in moments] == pytest.approx([15, 30, 45, 50])
        assert {chunk for chunk, _ in moments} == {sse.KEEP_ALIVE}

    assert in_simulated_time(follow, backend=backend) < 60


@BACKENDS
def test_a_comment_is_sent_after_an_idle_interval(backend: str) -> None:
    at = simulated_place(keep_alive_interval=15, max_stream_duration=50)

    async def follow() -> None:
        async with at.jobs:
            job = await at.begun()
            events = await at.events(job)
            await events.next()
            began = anyio.current_time()
            moments: list[float] = []
            async with anyio.create_task_group() as tasks:

                async def work() -> None:
                    await anyio.sleep(10)
                    await at.jobs.update_progress(job.id, 11)

                tasks.start_soon(work)
                moments = [anyio.current_time() - began async for _ in events.chunks]
        assert moments == pytest.approx([10, 25, 40, 50])

    in_simulated_time(follow, backend=backend)


@BACKENDS
def test_a_busy_stream_ends_after_its_max_duration(backend: str) -> None:
    at = simulated_place(keep_alive_interval=15, max_stream_duration=50)

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

    assert in_simulated_time(follow, backend=backend) == pytest.approx(50, abs=1)


def test_an_idle_websocket_is_kept_alive_up_to_its_max_duration() -> None:
    at = simulated_place(keep_alive_interval=15, max_stream_duration=40)

    async def follow() -> None:
        async with at.jobs:
            first, *quiet, last = await all_of(at.socket(await at.begun()))
        assert progress_of(first) == 10
        assert quiet == [None, None, None]
        assert last == Close(1001, "Connect again to continue.")

    assert in_simulated_time(follow) == pytest.approx(40, abs=1)


async def test_a_websocket_gets_the_job_and_each_change_and_a_normal_close(place: PlaceOf) -> None:
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


async def test_websockets_and_events_carry_the_same_documents(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        document, _ = await all_of(at.socket(job))
        [event] = await (await at.events(job)).rest()
    assert isinstance(document, bytes)
    assert json.loads(document) == of(event)


async def test_a_websocket_that_has_the_terminal_version_gets_no_document(
    place: PlaceOf,
) -> None:
    at = place()
    async with at.jobs:
        job = await at.done()
        assert await all_of(at.socket(job, after=job.version)) == [
            Close(1000, "The job is finished.")
        ]


async def test_a_websocket_of_another_caller_is_closed_as_not_found(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        foreign = await all_of(at.streams.socket(job.id, stranger, 0))
        unknown = await all_of(at.streams.socket(new_job_id(), anyone, 0))
        nonsense = await all_of(at.streams.socket(JobId("../\x00é"), anyone, 0))
    assert foreign == unknown == nonsense == [Close(1008, "Job not found")]


async def test_a_websocket_is_closed_by_1013_if_the_store_is_unavailable(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
        at.store.faults = Faults(before=1, only=["get"])
        [end] = await all_of(at.socket(job))
        with pytest.raises(StoreUnavailable):
            await at.streams.events(job.id, anyone, 0)
        at.store.faults = Faults()
    assert end == Close(1013, "Jobs cannot be read at the moment; try again later.")


async def test_a_websocket_beyond_max_held_gets_the_job_and_1013(
    place: PlaceOf,
) -> None:
    at = place(max_held=1)
    async with at.jobs:
        job, done = await at.begun(), await at.done()
        socket = at.socket(job)
        await anext(socket)
        shown, end = await all_of(at.socket(job))
        finished = await all_of(at.socket(done))
        await socket.aclose()
    assert progress_of(shown) == 10
    assert end == Close(1013, "Too many connections; try again later.")
    assert finished[-1] == Close(1000, "The job is finished.")


async def test_websockets_and_events_share_one_limit(place: PlaceOf) -> None:
    at = place(max_held=1)
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        assert (await all_of(at.socket(job)))[-1] == Close(
            1013, "Too many connections; try again later."
        )
        await events.chunks.aclose()


async def test_the_servers_capacity_is_the_default_of_max_held(
    place: PlaceOf,
) -> None:
    for options, limit in (({}, 1), ({"max_held": 2}, 2), ({"max_held": 0}, 0)):
        at = place(**options)
        async with at.jobs:
            job = await at.begun()
            held: list[Events] = []
            while at.streams.has_room(1):
                held.append(await at.events(job))
            assert len(held) == limit
            for events in held:
                await events.chunks.aclose()


@pytest.mark.parametrize("closing", [1000, 1001, 1008, 1013])
def test_every_close_reason_fits_into_a_close_frame(closing: int) -> None:
    ends = [one for one in vars(streams).values() if isinstance(one, Close)]
    reasons = [one.reason for one in ends if one.code == closing]
    assert reasons
    assert all(len(reason.encode()) <= 123 for reason in reasons)


async def test_all_followers_end_when_the_server_stops(place: PlaceOf) -> None:
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
            at.streams.end()
            await until(lambda: len(ended) == 4)  # each ends by itself
    assert 1 in ended
    assert Close(1001, "Connect again to continue.") in ended
    assert ended.count(job) == 2


async def test_a_follower_that_begins_after_the_stop_gets_the_job_and_ends(
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
    assert end == Close(1001, "Connect again to continue.")
    assert held == [job, job]


async def test_streams_continue_after_a_new_start(place: PlaceOf) -> None:
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


async def test_all_followers_end_when_the_job_is_deleted(place: PlaceOf) -> None:
    at = place(settings=SHORT_POLL)
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
            await at.store.delete([job.id])
            await until(lambda: len(ended) == 3)  # each ends by itself
            assert await all_of(at.socket(job)) == [Close(1008, "Job not found")]
    assert {1, Close(1001, "Connect again to continue.")} <= {one for one in ended if one != job}
    assert job in ended


async def test_all_followers_end_when_the_queue_closes(place: PlaceOf) -> None:
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
    assert Close(1001, "Connect again to continue.") in ended


async def test_a_closed_queue_cannot_be_followed(place: PlaceOf) -> None:
    at = place()
    async with at.jobs:
        job = await at.begun()
    with pytest.raises(NotOpen):
        await at.streams.events(job.id, anyone, 0)
    with pytest.raises(NotOpen):
        await at.streams.ended(job.id, LONG)
    with pytest.raises(NotOpen):
        await at.streams.next_change(job, LONG)


async def test_a_thousand_followers_share_one_text_per_change(place: PlaceOf) -> None:
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


async def test_a_change_without_a_new_version_sends_no_event(place: PlaceOf) -> None:
    at = place(settings=SHORT_POLL)
    async with at.jobs:
        job = await at.begun()
        events = await at.events(job)
        await events.next()
        later = job.model_copy(update={"revision": job.revision + 1})
        assert [*await at.store.replace([Change(later, job.revision)])] == [True]
        await read_again(at.store, times=3)
        await at.jobs.update_progress(job.id, 50)
        assert of(await events.next())["progress"] == 50
        await events.chunks.aclose()


@pytest.mark.parametrize("way", ["events", "socket"])
async def test_a_closed_stream_leaves_no_open_generator(place: PlaceOf, way: str) -> None:
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
