"""Saves the files of one attempt: first the record, then the content, then the record again.

A crash at any moment leaves neither a content without a record, which no code would ever delete,
nor a listed file without its content.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, cast
from weakref import finalize

import anyio
from anyio import to_thread

from asyncjobs.core.files import check_file_name, media_type_of, new_key
from asyncjobs.core.job import Job, JobFile, Policy
from asyncjobs.errors import (
    ConfigurationError,
    DuplicateFile,
    FileTooLarge,
    JobCancelled,
    NotAwaited,
)
from asyncjobs.execution.calls import Calls
from asyncjobs.execution.tasks import current_loop
from asyncjobs.execution.threads import Call, in_new_thread
from asyncjobs.files.contents import unavailable
from asyncjobs.files.storage import FileStorage
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.waiting import Signal, call_soon_from_threads


class Readable(Protocol):
    """A binary file object; `read` may be a coroutine function."""

    def read(self, size: int, /) -> Any: ...


#: What can be saved: a path, the bytes themselves, a file object, or what yields bytes.
FileSource = (
    bytes
    | bytearray
    | memoryview
    | os.PathLike[str]
    | Readable
    | Iterable[bytes]
    | AsyncIterable[bytes]
)

# Chunks are joined and split to about this size: each costs a hash and a call of the storage.
_CHUNK_BYTES = 256 * 1024

# How many chunks of an asynchronous source may wait for the storage.
_MAX_WAITING = 2

_NO_STORAGE = (
    "This queue has no storage for files, or one that cannot be pickled for the process of the "
    "job: give it a folder or an object store, as in AsyncJobs(..., files='/var/lib/files')."
)


class Recorder(Protocol):
    """Writes the records of an attempt's files, from its event loop or from another thread.

    Each method raises `JobCancelled` if the attempt no longer owns the job, and `StoreError`.
    """

    async def announce(self, file: JobFile, limit: int) -> None:
        """List a file without its size; raise `TooManyFiles`."""
        ...

    async def record(self, file: JobFile) -> Recorded:
        """List a file whose content is stored."""
        ...

    def announce_and_block(self, file: JobFile, limit: int) -> None:
        """Do as `announce`, in another thread than that of the event loop."""
        ...

    def record_and_block(self, file: JobFile) -> Recorded:
        """Do as `record`, in another thread than that of the event loop."""
        ...


@dataclass(frozen=True)
class Recorded:
    """A listed file, and the keys of the contents that it replaces."""

    file: JobFile
    replaced: tuple[str, ...] = ()


class FileSaver(Calls):
    """Saves the files of one attempt."""

    def __init__(
        self,
        job: Job,
        policy: Policy,
        storage: FileStorage | None,
        recorder: Recorder,
        stopping: Callable[[], bool],
    ) -> None:
        """Save by the limits of the policy, until `stopping` returns True."""
        super().__init__()
        self._job = job
        self._policy = policy
        self._storage = storage
        self._recorder = recorder
        self._stopping = stopping
        # Saved or being saved; a name whose save failed may be used again. If that save was
        # cancelled too late, its file is listed, and the next one of this name replaces it.
        self._names: set[str] = set()
        self._numbers = count()

    def save(
        self, name: str, source: FileSource, media_type: str | None
    ) -> Coroutine[Any, Any, JobFile]:
        """Save a file from the event loop, when awaited; the content is written in a thread."""
        self.check()
        number = next(self._numbers)
        saving: Any = self._save(number, name, source, media_type)
        # Python's warning names what the handler has called.
        saving.__qualname__ = "JobContext.save_file"
        self.made(number, repr(name))
        finalize(saving, self.dropped, number).atexit = False
        return cast("Coroutine[Any, Any, JobFile]", saving)

    def not_awaited(self, name: str) -> NotAwaited:
        return NotAwaited("job.save_file(...)", f"The file {name}")

    async def _save(
        self, number: int, name: str, source: FileSource, media_type: str | None
    ) -> JobFile:
        self.awaited(number)
        storage, file = self._begin(name, source, media_type)
        try:
            await self._recorder.announce(file, self._policy.max_files)
            content = self._content_of(file)
            await _write(storage, file.key, content, source)
            recorded = await self._recorded(storage, content.described(file))
        except BaseException:
            self._names.discard(name)
            raise
        if recorded.replaced:
            await to_thread.run_sync(self._drop, storage, recorded.replaced)
        return recorded.file

    def save_and_block(self, name: str, source: FileSource, media_type: str | None) -> JobFile:
        """Save a file in this thread, which has no event loop."""
        if current_loop() is not None:
            raise ConfigurationError(
                "job.sync.save_file would block the event loop: "
                "in `async def`, write `await job.save_file(...)`."
            )
        storage, file = self._begin(name, source, media_type)
        try:
            self._recorder.announce_and_block(file, self._policy.max_files)
            content = self._content_of(file)
            try:
                storage.write(file.key, content.chunks(_chunks_of(source, content)))
            except BaseException as error:  # noqa: BLE001  # raised again, or another in its place
                content.raise_for(storage, error)
            content.check_complete(storage)
            recorded = self._recorded_and_blocked(storage, content.described(file))
        except BaseException:
            self._names.discard(name)
            raise
        self._drop(storage, recorded.replaced)
        return recorded.file

    def _begin(
        self, name: str, source: object, media_type: str | None
    ) -> tuple[FileStorage, JobFile]:
        check_file_name(name)
        kind = media_type_of(name, media_type)
        if isinstance(source, str):
            raise TypeError("A text may be a path or a content: give a Path, or text.encode().")
        if self._storage is None:
            raise ConfigurationError(_NO_STORAGE)
        if name in self._names:
            raise DuplicateFile(name)
        self._names.add(name)
        attempt = self._job.attempt
        key = new_key(self._job.id, attempt)
        return self._storage, JobFile(name=name, key=key, media_type=kind, attempt=attempt)

    def _content_of(self, file: JobFile) -> _Content:
        return _Content(self._job.id, file.name, self._policy.max_file_bytes, self._stopping)

    async def _recorded(self, storage: FileStorage, file: JobFile) -> Recorded:
        try:
            return await self._recorder.record(file)
        except JobCancelled:
            # Another attempt has the job, and may have ended it: then its contents may have been
            # deleted before this one was stored.
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._drop, storage, (file.key,))
            raise

    def _recorded_and_blocked(self, storage: FileStorage, file: JobFile) -> Recorded:
        try:
            return self._recorder.record_and_block(file)
        except JobCancelled:
            self._drop(storage, (file.key,))  # for the same reason
            raise

    def _drop(self, storage: FileStorage, keys: tuple[str, ...]) -> None:
        """Delete contents that no job lists; what remains is deleted with the job."""
        for key in keys:
            try:
                storage.delete(key)
            except Exception as error:  # noqa: BLE001  # a storage may raise anything
                fields = log_fields(self._job)
                log.warning("A replaced file could not be deleted yet: %s", error, extra=fields)


class _Content:
    """A content on its way to the storage: joined, counted, hashed and limited."""

    def __init__(self, job_id: str, name: str, limit: int, stopping: Callable[[], bool]) -> None:
        self._job_id = job_id
        self._name = name
        self._limit = limit
        self._stopping = stopping
        self._hash = hashlib.sha256()
        self._size = 0
        self._error: BaseException | None = None
        self._complete = False
        self._stopped = False

    def stop(self) -> None:
        """Raise `JobCancelled` in the storage's thread at the next chunk."""
        self._stopped = True

    def check_size(self, size: int) -> None:
        """Raise `FileTooLarge` for more bytes than the limit."""
        if size > self._limit:
            raise FileTooLarge(self._name, self._limit)

    def _check_going_on(self) -> None:
        if self._stopped or self._stopping():
            raise JobCancelled(self._job_id)

    def chunks(self, source: Iterator[object]) -> Iterator[bytes]:
        """Yield the chunks of a source."""
        try:
            for chunk in _joined(source):
                self._check_going_on()
                self._size += len(chunk)
                self.check_size(self._size)
                self._hash.update(chunk)
                yield chunk
        except GeneratorExit:  # the storage has given up
            raise
        except BaseException as error:
            self._error = error
            raise
        self._complete = True

    def raise_for(self, storage: FileStorage, error: BaseException) -> None:
        """Raise the error of the source, or one for a storage that has raised `error`."""
        if self._error is not None:
            raise self._error
        if isinstance(error, Exception):
            raise unavailable(storage, error) from error
        raise error

    def check_complete(self, storage: FileStorage) -> None:
        """Raise `StorageUnavailable` if the storage has not read the whole source."""
        if not self._complete:
            raise unavailable(storage, RuntimeError("it has not stored the whole content"))

    def described(self, file: JobFile) -> JobFile:
        """Return the entry of the file with its size and digest."""
        return file.changed(size=self._size, digest=self._hash.hexdigest())


