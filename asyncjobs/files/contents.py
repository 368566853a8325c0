"""Calls a file storage from an event loop: each call is made in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Self, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

from asyncjobs.core.files import folder_of
from asyncjobs.core.job import JobId
from asyncjobs.errors import FileMissing, StorageUnavailable
from asyncjobs.files.storage import FileStorage

T = TypeVar("T")

# Threads of their own: a slow storage must not take those of the application's routes.
_MAX_THREADS = 32
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("asyncjobs files")


def unavailable(storage: FileStorage, error: Exception) -> StorageUnavailable:
    """Return the error for a storage that has raised `error`, which becomes its cause."""
    found = StorageUnavailable(repr(storage), f"{type(error).__name__}: {error}")
    found.__cause__ = error
    return found


async def delete_files_of(storage: FileStorage, job_id: JobId) -> None:
    """Delete all contents of a job; raise `StorageUnavailable`."""
    await _in_thread(storage, lambda: storage.delete(folder_of(job_id)))


async def delete_content(storage: FileStorage, key: str) -> None:
    """Delete one content; raise `StorageUnavailable`."""
    await _in_thread(storage, lambda: storage.delete(key))


async def jobs_with_files(storage: FileStorage) -> list[str]:
    """Return the ids of the jobs that have contents; raise `StorageUnavailable`."""
    return await _in_thread(storage, lambda: list(storage.jobs()))


class Reading:
    """The chunks of one range of a content, as the body of an answer or to iterate over.

    Raises `FileMissing` if the storage lacks the content or a part of it, else
    `StorageUnavailable`. Always close it.
    """

    __slots__ = (
        "_begun",
        "_chunks",
        "_closed",
        "_key",
        "_left",
        "_one_by_one",
        "_range",
        "_ready",
        "_storage",
    )

    def __init__(self, storage: FileStorage, key: str, start: int, stop: int) -> None:
        self._storage = storage
        self._key = key
        self._range = (start, stop)
        self._left = stop - start
        self._chunks: Iterator[bytes] | None = None
        self._begun = False
        self._closed = False
        self._ready: bytes | None = None
        # Servers cancel tasks in ways that no scope of anyio can hold off. Then a thread may still
        # read when the iterator is to be closed, and a generator that runs cannot be closed.
        self._one_by_one = Lock()

    async def begin(self) -> Self:
        """Read the first chunk, so that a missing content is noticed before an answer begins."""
        try:
            if self._left:
                await self.wait()
        except GeneratorExit:  # the task is ended by force, and nothing can be awaited
            raise
        except BaseException:
            await self.aclose()
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while (chunk := self.take()) is None:
            await self.wait()
        return chunk

    def take(self) -> bytes | None:
        """Return the chunk that is ready; None if it must be read, by `wait`."""
        chunk, self._ready = self._ready, None
        if chunk is None and (self._closed or not self._left):
            raise StopAsyncIteration
        return chunk

    async def wait(self) -> None:
        """Read the next chunk, unless the content is closed."""
        self._begun = True
        try:
            chunk = await _in_thread(self._storage, self._next)
        except FileNotFoundError as error:
            raise FileMissing(repr(self._storage), self._key) from error
        if self._closed:
            return
        if not chunk or len(chunk) > self._left:
            raise FileMissing(repr(self._storage), self._key)
        self._left -= len(chunk)
        self._ready = bytes(chunk)

    def _next(self) -> bytes | None:
        with self._one_by_one:
            if self._closed:
                return None
            if self._chunks is None:
                self._chunks = iter(self._storage.read(self._key, *self._range))
            return next(self._chunks, None)

    async def aclose(self) -> None:
        """Close the storage's iterator, after the chunk that a thread still reads; never raises."""
        self._closed, self._ready = True, None
        if not self._begun:
            return
        with anyio.CancelScope(shield=True):
            try:
                await to_thread.run_sync(self._close, limiter=_own_limiter())
            except Exception:  # noqa: BLE001  # the content was read, or its reader is gone
                return

    def _close(self) -> None:
        with self._one_by_one:
            chunks, self._chunks = self._chunks, None
            close = getattr(chunks, "close", None)
            if close is not None:
                close()


async def _in_thread(storage: FileStorage, call: Callable[[], T]) -> T:
    try:
        return await to_thread.run_sync(call, limiter=_own_limiter())
    except FileNotFoundError:
        raise
    except Exception as error:
        raise unavailable(storage, error) from error


def _own_limiter() -> anyio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_MAX_THREADS)
        _limiter.set(limiter)
        return limiter
