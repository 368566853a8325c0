"""Event streams end when their client disconnects, in every state of the stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import AsyncJobs, JobId
from asyncjobs.adapters.asgi import StatusMonitor
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.anyio


@dataclass
class Client:
    """A client of one event stream, as an ASGI server provides it."""

    jobs: AsyncJobs
    job_id: str
    blocks: bool = False
    sent: list[Any] = field(default_factory=list[Any])
    gone: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.blocks and message["type"] == "http.response.body":
            await anyio.sleep_forever()

    async def served(self, receive: Callable[[], Awaitable[Any]] | None = None) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "path": f"/api/jobs/{self.job_id}/events",
            "headers": [],
        }
        await StatusMonitor(self.jobs)(scope, receive or self.receive, self.send)

    async def first_event(self) -> None:
        await until(lambda: len(self.sent) >= 2)
        await anyio.wait_all_tasks_blocked()


@pytest.fixture
def jobs() -> AsyncJobs:
    jobs = AsyncJobs("memory://")
    jobs.external("outside", payload=dict[str, int], result=int)
    return jobs


async def client_of(jobs: AsyncJobs, *, blocks: bool = False) -> Client:
    return Client(jobs, (await jobs.enqueue("outside", {})).id, blocks)


@pytest.mark.parametrize("blocks", [False, True])
async def test_a_disconnect_ends_a_stream_that_waits_or_sends(
    jobs: AsyncJobs, *, blocks: bool
) -> None:
    went_on: list[bool] = []
    async with jobs:
        client = await client_of(jobs, blocks=blocks)

        async def serve() -> None:
            await client.served()
            await anyio.lowlevel.checkpoint()  # a leftover cancellation would end this
            went_on.append(True)

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                await client.first_event()
                assert jobs.watchers == 1
                client.gone.set()
        assert (went_on, jobs.watchers) == ([True], 0)


async def test_a_cancelled_stream_ends_as_cancelled(jobs: AsyncJobs) -> None:
    ended: list[str] = []
    async with jobs:
        client = await client_of(jobs)

        async def serve() -> None:
            try:
                await client.served()
            except anyio.get_cancelled_exc_class():
                ended.append("cancelled")
                raise

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                await client.first_event()
                tasks.cancel_scope.cancel()
        assert (ended, jobs.watchers) == (["cancelled"], 0)


async def test_a_stream_that_ends_no_longer_calls_receive(jobs: AsyncJobs) -> None:
    listening: list[str] = []
    async with jobs:
        client = await client_of(jobs)

        async def receive() -> Any:
            listening.append("began")
            try:
                await anyio.sleep_forever()
            finally:
                listening.append("ended")

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.served, receive)
                await client.first_event()
                await jobs.complete(JobId(client.job_id), 1)
        assert listening == ["began", "ended"]
        last = client.sent[-1]
        assert (last["body"], last.get("more_body", False)) == (b"", False)


async def test_an_error_of_receive_is_raised_to_the_server(jobs: AsyncJobs) -> None:
    async with jobs:
        client = await client_of(jobs)

        async def receive() -> Any:
            await client.first_event()
            raise LookupError("the server broke")

        with anyio.fail_after(PATIENCE_SECONDS), pytest.raises((LookupError, ExceptionGroup)):
            await client.served(receive)
        assert jobs.watchers == 0
