"""The handlers of the simulated application: most work; some misbehave in every known way."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Protocol

import anyio
from pydantic import BaseModel

from asyncjobs import AsyncJobs, JobContext, JobFailed, Policy, Retry
from tests.chaos.recording import Notes


class Errand(BaseModel):
    """What a handler does after some seconds of work, in its first attempts."""

    does: str = "work"
    seconds: float = 1
    times: int = 1


class Trace(BaseModel):
    """A result that is unique per attempt; `worker` is the machine's number."""

    worker: int
    attempt: int
    nonce: str


class Host(Protocol):
    """The machine on which handlers run; they may harm it."""

    number: int

    @property
    def chance(self) -> random.Random: ...

    @property
    def over(self) -> bool: ...

    def kill(self) -> None: ...

    def block(self, seconds: float) -> None: ...


class Handlers:
    """The handlers of one machine."""

    def __init__(self, jobs: AsyncJobs, notes: Notes, host: Host) -> None:
        self.jobs = jobs
        self.host = host
        self._notes = notes

    def register(self) -> None:
        retry = Retry(max_attempts=3, initial_delay=1)
        handler = self.jobs.handler
        handler("brief", timeout=20, retry=retry, policy=Policy(max_releases=2))(self.run)
        handler("long", timeout=None, retry=retry)(self.run)

    async def run(self, what: Errand, job: JobContext) -> Any:
        with self._traced(what, job) as trace:
            async for _ in job.track(_steps(what.seconds / 4), total=4):
                pass
            if job.attempt <= what.times:
                _, deed = DEEDS[what.does]
                await deed(self, job)
        return object() if what.does == "return nonsense" else trace

    @contextmanager
    def _traced(self, what: Errand, job: JobContext) -> Generator[Trace]:
        trace = Trace(worker=self.host.number, attempt=job.attempt, nonce=uuid.uuid4().hex)
        self._notes.write("begin", job=job.id, does=what.does, **trace.model_dump())
        try:
            yield trace
            self._notes.write("end", job=job.id, **trace.model_dump())
        finally:
            self._notes.write("stop", job=job.id, nonce=trace.nonce)


async def _steps(seconds: float) -> AsyncIterator[None]:
    for _ in range(4):
        await anyio.sleep(seconds)
        yield


async def _nothing(_: Handlers, _job: JobContext) -> None:
    pass


async def _raise(_: Handlers, _job: JobContext) -> None:
    raise OSError("it happens")


async def _fail(_: Handlers, _job: JobContext) -> None:
    raise JobFailed("no", code="refused")


async def _exit(on: Handlers, _: JobContext) -> None:
    raise on.host.chance.choice([SystemExit, KeyboardInterrupt, GeneratorExit])


async def _take_too_long(_: Handlers, _job: JobContext) -> None:
    await anyio.sleep(400)


async def _swallow(on: Handlers, _: JobContext) -> None:
    await _swallow_for(12, on)


async def _swallow_all(on: Handlers, _: JobContext) -> None:
    await _swallow_for(100_000, on)


async def _swallow_for(seconds: float, on: Handlers) -> None:
    until = anyio.current_time() + seconds
    while anyio.current_time() < until and not on.host.over:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(until - anyio.current_time())


def _own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _cancel_itself(_: Handlers, _job: JobContext) -> None:
    _own_task().cancel()
    await anyio.sleep(5)


async def _cancel_itself_late(on: Handlers, _: JobContext) -> None:
    asyncio.get_running_loop().call_later(on.host.chance.choice([0, 1, 10]), _own_task().cancel)
    await anyio.sleep(3)


async def _be_cancelled_by_a_child(_: Handlers, _job: JobContext) -> None:
    parent = _own_task()

    async def cancel() -> None:
        parent.cancel()

    child = asyncio.create_task(cancel())
    await asyncio.wait({child})
    await anyio.sleep(1)


async def _leave_a_scope(on: Handlers, _: JobContext) -> None:
    anyio.move_on_after(on.host.chance.choice([0.01, 5])).__enter__()
    await anyio.sleep(1)


async def _leave_a_group(_: Handlers, _job: JobContext) -> None:
    group = await anyio.create_task_group().__aenter__()
    group.start_soon(anyio.sleep, 1)


async def _cancel_the_job(on: Handlers, job: JobContext) -> None:
    await on.jobs.cancel(job.id)
    await anyio.sleep(on.host.chance.choice([0, 60]))


async def _kill(on: Handlers, _: JobContext) -> None:
    on.host.kill()
    await anyio.sleep(1)


async def _block(on: Handlers, _: JobContext) -> None:
    on.host.block(on.host.chance.choice([5, 50]))
    await anyio.sleep(1)


async def _report(_: Handlers, job: JobContext) -> None:
    for number in range(20):
        await job.progress(number, "so far \ud800 it goes")
        await anyio.sleep(0.5)


#: The actions of handlers, and their weights.
DEEDS: Mapping[str, tuple[int, Callable[[Handlers, JobContext], Awaitable[None]]]] = (
    MappingProxyType(
        {
            "work": (12, _nothing),
            "raise": (3, _raise),
            "fail": (1, _fail),
            "exit": (1, _exit),
            "take too long": (2, _take_too_long),
            "swallow": (2, _swallow),
            "swallow all": (1, _swallow_all),
            "cancel itself": (1, _cancel_itself),
            "cancel itself late": (1, _cancel_itself_late),
            "be cancelled by a child": (1, _be_cancelled_by_a_child),
            "leave a scope": (1, _leave_a_scope),
            "leave a group": (1, _leave_a_group),
            "cancel the job": (1, _cancel_the_job),
            "kill": (2, _kill),
            "block": (1, _block),
            "report": (1, _report),
            "return nonsense": (1, _nothing),
        }
    )
)
