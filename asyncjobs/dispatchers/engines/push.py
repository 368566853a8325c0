"""What dispatchers to other engines share: the message, and how messages are handed on.

The message is a job's id, under a namespace, with its trace, and nothing else: the truth is in the
store. Each engine has one carrier task, which is handed the message, and always ends normally.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, Self, TypedDict, TypeVar

import anyio

from asyncjobs.core.job import DEFAULT_QUEUE, Delivery, Job
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.execution.threads import in_new_thread

O = TypeVar("O")  # noqa: E741  # the options of an engine

_inherited: list[object] = []


class RedisPool(Protocol):
    """What many engines' clients have of redis-py."""

    def reset(self) -> None: ...


class Message(TypedDict):
    """What an engine carries; plain values, for engines that write JSON."""

    namespace: str
    id: str
    trace: str


class PushDispatcher(ABC, Generic[O]):
    """Tells an engine of jobs; the engine's workers run them by `AsyncJobs.run`.

    `namespace` keeps apart queues that share an engine. `options` are the engine's own, by job
    type.
    """

    delivery = Delivery.PUSH

    def __init__(
        self, *, namespace: str = "asyncjobs", options: Mapping[str, O] | None = None
    ) -> None:
        self.namespace = namespace
        self.options = dict(options or {})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    @property
    def carrier_name(self) -> str:
        """The carrier task's name, in engines that name tasks."""
        return f"{self.namespace}.run"

    @contextmanager
    def reservation(self) -> Generator[bool]:
        yield True

    @abstractmethod
    async def dispatch(self, jobs: Sequence[Job], /) -> None: ...

    def message_of(self, job: Job) -> Message:
        """Make the message that stands for a job."""
        return Message(namespace=self.namespace, id=job.id, trace=job.trace_id)


class AwaitedDispatcher(PushDispatcher[O]):
    """Tells an engine whose calls are awaited: of a few jobs at once, begun in their order."""

    #: The engine's client has other users, and so many connections at least.
    at_once = 8

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        waiting = iter(jobs)
        with leaving_none_out() as one:

            async def send_on() -> None:
                for job in waiting:
                    with one():
                        await self.send(self.message_of(job), job)

            async with anyio.create_task_group() as tasks:
                for _ in range(1, min(self.at_once, len(jobs))):
                    tasks.start_soon(send_on)
                await send_on()

    @abstractmethod
    async def send(self, message: Message, job: Job) -> None:
        """Hand one message to the engine; raise what it raises where its broker is away."""


class ConnectingDispatcher(AwaitedDispatcher[O]):
    """Tells an asyncio engine by a client that has to be opened, unless the application did it.

    It is opened for the first message: an engine that is away does not keep the queue from opening.
    """

    def __init__(
        self, *, namespace: str = "asyncjobs", options: Mapping[str, O] | None = None
    ) -> None:
        super().__init__(namespace=namespace, options=options)
        self._pid = os.getpid()
        self._connecting: anyio.Lock | None = None
        self._connected = False

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                f"{type(self).__name__} needs asyncio: its engine knows no other event loop."
            ) from None
        self._connecting, self._connected = anyio.Lock(), False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.disconnect()

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
        await super().dispatch(jobs)

    @abstractmethod
    async def connect(self) -> None:
        """Open the client where nobody else has; comes again where it raised, or was cancelled."""

    @abstractmethod
    def leave_to_parent(self) -> None:
        """In a forked child, let the client begin anew, but for what was opened in the child."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Close what `connect` has opened, if anything."""


def leave_connections_to_parent(pool: RedisPool) -> None:
    """Let a pool of redis-py's, which asyncio's kind does not do itself, forget what it has open.

    The connections are a parent's, copied by a fork. To let go of them would close them.
    """
    _inherited.append(copy(pool))
    pool.reset()


class BlockingDispatcher(PushDispatcher[O]):
    """Tells an engine whose calls block: in a thread, which nobody has to wait for."""

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        told = partial(self._send_all, jobs)
        await in_new_thread(told, name=f"{self.namespace} dispatch").result()

    @abstractmethod
    def send_now(self, message: Message, job: Job) -> None:
        """Hand one message to the engine, in a thread; raise what it raises."""

    def _send_all(self, jobs: Sequence[Job]) -> None:
        with leaving_none_out() as one:
            for job in jobs:
                with one():
                    self.send_now(self.message_of(job), job)


@contextmanager
def leaving_none_out() -> Generator[Callable[[], AbstractContextManager[None]]]:
    """Go on after an error, for the next may be for another queue; raise the first one at last."""
    errors: list[Exception] = []

    @contextmanager
    def one() -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised below
            errors.append(error)

    yield one
    if errors:
        raise errors[0]


def queue_of(job: Job) -> str | None:
    """Name the queue that a job's type asks for; None for the one that the engine uses unasked."""
    return None if job.queue == DEFAULT_QUEUE else job.queue
