"""Readers of output at one mount: many of them, their ends, and their tokens."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from asyncjobs import AsyncJobs, JobContext, JobId
from asyncjobs.core.output import OutputPart, ReadFrom
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Chunks, Request, StreamingResponse
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.tokens import Tokens
from asyncjobs.stores.memory import MemoryStore
from tests.waiting import until

pytestmark = pytest.mark.anyio

READERS = 1000


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone


class CountingStore(MemoryStore):
    """Counts the reads of output."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read_output(self, reads: Sequence[ReadFrom], /) -> Sequence[OutputPart | None]:
        self.reads += len(reads)
        return await super().read_output(reads)


class Emitter:
    """One running job, and the mount that serves it."""

    def __init__(self, **options: Any) -> None:
        self.store = CountingStore()
        self.jobs = AsyncJobs(self.store)
        self.jobs.handler("words", output=str)(self._emit)
        tokens = options.pop("tokens", None)
        mount = Mount(options=MountOptions(**options), tokens=tokens)
        self.endpoints = Endpoints(self.jobs, mount)
        self._words = asyncio.Queue[str | None]()

    async def _emit(self, job: JobContext) -> None:
        while (word := await self._words.get()) is not None:
            await job.emit(word)

    async def begin(self) -> JobId:
        self.id = (await self.jobs.enqueue("words")).id
        return self.id

    async def say(self, word: str | None) -> None:
        await self._words.put(word)

    async def read(self, query: str = "", method: str = "GET") -> Any:
        return await self.endpoints.handle(Request(method, f"{self.id}/output", query=query))

    async def follow(self) -> Chunks:
        answer = await self.read("offset=-1&live=sse")
        assert isinstance(answer, StreamingResponse)
        return answer.chunks


async def portion(chunks: Chunks) -> str:
    """Return the next chunk."""
    return (await anext(aiter(chunks))).decode()


async def test_many_readers_share_the_reads_and_the_events() -> None:
    emitter = Emitter()
    async with emitter.jobs:
        await emitter.begin()
        readers = [await emitter.follow() for _ in range(READERS)]
        assert {await portion(one) for one in readers} != {""}
        before = emitter.store.reads
        seen: list[list[bytes]] = [[] for _ in readers]
        for word in ("a", "b", "c"):
            await emitter.say(word)
            chunks = [await anext(aiter(one)) for one in readers]
            assert f"data:{word}" in chunks[0].decode()
            # One object for all: the events are encoded once.
            assert len({id(chunk) for chunk in chunks}) == 1
            for place, chunk in enumerate(chunks):
                seen[place].append(chunk)
        assert len({b"".join(one) for one in seen}) == 1
        # Items of this process need no read.
        assert emitter.store.reads - before <= 3
        for one in readers:
            await one.aclose()
        await emitter.say(None)


async def test_a_reader_takes_little_memory() -> None:
    emitter = Emitter()
    async with emitter.jobs:
        await emitter.begin()
        warm = await emitter.follow()
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            readers = [await emitter.follow() for _ in range(READERS)]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before) / READERS < 10_000
        for one in (warm, *readers):
            await one.aclose()
        await emitter.say(None)


async def test_streams_end_when_the_server_stops_and_are_not_closed() -> None:
    emitter = Emitter()
    async with emitter.jobs:
        await emitter.begin()
        chunks = await emitter.follow()
        assert "streamClosed" not in await portion(chunks)
        emitter.endpoints.streams.end()
        with pytest.raises(StopAsyncIteration):
            await portion(chunks)
        await emitter.say(None)


async def test_a_held_request_ends_when_the_server_stops() -> None:
    emitter = Emitter()
    async with emitter.jobs:
        await emitter.begin()
        answers: list[Any] = []

        async def hold() -> None:
            answers.append(await emitter.read("offset=-1&live=long-poll"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await until(lambda: not emitter.endpoints.streams.has_room(1))
            emitter.endpoints.streams.end()
        [answer] = answers
        assert (answer.status, answer.header("stream-closed")) == (204, None)
        assert emitter.endpoints.streams.has_room(1)
        await emitter.say(None)


async def test_a_deleted_job_ends_its_streams_and_is_unknown() -> None:
    emitter = Emitter()
    async with emitter.jobs:
        await emitter.begin()
        await emitter.say("a")
        chunks = await emitter.follow()
        await emitter.say(None)
        await emitter.jobs.wait(emitter.id)
        text = ""
        async for chunk in chunks:
            text += chunk.decode()
        assert '"streamClosed":true' in text
        await emitter.store.delete([emitter.id])
        answer = await emitter.read("offset=-1&live=sse")
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "job_not_found")


async def test_output_needs_the_scope_output() -> None:
    secret = "s" * 32
    for scopes, status in ((["output"], 200), (["read", "cancel"], 403)):
        tokens = Tokens(secret, scopes=scopes)  # type: ignore[arg-type]
        emitter = Emitter(tokens=tokens)
        async with emitter.jobs:
            job_id = await emitter.begin()
            token = tokens.issue(job_id, emitter.jobs.clock.now()).text
            for path in ("output", "output/log"):
                for method in ("GET", "HEAD"):
                    request = Request(method, f"{job_id}/{path}", query=f"token={token}")
                    assert (await emitter.endpoints.handle(request)).status == status
            await emitter.say(None)


async def test_a_token_of_another_job_opens_no_output() -> None:
    tokens = Tokens("s" * 32)
    emitter = Emitter(tokens=tokens)
    async with emitter.jobs:
        await emitter.begin()
        other = await emitter.jobs.enqueue("words")
        token = tokens.issue(other.id, emitter.jobs.clock.now()).text
        for query in ("", "offset=-1&live=sse&", "offset=-1&live=long-poll&"):
            assert (await emitter.read(f"{query}token={token}")).status == 404
        await emitter.say(None)
        await emitter.say(None)


async def test_quiet_streams_send_comments_and_end_in_time() -> None:
    emitter = Emitter(keep_alive_interval=0.01, max_stream_duration=0.05)
    async with emitter.jobs:
        await emitter.begin()
        chunks = [chunk async for chunk in await emitter.follow()]
        assert b"control" in chunks[0]
        assert b":\n\n" in chunks[1:]
        await emitter.say(None)


async def test_the_store_is_not_asked_for_streams_of_a_job_that_has_not_begun() -> None:
    class Silent(CountingStore):
        async def outputs(self, _: Sequence[JobId], /) -> Any:
            raise AssertionError

    jobs = AsyncJobs(Silent())
    jobs.external("other", payload=str, result=str)
    endpoints = Endpoints(jobs, Mount())
    async with jobs:
        job = await jobs.enqueue("other", "x")
        assert (await endpoints.handle(Request("GET", job.id))).status == 200
