"""What dispatchers to other engines share: the message, and what an engine's worker does with it.

The message is a job's id, under a namespace, with its trace, and nothing else: the truth is in the
store. Each engine has one carrier task, which is handed the message, and always ends normally.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypedDict, TypeVar

from asyncjobs.model import Delivery, Job

O = TypeVar("O")  # noqa: E741  # the options of an engine

#: The carrier task's name in every engine that names tasks.
CARRIER = "asyncjobs.run"


class Message(TypedDict):
    """What an engine carries; plain values, for engines that write JSON."""

    namespace: str
    id: str
    trace: str


class PushDispatcher(ABC, Generic[O]):
    """Tells an engine of jobs; the engine's workers run them by `AsyncJobs.run`.

    `namespace` keeps apart queues that share an engine. `options` are the engine's own, by job
    type; a type without any goes by its `Policy.queue`.
    """

    delivery = Delivery.PUSH

    def __init__(
        self, *, namespace: str = "asyncjobs", options: dict[str, O] | None = None
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

    @contextmanager
    def reservation(self) -> Generator[bool]:
        yield True

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        for job in jobs:
            await self.send(self.message_of(job), job)

    @abstractmethod
    async def send(self, message: Message, job: Job) -> None:
        """Hand one message to the engine; raise what it raises where its broker is away."""

    def message_of(self, job: Job) -> Message:
        """Make the message that stands for a job."""
        return Message(namespace=self.namespace, id=job.id, trace=job.trace_id)
