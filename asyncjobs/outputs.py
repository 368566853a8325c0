"""Reads the output of jobs while it grows: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Self

from asyncjobs.core.job import JobId
from asyncjobs.core.output import (
    DEFAULT_STREAM,
    OutputItem,
    OutputPart,
    ReadFrom,
    StreamInfo,
    checked_position,
    checked_stream_name,
    numbered_items,
)
from asyncjobs.errors import ConfigurationError
from asyncjobs.records.output_hub import OutputReader, Portion
from asyncjobs.records.repository import Repository
from asyncjobs.runtime.host import RuntimeHost
from asyncjobs.runtime.runtime import Runtime


class Outputs(ABC):
    """Reads what handlers emit."""

    @property
    @abstractmethod
    def _repository(self) -> Repository:
        """The access to the store of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    @property
    @abstractmethod
    def _running(self) -> Runtime:
        """The runtime of the open queue; raises as above."""

    @property
    @abstractmethod
    def _here(self) -> RuntimeHost:
        """The host of the runtime; raises as above."""

    def output(
        self, job_id: JobId, stream: str = DEFAULT_STREAM, *, after: int | None = None
    ) -> OutputItems:
        """Yield the items of a job's output, those that exist and each new one, to its end.

        Begins after the item whose `position` is `after`. The iteration ends with the job; it ends
        early if the job is deleted or the queue closes. It raises `UnknownJob`, and
        `ConfigurationError` if the store keeps no output, or nothing runs the job here
        automatically. Raises `ValueError` for an invalid name or position, also for a position
        after the end, and `TypeError` for another type.
        """
        checked_stream_name(stream)
        begin = 0 if after is None else after
        return OutputItems(self, job_id, self.output_reader(job_id, stream, begin))

    def output_reader(self, job_id: JobId, stream: str, position: int) -> OutputReader:
        """Return a reader of the stored chunks from a position on; see `output`."""
        checked_position(position)
        if not self.keeps_output:
            raise ConfigurationError("The store does not keep the output of jobs.")
        return self._running.hub.reader(job_id, stream, position)

    @property
    def keeps_output(self) -> bool:
        """Whether the store keeps the output of jobs."""
        return self._repository.has_output

    async def read_output(self, read: ReadFrom, /) -> OutputPart | None:
        """Return a part of a stream; None if the stream does not exist."""
        [part] = await self._repository.read_output([read])
        return part

    async def outputs(self, job_ids: Sequence[JobId], /) -> Sequence[Sequence[StreamInfo]]:
        """Return the names and sizes of the streams of each job."""
        return await self._repository.outputs(job_ids) if self.keeps_output else [()] * len(job_ids)

    async def check_output(self, job_id: JobId, /) -> None:
        """Raise `UnknownJob`, or `ConfigurationError` if nothing runs the job automatically."""
        self._here.check_wait(await self._repository.find(job_id), None)

    async def next_output(self, job_id: JobId, stream: str, position: int, /) -> Portion | None:
        """Return the next portion that has items or is the last; None if the queue was closed.

        Raises as `output`.
        """
        reader = self.output_reader(job_id, stream, position)
        await self.check_output(job_id)
        try:
            async for portion in reader:
                _check_begin(portion)
                if portion.chunks or portion.closed:
                    return portion
            return None
        finally:
            await reader.aclose()


class OutputItems:
    """Yields the items of a stream.

    An iterator, not an async generator: a loop that ends early need not close it.
    """

    def __init__(self, outputs: Outputs, job_id: JobId, reader: OutputReader) -> None:
        self._outputs = outputs
        self._job_id = job_id
        self._reader = reader
        self._items: deque[OutputItem] = deque()
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputItem:
        if not self._begun:
            await self._outputs.check_output(self._job_id)
            self._begun = True
        while not self._items:
            portion = await anext(self._reader)
            _check_begin(portion)
            if portion.kind is not None:
                self._items.extend(numbered_items(portion.kind, portion.chunks))
        return self._items.popleft()

    async def aclose(self) -> None:
        """Stop reading; `contextlib.aclosing` calls this."""
        self._items.clear()
        await self._reader.aclose()


def _check_begin(portion: Portion) -> None:
    """Raise `ValueError` for a portion that begins after the end of the stream."""
    if portion.position > portion.tail:
        raise ValueError(
            f"Position {portion.position} is after the end of the stream, {portion.tail}."
        )
