"""The job as its handler sees it."""

from __future__ import annotations

import json
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, cast

import anyio.lowlevel
from pydantic import JsonValue
from typing_extensions import TypeVar

from asyncjobs.core.descriptions import checked_title, metadata_text
from asyncjobs.core.job import Detail, Job, JobFile, JobId, Progress
from asyncjobs.core.output import DEFAULT_STREAM, KindName
from asyncjobs.core.signatures import JobParameter
from asyncjobs.errors import ConfigurationError, JobCancelled
from asyncjobs.execution.tasks import current_loop
from asyncjobs.records.logging import log_fields

if TYPE_CHECKING:
    from asyncjobs.execution.files import FileSaver, FileSource
    from asyncjobs.execution.output import Emission, Output, OutputStream
    from asyncjobs.queue import AsyncJobs

T = TypeVar("T")
S = TypeVar("S", default=None)

# How long an `async for` over plain items may keep the event loop before other tasks run.
_TURN_SECONDS = 0.005

#: The longest progress message and unit, in characters; longer ones are cut.
MAX_MESSAGE_CHARS = 1000
MAX_UNIT_CHARS = 100

_CUT_MARK = " [cut]"

#: Percent, message, current, total, unit; text is safe and cut.
Report = tuple[int, str | None, int | None, int | None, str | None]

_TOO_MANY = 2**63

_NO_DETAIL = (None, None, None, None)


class News(NamedTuple):
    """What a handler has set; None for what it has not."""

    report: Report | None = None
    title: str | None = None
    metadata_json: bytes | None = None

    @property
    def progress(self) -> Progress | None:
        """The stored form of the report."""
        return None if self.report is None else progress_of(self.report)


_NO_NEWS = News()


class Gauge:
    """Connects a handler, perhaps in a thread, with the runner.

    The handler sets the latest progress, title and metadata, the runner sets the order to stop.
    Each is a single attribute, so neither side needs a lock, and a report costs an assignment.
    """

    __slots__ = ("latest", "metadata_json", "stopping", "title", "written")

    def __init__(self) -> None:
        self.latest: Report | None = None
        self.title: str | None = None
        self.metadata_json: bytes | None = None
        self.written: News = _NO_NEWS
        self.stopping = False

    @property
    def news(self) -> News:
        """The latest of all that the handler has set."""
        return News(self.latest, self.title, self.metadata_json)

    def take_over(self, news: News) -> None:
        """Set what another gauge has; None leaves the value of this one."""
        self.latest = news.report or self.latest
        self.title = news.title or self.title
        self.metadata_json = news.metadata_json or self.metadata_json

    def unwritten(self) -> News | None:
        """Return the latest news; None if there are none that were not written."""
        written = self.written
        if (
            self.latest is written.report
            and self.title == written.title
            and self.metadata_json == written.metadata_json
        ):
            return None
        return self.news

    def forget_written(self) -> None:
        """Make all news count as unwritten, because a write failed or was refused."""
        self.written = _NO_NEWS


def progress_of(report: Report) -> Progress:
    """Return the stored form of a report."""
    percent, message, current, total, unit = report
    if report[1:] == _NO_DETAIL:
        return Progress(percent=percent)
    detail = Detail(message=message, current=current, total=total, unit=unit)
    return Progress(percent=percent, detail=detail)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and abs(value) < _TOO_MANY)


def safe_text(value: object) -> str | None:
    """Return a handler's value as text that can be stored; never raises.

    A file name may contain lone surrogates; the `__str__` of a lazy translation may raise.
    """
    if value is None:
        return None
    try:
        # `str()` may return an instance of a subclass, which has methods of its own.
        return str.__str__(str(value)).encode("utf-8", "replace").decode()
    except BaseException:  # noqa: BLE001  # its class may raise anything
        return f"<{type(value).__name__} that cannot be displayed>"