async def _write(storage: FileStorage, key: str, content: _Content, source: FileSource) -> None:
    """Write a content in a thread; return when the thread has ended, whatever happens."""
    handover = _Handover() if _is_asynchronous(source) else None
    chunks = _chunks_of(source, content) if handover is None else handover.chunks()

    def write() -> None:
        storage.write(key, content.chunks(chunks))

    call = in_new_thread(write, "asyncjobs file", None if handover is None else handover.close)
    try:
        if handover is not None:
            await handover.feed(source)
        await call.ended()
    except GeneratorExit:  # the attempt is ended by force, and nothing can be awaited
        _give_up(content, handover)
        raise
    except BaseException:
        _give_up(content, handover)
        # A cancelled handler must not leave its work behind.
        with anyio.CancelScope(shield=True):
            await call.ended()
        raise
    await _check(call, content, storage)


async def _check(call: Call[None], content: _Content, storage: FileStorage) -> None:
    try:
        await call.result()
    except BaseException as error:  # noqa: BLE001  # raised again, or another in its place
        content.raise_for(storage, error)
    content.check_complete(storage)


def _give_up(content: _Content, handover: _Handover | None) -> None:
    content.stop()
    if handover is not None:
        handover.abort()


class _Aborted(Exception):
    """Raised in the thread of the storage when its source has raised in the event loop."""


