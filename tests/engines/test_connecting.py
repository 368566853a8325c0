"""An asyncio engine's client is opened where and when it is needed, and its broker may be away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import redis
from saq import Queue
from taskiq import AsyncBroker, TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from asyncjobs import AsyncJobs, Dispatcher
from asyncjobs.dispatchers.saq import SAQDispatcher
from asyncjobs.dispatchers.taskiq import TaskiqDispatcher
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.testing import BRISK
from asyncjobs.testing.dispatcher_conformance import until
from asyncjobs.testing.dispatcher_handlers import register
from asyncjobs.testing.samples import sample_job
from tests.conftest import Serve, ValkeyServer
from tests.engines.fleets import APPS

PATIENCE = 20.0
KINDS = {
    "saq": ("LLEN", "saq:default:queued"),
    "taskiq list": ("LLEN", "taskiq"),
    "taskiq stream": ("XLEN", "taskiq"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(serve: Serve) -> ValkeyServer:
    return serve()


@pytest.fixture
def messages(server: ValkeyServer, kind: str) -> Callable[[], int]:
    """Count what waits for workers."""
    return lambda: int(server.ask(*KINDS[kind]))


@pytest.fixture
def dispatcher(server: ValkeyServer, kind: str) -> Dispatcher:
    if kind == "saq":
        return SAQDispatcher(Queue.from_url(server.url))
    brokers: dict[str, Callable[[str], AsyncBroker]] = {
        "taskiq list": ListQueueBroker,
        "taskiq stream": RedisStreamBroker,
    }
    return TaskiqDispatcher(brokers[kind](server.url))


@pytest.mark.parametrize("how", ["loops", "fork"])
def test_a_dispatcher_may_be_opened_again(
    kind: str, how: str, server: ValkeyServer, messages: Callable[[], int]
) -> None:
    """In another event loop, and in a forked child, which leaves its parent's connections alone."""
    command = [sys.executable, "-W", "error", str(APPS / "told.py"), kind, server.url, how]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert messages() == 150


@pytest.mark.anyio
async def test_a_broker_that_is_away_keeps_no_job_from_being_accepted(
    dispatcher: Dispatcher, server: ValkeyServer, messages: Callable[[], int]
) -> None:
    server.kill()
    jobs = AsyncJobs("memory://", dispatcher=dispatcher, settings=BRISK)
    register(jobs)
    async with jobs:
        await jobs.enqueue("echo", 1)
        server.start()
        await until(lambda: messages() > 0, PATIENCE)


@pytest.mark.anyio
async def test_a_broker_that_could_not_be_started_is_started_with_the_next_message(
    server: ValkeyServer,
) -> None:
    dispatcher = TaskiqDispatcher(RedisStreamBroker(server.url))
    async with dispatcher:
        server.kill()
        with pytest.raises(redis.ConnectionError):
            await dispatcher.dispatch([sample_job()])
        server.start()
        await dispatcher.dispatch([sample_job()])
    assert len(server.ask("XINFO", "GROUPS", "taskiq")) == 1


@pytest.mark.anyio
async def test_a_dispatcher_that_is_not_open_says_so(dispatcher: Dispatcher) -> None:
    with pytest.raises(NotOpen):
        await dispatcher.dispatch([sample_job()])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_asyncio_is_needed(dispatcher: Dispatcher) -> None:
    with pytest.raises(ConfigurationError, match="needs asyncio"):
        await dispatcher.__aenter__()


@pytest.mark.anyio
@pytest.mark.parametrize("by_the_application", [True, False])
async def test_a_broker_is_started_once_and_ended_by_whoever_started_it(
    server: ValkeyServer, *, by_the_application: bool
) -> None:
    told: list[TaskiqEvents] = []
    broker = ListQueueBroker(server.url)
    for event in (TaskiqEvents.CLIENT_STARTUP, TaskiqEvents.CLIENT_SHUTDOWN):
        broker.add_event_handler(event, note(told, event))
    jobs = AsyncJobs("memory://", dispatcher=TaskiqDispatcher(broker))
    register(jobs)
    if by_the_application:
        await broker.startup()
    async with jobs:
        await jobs.enqueue("echo", 1)
        await jobs.enqueue("echo", 2)
        assert told == [TaskiqEvents.CLIENT_STARTUP]
    assert len(told) == (1 if by_the_application else 2)
    await broker.shutdown()


def note(told: list[TaskiqEvents], event: TaskiqEvents) -> Callable[[TaskiqState], None]:
    return lambda _state: told.append(event)
