"""Calls a file storage from an event loop: each call is made in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar, checkpoint

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

    __slots__ = ("_chunks", "_closed", "_key", "_left", "_range", "_ready", "_storage")

    def __init__(self, storage: FileStorage, key: str, start: int, stop: int) -> None:
        self._storage = storage
        self._key = key
        self._range = (start, stop)
        self._left = stop - start
        self._chunks: Iterator[bytes] | None = None
        self._closed = False
        self._ready: bytes | None = None

    async def begin(self) -> Self:
        """Read the first chunk, so that a missing content is noticed before an answer begins."""
        if self._left:
            await self.wait()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = self.take()
        if chunk is None:
            await self.wait()
            chunk = self.take()
        return chunk or b""

    def take(self) -> bytes | None:
        """Return the chunk that is ready; None if it must be read, by `wait`."""
        chunk, self._ready = self._ready, None
        if chunk is None and not self._left:
            raise StopAsyncIteration
        return chunk

    async def wait(self) -> None:
        """Read the next chunk."""
        if self._closed:
            await checkpoint()
            return
        try:
            chunk = await _in_thread(self._storage, self._next)
        except FileNotFoundError as error:
            raise FileMissing(repr(self._storage), self._key) from error
        if not chunk or len(chunk) > self._left:
            raise FileMissing(repr(self._storage), self._key)
        self._left -= len(chunk)
        self._ready = bytes(chunk)

    def _next(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = iter(self._storage.read(self._key, *self._range))
        return next(self._chunks, None)

    async def aclose(self) -> None:
        """Close the storage's iterator; never raises."""
        self._closed = True
        chunks, self._chunks, self._ready = self._chunks, None, None
        close = getattr(chunks, "close", None)
        if close is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await to_thread.run_sync(close, limiter=_own_limiter())
            except Exception:  # noqa: BLE001  # the content was read, or its reader is gone
                return


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