class _Handover:
    """Hands chunks from the event loop to the thread of the storage, a few at a time."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._call_soon = call_soon_from_threads()
        self._taken = Signal()
        self._waiting = 0
        self._closed = False
        self._aborted = False

    async def feed(self, source: Any) -> None:
        """Put all chunks of an asynchronous source; raise what it raises."""
        joiner = _Joiner()
        async with aclosing(_chunks_from(source)) as chunks:
            async for chunk in chunks:
                for piece in joiner.add(chunk):
                    await self._room()
                    self.put(piece)
                if self._closed:  # the storage has given up
                    return
        self.put(joiner.rest())
        self._queue.put(None)

    def put(self, chunk: bytes) -> None:
        """Put one chunk, although there may be no room."""
        self._waiting += 1
        self._queue.put(chunk)

    def abort(self) -> None:
        """Raise in the thread instead of the next chunk."""
        self._aborted = True
        self._queue.put(b"")

    def close(self) -> None:
        """Note that the thread takes no more chunks; called in the event loop."""
        self._closed = True
        self._taken.set()

    async def _room(self) -> None:
        while self._waiting >= _MAX_WAITING and not self._closed:
            await self._taken.wait()

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks, in the thread."""
        while (chunk := self._queue.get()) is not None:
            if self._aborted:
                raise _Aborted
            self._call_soon(self._note_taken)
            yield chunk

    def _note_taken(self) -> None:
        self._waiting -= 1
        self._taken.set()


