"""Followers of jobs: event streams, sockets, and simulated time."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import trio
from trio.testing import MockClock

from asyncjobs import AsyncJobs, Job, Settings
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import UnknownJob
from asyncjobs.http import sse
from asyncjobs.http.documents import DocumentCache
from asyncjobs.http.messages import Response, StreamingResponse
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.streams import Close, Streams
from asyncjobs.protocols import Clock
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import FaultyStore, LoopClock
from tests.waiting import PATIENCE_SECONDS, until

NOTHING: dict[str, Any] = {}

# Longer than any test waits for a held request.
LONG = 10 * PATIENCE_SECONDS


@dataclass
class Place:
    """A queue whose work the test does, and its streams."""

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
    """The events that a client receives from a stream."""

    def __init__(self, response: Response) -> None:
        assert isinstance(response, StreamingResponse), response
        assert response.status == 200
        assert response.headers == sse.HEADERS
        assert response.body == b""
        self.chunks = response.chunks

    async def next(self) -> str:
        with anyio.fail_after(PATIENCE_SECONDS):
            return (await anext(self.chunks)).decode()

    async def rest(self) -> list[str]:
        with anyio.fail_after(PATIENCE_SECONDS):
            return [chunk.decode() async for chunk in self.chunks]


def anyone(job: Job) -> Job:
    return job


def stranger(job: Job) -> Job:
    raise UnknownJob(job.id)


def place_of(
    store: Any, clock: Clock | None = None, settings: Settings | None = None, **options: Any
) -> Place:
    faulty = FaultyStore(store)
    jobs = AsyncJobs(faulty, clock=clock, settings=settings)
    jobs.external("order", payload=dict[str, Any], result=dict[str, Any])
    return Place(faulty, jobs, Streams(jobs, MountOptions(**options), DocumentCache()))


def simulated_place(**options: Any) -> Place:
    """Make a place whose jobs run on the event loop's time alone, which no real server does."""
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
    with anyio.fail_after(PATIENCE_SECONDS):
        return [saying async for saying in sayings]


class _JumpingSelector(selectors.DefaultSelector):
    """Never blocks: its clock jumps to the next timer instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose time is that of its selector."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def in_simulated_time(work: Callable[[], Awaitable[None]], *, backend: str = "trio") -> float:
    """Run work whose clock jumps to the next event; return the simulated duration."""
    took: list[float] = []

    async def measured() -> None:
        began = anyio.current_time()
        await work()
        took.append(anyio.current_time() - began)

    if backend == "asyncio":
        with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
            runner.run(measured())
    else:
        clock = MockClock(autojump_threshold=0)
        trio.run(measured, clock=clock)  # `anyio.run` before 4.14 ignores the clock
    return took[0]


async def followed(jobs: AsyncJobs, by: int = 1) -> None:
    """Return when this many clients follow a job and have read it."""
    await until(lambda: jobs.watchers >= by)
    await jobs.get(new_job_id())  # reads are answered in the order of the requests


async def read_again(store: FaultyStore, *, times: int) -> None:
    """Return when jobs have been read this many more times, with any outcome."""
    before = len(store.calls)
    await until(lambda: [call.method for call in store.calls[before:]].count("get") >= times)