def cut_text(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a mark shows that it was cut."""
    return text if len(text) <= limit else f"{text[: limit - len(_CUT_MARK)]}{_CUT_MARK}"


def alone(error: BaseException) -> BaseException:
    """Return the single error inside an exception group, or the error itself if there is none."""
    inner: tuple[BaseException, ...] = (error,)
    while len(inner) == 1 and isinstance(inner[0], BaseExceptionGroup):
        inner = cast("tuple[BaseException, ...]", inner[0].exceptions)
    return inner[0] if len(inner) == 1 else error


def classified(error: BaseException) -> BaseException:
    """Return the error, or a `RuntimeError` instead if reading its class raises."""
    with suppress(BaseException):  # `__class__` may be a property
        found: object = alone(error).__class__
        if isinstance(found, type):  # pyright: ignore[reportUnnecessaryIsInstance]
            return error
    return RuntimeError(f"The handler raised {type(error).__name__}.")


class Checkpoint:
    """Lets other tasks run when it is awaited; a handler that must stop ends here."""

    def __await__(self) -> Generator[Any, Any, None]:
        return anyio.lowlevel.checkpoint().__await__()


_CHECKPOINT = Checkpoint()


class JobContext(JobParameter, Generic[S]):
    """The running job, as its handler sees it; `S` is the type of `resources`.

    One class serves `async def` and `def` handlers. In `async def`, await the return value of
    `progress` to let other tasks run; in `def` there is nothing to await.
    """

    def __init__(
        self,
        job: Job,
        gauge: Gauge | None = None,
        resources: Any = None,
        queue: AsyncJobs | None = None,
        files: Callable[[], FileSaver] | None = None,
        output: Callable[[], Output] | None = None,
    ) -> None:
        self._job = job
        self._gauge = gauge or Gauge()
        self._resources: S = resources
        self._queue = queue
        self._make_saver = files
        self._saver: FileSaver | None = None
        self._make_output = output
        self._output: Output | None = None
        self._result: object = None

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self._job.id

    @property
    def type(self) -> str:
        """The job type's name."""
        return self._job.type

    @property
    def payload(self) -> JsonValue:
        """The payload as plain JSON values; the handler's own argument is the typed one."""
        return self._job.payload

    @property
    def resources(self) -> S:
        """The value that the queue's `lifespan` yields, shared by the handlers of this process.

        None for a queue without a lifespan. Type checkers know its type if the handler's parameter
        is annotated with `JobContext[Pool]`.
        """
        return self._resources

    @property
    def queue(self) -> AsyncJobs:
        """The queue that runs this job, to enqueue more jobs: `await job.queue.enqueue(...)`.

        In a `def` handler, use `job.queue.sync.enqueue(...)`. Raises `ConfigurationError` in a
        child process (`run_in="process"`), which has no queue.
        """
        if self._queue is None:
            raise ConfigurationError(
                "job.queue is not available in a job's process or in a JobContext made by hand: "
                "import the AsyncJobs of your application and use its `sync`."
            )
        return self._queue

    @property
    def user_id(self) -> str | None:
        """The owner; None if the job has none."""
        return self._job.user_id

    @property
    def trace_id(self) -> str:
        """The trace the job belongs to."""
        return self._job.trace_id

    @property
    def traceparent(self) -> str | None:
        """The span of this attempt (W3C) if it has one, else that of the submission."""
        return self._job.traceparent

    @property
    def scheduled_at(self) -> datetime | None:
        """The tick for which a schedule enqueued the job, in UTC; None for other jobs."""
        return self._job.scheduled_at

    @property
    def attempt(self) -> int:
        """The number of this start of the job; the first is 1."""
        return self._job.attempt

    @property
    def fence(self) -> int:
        """A number that grows with each attempt.

        Pass it to the systems that the handler writes to. A system that refuses lower numbers than
        it has seen is safe from an attempt that was believed dead.
        """
        return self._job.attempt

    @property
    def deadline(self) -> datetime:
        """When the job fails if it is not finished, across all its attempts."""
        return self._job.deadline

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, type, attempt and trace id."""
        return logging.LoggerAdapter(
            logging.getLogger(f"asyncjobs.job.{self.type}"), log_fields(self._job)
        )

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop: cancelled, timed out, or no longer the job's owner."""
        return self._gauge.stopping

    def check(self) -> None:
        """Raise `JobCancelled` if the handler should stop. For `def` handlers and tight loops.

        In `async def` handlers every `await` does the same.
        """
        if self._gauge.stopping:
            raise JobCancelled(self._job.id)

    def progress(
        self,
        percent: float,
        message: str | None = None,
        *,
        current: int | None = None,
        total: int | None = None,
        unit: str | None = None,
    ) -> Checkpoint:
        """Report how far the work is, 0 to 100; raise `JobCancelled` like `check`.

        A call takes about a microsecond: reports are written a few times a second, and the last one
        is always written.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"Progress must be a percentage from 0 to 100, got {percent}.")
        if not (_is_count(current) and _is_count(total)):
            raise TypeError("`current` and `total` must be integers of at most 64 bits.")
        self.check()
        # Converted here, because `__str__` is the handler's code and must not run in the heartbeat.
        self._gauge.latest = (
            int(percent),
            message if message is None else cut_text(safe_text(message) or "", MAX_MESSAGE_CHARS),
            current,
            total,
            unit if unit is None else cut_text(safe_text(unit) or "", MAX_UNIT_CHARS),
        )
        return _CHECKPOINT

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, which never change."""
        return self._job.tags

    @property
    def title(self) -> str | None:
        """The title that people see: the last that was set, else that of the submission."""
        return self._gauge.title or self._job.title

    @property
    def metadata(self) -> dict[str, JsonValue]:
        """The metadata that were last set, else those of the submission; a new value each time."""
        text = self._gauge.metadata_json
        return self._job.metadata if text is None else json.loads(text)

    def set_title(self, title: str) -> None:
        """Replace the title that people see; it is written like progress, the last one always.

        Raises `ValueError` for an empty title, or one of more than 200 characters.
        """
        if title is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError("A title must be a string, got None.")
        self._gauge.title = checked_title(title)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace all metadata; they are written like progress, the last ones always.

        Raises `TypeError` or `ValueError` for other than JSON values, or more than 16 KiB of them.
        """
        self._gauge.metadata_json = metadata_text(metadata)

    def save_file(
        self, name: str, source: FileSource, *, media_type: str | None = None
    ) -> Coroutine[Any, Any, JobFile]:
        """Save a file that belongs to the job: `await job.save_file("a.csv", Path("/tmp/a.csv"))`.

        The source is a path, bytes, a binary file object, or an iterable of bytes, maybe an
        asynchronous one. It may be larger than the memory. All sources but asynchronous ones are
        read in a thread. When the call returns, clients see the file. The default of `media_type`
        is the usual one for the name's suffix. A later attempt replaces the file by one of the same
        name. In a `def` handler, use `job.sync.save_file`.

        Raises `ValueError` for a name or media type that cannot be used, `DuplicateFile`,
        `TooManyFiles`, `FileTooLarge`, `StorageUnavailable`, what the source raises,
        `JobCancelled` if the attempt must stop, and `NotAwaited` if an earlier call was not
        awaited. After an error the file is not listed. If the call
        is cancelled at its very end, the file may be listed; saving it again replaces it.
        """
        if current_loop() is None:
            raise ConfigurationError(
                "job.save_file needs an event loop: in a `def` handler, use job.sync.save_file."
            )
        return self._files.save(name, source, media_type)

    def emit(self, item: Any) -> Emission:
        """Add an item to the job's output: `await job.emit(item)`, in a `def` without `await`.

        Readers get it at once. When the call returns, the item is stored as durably as the job; a
        handler with `emit_every` collects items, and waits only if too many of them are not stored.
        The type of the first item decides: a stream of `str` is text, one of `bytes` is binary, and
        all other items are JSON.

        Raises `InvalidOutput` for an item that does not fit, `OutputTooLarge`, `JobCancelled` if
        the attempt must stop, `StoreError` if it must stop while the store is unavailable, and
        `NotAwaited` if an earlier call in an `async def` was not awaited.
        """
        self.check()
        return self._streams.emit(DEFAULT_STREAM, item)

    def stream(self, name: str = DEFAULT_STREAM, *, kind: KindName | None = None) -> OutputStream:
        """Return a stream of the job's output: `await job.stream("log").emit("line")`.

        The `kind` is "json", "text" or "bytes"; without it, the first item decides. Raises
        `ValueError` for an invalid name, and `InvalidOutput` for another kind than before.
        """
        return self._streams.stream(name, kind, self.check)

    def set_result(self, result: Any) -> None:
        """Set the result of a handler that yields its output, and so returns none."""
        self._result = result

    def result_of(self, returned: Any) -> Any:
        """Return the result of the handler; raise `NotAwaited` if it has not awaited a call."""
        for calls in (self._output, self._saver):
            if calls is not None:
                calls.check_all()
        return self._result if returned is None else returned

    @property
    def _streams(self) -> Output:
        if self._make_output is None:
            raise ConfigurationError("A JobContext made by hand cannot emit output.")
        if self._output is None:
            self._output = self._make_output()
        return self._output

    @property
    def sync(self) -> SyncContext:
        """What `def` handlers call instead of coroutines: `job.sync.save_file(...)`."""
        return SyncContext(lambda: self._files)

    @property
    def _files(self) -> FileSaver:
        if self._make_saver is None:
            raise ConfigurationError("A JobContext made by hand cannot save files.")
        if self._saver is None:
            self._saver = self._make_saver()
        return self._saver

    def track(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        total: int | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> Tracked[T]:
        """Loop over items and report progress, like a progress bar.

        Use it in `for` (`def` handlers) or `async for` (`async def` handlers, also over plain
        iterables: other tasks run in between). If the items have no `len()`, pass their number as
        `total`; otherwise only the count is shown.
        """
        if total is None:
            total = _length_of(items)
        return Tracked(self, items, (message, total, unit))


class SyncContext:
    """The calls of a running job that block, for `def` handlers."""

    def __init__(self, files: Callable[[], FileSaver]) -> None:
        self._files = files

    def save_file(self, name: str, source: FileSource, *, media_type: str | None = None) -> JobFile:
        """Save a file that belongs to the job, and return when it is stored.

        As `JobContext.save_file`, but the source is not asynchronous and is read in this thread.
        """
        return self._files().save_and_block(name, source, media_type)


def _length_of(items: object) -> int | None:
    """Return the number of items; None if it is unknown or too large."""
    try:
        length = len(items)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  # it has none, or its class raises
        return None
    return length


class Tracked(Generic[T]):
    """Yields items to a handler and reports their count."""

    def __init__(
        self,
        job: JobContext[Any],
        items: Iterable[T] | AsyncIterable[T],
        labels: tuple[str | None, int | None, str | None],
    ) -> None:
        self._job = job
        self._items = items
        self._message, self._total, self._unit = labels

    def __iter__(self) -> Iterator[T]:
        items = self._items
        if not isinstance(items, Iterable):
            raise TypeError("These items are asynchronous: loop over them with `async for`.")
        done = 0
        for item in items:
            # An item is done only when the handler asks for the next one.
            self._count(done)
            yield item
            done += 1
        self._count(done)

    def __aiter__(self) -> AsyncIterator[T]:
        return _Steps(self._count, self._items)

    def _count(self, done: int) -> Checkpoint:
        # More items than announced must not fail the job: the bar then stays full.
        percent = min(100, done * 100 // self._total) if self._total else 0
        return self._job.progress(
            percent, self._message, current=done, total=self._total, unit=self._unit
        )


class _Steps(Generic[T]):
    """The iterator of `async for`.

    Not an async generator: a cancelled handler leaves its loop in the middle, and an iterator need
    not be closed then.
    """

    def __init__(
        self, count: Callable[[int], Checkpoint], items: Iterable[T] | AsyncIterable[T]
    ) -> None:
        self._count = count
        self._done = 0
        self._turn_ends = 0.0
        self._items = aiter(items) if isinstance(items, AsyncIterable) else iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        checkpoint = self._count(self._done)
        items = self._items
        if isinstance(items, AsyncIterator):
            item = await anext(items)
        else:
            # Not at every item: a checkpoint may take longer than the handler's work on it.
            if (now := monotonic()) >= self._turn_ends:
                await checkpoint
                self._turn_ends = now + _TURN_SECONDS
            try:
                item = next(items)
            except StopIteration:
                raise StopAsyncIteration from None
        self._done += 1
        return item
