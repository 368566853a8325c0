"""Base classes of dispatchers that send each job to an engine.

A message contains only a job's id and a namespace: the store has the rest. Each engine has one
task, which runs the job of a message and always ends normally.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import partial
from typing import ClassVar, Generic, Protocol, Self, TypedDict, TypeVar

import anyio

from asyncjobs.core.job import DEFAULT_QUEUE, Delivery, Job
from asyncjobs.errors import ConfigurationError, NotDispatched, NotOpen
from asyncjobs.execution.threads import in_new_thread

# For engines in which the absence of a time limit means the limit that the application has set for
# all tasks. asyncjobs itself enforces the limits of a job.
TEN_YEARS_IN_SECONDS = 10 * 365 * 24 * 3600

# Objects that a fork copied from the parent. Releasing them would close the parent's connections.
_inherited: list[object] = []


class RedisPool(Protocol):
    """The part of redis-py's connection pools that is used here."""

    def reset(self) -> None: ...


class Options(Protocol):
    """The part of an engine's options for a job type that all engines have."""

    @property
    def queue(self) -> str | None: ...


O = TypeVar("O", bound=Options)  # noqa: E741  # the options of an engine


class Message(TypedDict):
    """The content of a message: plain values, for engines that write JSON."""

    namespace: str
    id: str


class PushDispatcher(ABC, Generic[O]):
    """Sends jobs to an engine, whose workers run them by `AsyncJobs.run`.

    `namespace` separates queues that share an engine. `options` are the engine's own, by job type.
    """

    delivery = Delivery.PUSH

    #: How to start a worker for a queue, for logs and `asyncjobs check`; `{}` is the queue's name.
    serve_by: ClassVar[str] = "start a worker of the engine that serves the queue {}"

    def __init__(
        self, *, namespace: str = "asyncjobs", options: Mapping[str, O] | None = None
    ) -> None:
        self.namespace = namespace
        self.options = dict(options or {})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.disconnect()

    @property
    def task_name(self) -> str:
        """The name of the task that runs jobs, in engines that name tasks."""
        return f"{self.namespace}.run"

    def reserve(self, most: int, /) -> int:
        return most

    def release(self, _places: int, /) -> None:
        return None

    @abstractmethod
    async def dispatch(self, jobs: Sequence[Job], /) -> None: ...

    def queue_for(self, job_type: str, queue: str, /) -> str | None:
        chosen = self.options.get(job_type)
        named = None if chosen is None else chosen.queue
        return named or (None if queue == DEFAULT_QUEUE else queue)

    def how_to_serve(self, job_type: str, queue: str, /) -> str:
        name = self.queue_for(job_type, queue)
        if name is None:
            return "Start workers of the engine, or start more."
        return f"If no worker serves it, {self.serve_by.format(name)}."

    def served_queues(self) -> frozenset[str] | None:
        return None

    async def disconnect(self) -> None:
        """Close what the dispatcher has opened; by default nothing."""

    def message_of(self, job: Job) -> Message:
        """Return the message for a job."""
        return Message(namespace=self.namespace, id=job.id)

    async def in_thread(self, call: Callable[[], object]) -> None:
        """Make a blocking call in a thread; a cancelled caller does not wait for it."""
        await in_new_thread(call, name=f"{self.namespace} dispatch").result()


class BlockingClientDispatcher(PushDispatcher[O]):
    """Sends jobs in a thread, by a client whose calls block."""

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        await self.in_thread(partial(self.send_all, jobs))

    @abstractmethod
    def send_all(self, jobs: Sequence[Job]) -> None:
        """Send a message for each job; after trying all, raise `NotDispatched` if some failed.

        `collect_errors` implements this.
        """


class AsyncClientDispatcher(PushDispatcher[O]):
    """Sends jobs by an asyncio client: a few at a time, in their order.

    The first message opens the client, unless the application has opened it: an engine that is down
    does not prevent the queue from opening.
    """

    #: Clients have at least as many connections, and other users.
    max_concurrent_sends = 8

    def __init__(
        self, *, namespace: str = "asyncjobs", options: Mapping[str, O] | None = None
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._pid = os.getpid()
        self._connecting: anyio.Lock | None = None
        self._connected = False

    async def __aenter__(self) -> Self:
        require_asyncio(type(self).__name__)
        self._connecting, self._connected = anyio.Lock(), False
        return self

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        if self._connecting is None:
            raise NotOpen(type(self).__name__)
        async with self._connecting:
            if not self._connected:
                if self._pid != os.getpid():
                    self.leave_to_parent()
                    self._pid = os.getpid()
                await self.connect()
                self._connected = True
        waiting = iter(jobs)
        with collect_errors() as attempt:

            async def send_waiting() -> None:
                for job in waiting:
                    with attempt(job):
                        await self.send(self.message_of(job), job)

            async with anyio.create_task_group() as tasks:
                for _ in range(1, min(self.max_concurrent_sends, len(jobs))):
                    tasks.start_soon(send_waiting)
                await send_waiting()

    @abstractmethod
    async def connect(self) -> None:
        """Open the client unless the application has; repeated if it raised or was cancelled."""

    @abstractmethod
    def leave_to_parent(self) -> None:
        """In a forked child, make the client forget the connections of its parent."""

    @abstractmethod
    async def send(self, message: Message, job: Job) -> None:
        """Send one message to the engine; raise what the client raises."""


def require_asyncio(user: str) -> None:
    """Raise `ConfigurationError` if the running event loop is not asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"{user} needs asyncio: the client of its engine supports no other event loop."
        ) from None


def keep_inherited(thing: object) -> None:
    """Keep an object that a fork copied from the parent, so that its connections stay open."""
    _inherited.append(thing)


def leave_connections_to_parent(pool: RedisPool) -> None:
    """Make an asyncio pool of redis-py forget the connections that a fork copied from the parent.

    redis-py's other pools do this themselves.
    """
    keep_inherited(copy(pool))
    pool.reset()


@contextmanager
def collect_errors() -> Generator[Callable[..., AbstractContextManager[None]]]:
    """Run every `attempt(*jobs)` block, whether others raised or not; then raise `NotDispatched`.

    The next job may be for another queue of the engine, which accepts it. The error contains the
    jobs of all blocks that raised; its cause is the first error.
    """
    errors: list[Exception] = []
    refused: list[Job] = []

    @contextmanager
    def attempt(*jobs: Job) -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised below
            errors.append(error)
            refused.extend(jobs)

    yield attempt
    if errors:
        reason = str(errors[0]) or type(errors[0]).__name__
        raise NotDispatched((job.id for job in refused), reason) from errors[0]
