"""The output of jobs in the Python clients, on every framework."""

from __future__ import annotations

import uuid
from typing import Any

import anyio
import pytest

from asyncjobs.client import (
    AsyncJobsClient,
    Following,
    JobNotFound,
    JobsClient,
    JobTimeout,
    ReceivedItem,
    RequestRefused,
    Transport,
)

ROWS = [{"n": number, "text": "ä\r\n"} for number in range(6)]
WORDS = [f"wörd {number}\r\n " for number in range(6)]
RAW = [[0, 255, number] for number in range(6)]

STREAMS = pytest.mark.parametrize(
    ("stream", "items"), [("output", ROWS), ("log", WORDS), ("raw", RAW)]
)


def whole(received: list[Any]) -> Any:
    """Join the values of a text or bytes stream, whose items may arrive together."""
    match received[0]:
        case str():
            return "".join(received)
        case bytes():
            return b"".join(received)
        case _:
            return received


def expected(items: list[Any]) -> Any:
    return b"".join(map(bytes, items)) if items is RAW else whole(items)


def emitting(served: Any, stream: str, items: list[Any]) -> Any:
    """Submit a job that has emitted half of the items and waits."""
    job = served.submit("emits", name=str(uuid.uuid4()), stream=stream, items=items)
    job.until(progress=50)
    return job


@STREAMS
@pytest.mark.parametrize("transport", list(Transport))
def test_each_item_is_received_once_and_in_order(
    served: Any, stream: str, items: list[Any], transport: Transport
) -> None:
    job = emitting(served, stream, items)
    with JobsClient(served.url, options=Following(transports=[transport])) as client:
        received: list[ReceivedItem] = []
        for item in client.attach(job.status_url).output(stream):
            if not received:
                job.release()
            received.append(item)
    assert whole([item.value for item in received]) == expected(items)
    assert {item.epoch for item in received} == {1}


@STREAMS
def test_reading_goes_on_after_any_item(served: Any, stream: str, items: list[Any]) -> None:
    job = emitting(served, stream, items)
    job.release()
    with JobsClient(served.url) as client:
        attached = client.attach(job.status_url)
        received = list(attached.output(stream))
        for place, item in enumerate(received, 1):
            rest = [later.value for later in attached.output(stream, after=item.offset)]
            before = [earlier.value for earlier in received[:place]]
            assert whole(before + rest) == expected(items)


@pytest.mark.parametrize("transport", [Transport.EVENTS, Transport.HOLD])
def test_a_cut_connection_neither_loses_nor_repeats_items(
    served: Any, proxy: Any, transport: Transport
) -> None:
    job = emitting(served, "output", ROWS)
    with JobsClient(proxy.through(served.url), options=Following(transports=[transport])) as client:
        received: list[Any] = []
        for item in client.attach(proxy.through(job.status_url)).output():
            received.append(item.value)
            if len(received) == 3:
                proxy.cut()
                job.release()
    assert received == ROWS


@pytest.mark.anyio
async def test_the_asynchronous_client_reads_output(served: Any) -> None:
    job = await anyio.to_thread.run_sync(emitting, served, "output", ROWS)
    async with AsyncJobsClient(served.url) as client:
        attached = client.attach(job.status_url)
        async with attached.output() as output:
            first = await anext(output)
        await anyio.to_thread.run_sync(job.release)
        rest = [item.value async for item in attached.output(after=first.offset)]
    assert [first.value, *rest] == ROWS


def test_a_job_without_output_has_an_empty_stream(served: Any) -> None:
    with JobsClient(served.url) as client:
        job = client.submit("POST", "/double", json={"count": 1})
        assert list(job.output()) == []


def test_output_that_does_not_end_in_time_raises(served: Any) -> None:
    job = emitting(served, "output", ROWS)
    with JobsClient(served.url) as client:
        received: list[Any] = []
        with pytest.raises(JobTimeout):
            received.extend(client.attach(job.status_url).output(timeout=0.5))
    job.release()


@pytest.mark.parametrize("after", ["x", "000001-0000000000000001-00000000", "now,1,2"])
def test_an_offset_that_is_not_of_the_stream_is_refused(served: Any, after: str) -> None:
    job = served.submit("double", count=1)
    with JobsClient(served.url) as client, pytest.raises(RequestRefused) as caught:
        list(client.attach(job.status_url).output(after=after))
    assert caught.value.status == 400
    assert "offset" in str(caught.value)


@pytest.mark.parametrize(
    ("after", "error"),
    [(2, TypeError), (True, TypeError), (b"-1", TypeError), ("", ValueError), ("é", ValueError)],
)
@pytest.mark.parametrize("kind", [JobsClient, AsyncJobsClient])
def test_what_is_no_offset_is_refused_by_the_client_at_once(
    kind: Any, after: Any, error: type[Exception]
) -> None:
    job = kind("http://127.0.0.1:1").attach("/api/jobs/job_1")
    with pytest.raises(error, match="`after` is the `offset` of a received item"):
        job.output(after=after)


def test_output_of_an_unknown_job_or_of_no_stream_raises(served: Any) -> None:
    job = served.submit("double", count=1)
    with JobsClient(served.url) as client:
        for attached, stream in (
            (client.attach(f"/api/jobs/job_{uuid.uuid4()}"), "output"),
            (client.attach(job.status_url), "a/b"),
        ):
            with pytest.raises(JobNotFound):
                list(attached.output(stream))