class _Joiner:
    """Joins and splits chunks of any size and kind."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, chunk: object) -> Iterator[bytes]:
        """Yield the pieces that are complete; raise `TypeError` for a chunk that is not bytes."""
        if isinstance(chunk, bytes) and _CHUNK_BYTES <= len(chunk) <= 2 * _CHUNK_BYTES:
            if self._kept:
                yield self.rest()
            yield chunk
            return
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise TypeError(f"The chunks of a file must be bytes, got {type(chunk).__name__}.")
        view = memoryview(cast("bytes", chunk)).cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            self._kept += view[start : start + _CHUNK_BYTES]
            if len(self._kept) >= _CHUNK_BYTES:
                yield self.rest()

    def rest(self) -> bytes:
        """Return what is left."""
        rest, self._kept = bytes(self._kept), bytearray()
        return rest


def _joined(chunks: Iterator[object]) -> Iterator[bytes]:
    joiner = _Joiner()
    for chunk in chunks:
        yield from joiner.add(chunk)
    if rest := joiner.rest():
        yield rest


def _is_asynchronous(source: object) -> bool:
    read = getattr(source, "read", None)
    return inspect.iscoroutinefunction(read) if read else isinstance(source, AsyncIterable)


async def _chunks_from(source: Any) -> AsyncGenerator[object]:
    if hasattr(source, "read"):
        while chunk := await source.read(_CHUNK_BYTES):
            yield chunk
        return
    try:
        async for chunk in source:
            yield chunk
    finally:
        # A generator that is left early would be closed by the garbage collector, much later.
        if inspect.isasyncgen(source):
            await source.aclose()


def _chunks_of(source: Any, content: _Content) -> Iterator[object]:
    """Yield the chunks of a source, in the thread of the storage."""
    if isinstance(source, bytes | bytearray | memoryview):
        content.check_size(memoryview(cast("bytes", source)).nbytes)
        yield source
    elif isinstance(source, os.PathLike):
        with Path(cast("os.PathLike[str]", source)).open("rb", buffering=0) as file:
            content.check_size(os.fstat(file.fileno()).st_size)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    elif _is_asynchronous(source):
        raise TypeError("This source is asynchronous, which needs an `async def` handler.")
    elif hasattr(source, "read"):
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
    elif isinstance(source, Iterable):
        yield from source
    else:
        raise TypeError(
            "A file is saved from a Path, bytes, a binary file object or an iterable of bytes, "
            f"not from {type(source).__name__}."
        )


@dataclass(frozen=True)
class FileStep:
    """What a child process asks its parent to record; `limit` is that of an announcement."""

    file: JobFile
    limit: int | None = None


class PipeRecorder:
    """Asks the parent process to write the records."""

    def __init__(self, ask: Callable[[FileStep], Recorded]) -> None:
        self._ask = ask

    async def announce(self, file: JobFile, limit: int) -> None:
        await to_thread.run_sync(self._ask, FileStep(file, limit))

    async def record(self, file: JobFile) -> Recorded:
        return await to_thread.run_sync(self._ask, FileStep(file))

    def announce_and_block(self, file: JobFile, limit: int) -> None:
        self._ask(FileStep(file, limit))

    def record_and_block(self, file: JobFile) -> Recorded:
        return self._ask(FileStep(file))


def recorded_for(recorder: Recorder, step: FileStep) -> Recorded | BaseException:
    """Write what a child process asked for; return the answer to it, maybe an error."""
    try:
        if step.limit is None:
            return recorder.record_and_block(step.file)
        recorder.announce_and_block(step.file, step.limit)
    except BaseException as error:  # noqa: BLE001  # the child raises it
        return error
    return Recorded(step.file)
