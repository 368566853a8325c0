"""Handlers save files: each is stored wholly or not at all, and is deleted with its job."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncjobs import AsyncJobs, Job, JobContext, JobFailed, JobStatus, Policy, Retry
from asyncjobs.core.job import JobFile, JobId, Lease
from asyncjobs.errors import (
    ConfigurationError,
    DuplicateFile,
    FileMissing,
    FileTooLarge,
    StorageUnavailable,
    TooManyFiles,
    UnknownFile,
    UnknownJob,
)
from asyncjobs.files import FolderStorage
from asyncjobs.protocols import Change
from asyncjobs.testing import Faults, FaultyStore
from tests.queues import Make, finished, running, settled
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

MIB = 1024 * 1024
WIDE = bytes(range(256)) * 4096
AT_ONCE = timedelta(0)


class Watched(FolderStorage):
    """A folder that fails, or reports what is written, when a test wants it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fails: set[str] = set()
        self.wrote: list[str] = []

    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        self._check("write")
        super().write(key, chunks)
        self.wrote.append(key)

    def delete(self, prefix: str, /) -> None:
        self._check("delete")
        super().delete(prefix)

    def contents(self) -> list[str]:
        """Return the keys of all contents, and of unfinished ones."""
        if not self.path.exists():
            return []
        return sorted(
            str(one.relative_to(self.path)) for one in self.path.rglob("*") if one.is_file()
        )

    def _check(self, what: str) -> None:
        if what in self.fails:
            raise PermissionError(f"no {what}")


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "files")


@pytest.fixture
def jobs(make: Make, storage: Watched) -> AsyncJobs:
    return make(files=storage)


async def content(jobs: AsyncJobs, job_id: JobId, name: str) -> bytes:
    return b"".join([chunk async for chunk in await jobs.read_file(job_id, name)])


async def slowly(text: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(text), size):
        await anyio.lowlevel.checkpoint()
        yield text[start : start + size]


class Upload:
    """A file object with coroutines, like an upload of Starlette."""

    def __init__(self, text: bytes) -> None:
        self._file = io.BytesIO(text)

    async def read(self, size: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self._file.read(size)


def on_disk(text: bytes, folder: Path) -> Path:
    path = folder / "source"
    path.write_bytes(text)
    return path


Source = Callable[[bytes, Path], Any]

PLAIN: dict[str, Source] = {
    "bytes": lambda text, _: text,
    "bytearray": lambda text, _: bytearray(text),
    "memoryview": lambda text, _: memoryview(text),
    "path": on_disk,
    "file": lambda text, _: io.BytesIO(text),
    "list": lambda text, _: [text[:3], b"", text[3:]],
    "many small chunks": lambda text, _: (text[at : at + 1000] for at in range(0, len(text), 1000)),
}
ASYNCHRONOUS: dict[str, Source] = {
    "asynchronous iterator": lambda text, _: slowly(text),
    "asynchronous file": lambda text, _: Upload(text),
}


@pytest.mark.parametrize("text", [b"", b"one", WIDE], ids=["empty", "short", "wide"])
@pytest.mark.parametrize("source", [*PLAIN, *ASYNCHRONOUS])
async def test_a_file_is_saved_from_any_source(
    jobs: AsyncJobs, source: str, text: bytes, tmp_path: Path
) -> None:
    given = {**PLAIN, **ASYNCHRONOUS}[source](text, tmp_path)

    @jobs.handler("export")
    async def export(job: JobContext) -> int | None:
        saved = await job.save_file("export.csv", given)
        return saved.size

    async with jobs:
        job = await finished(jobs, export)
        [file] = job.files
        found = await content(jobs, job.id, "export.csv")
    assert (job.result, file.size, file.media_type) == (len(text), len(text), "text/csv")
    assert file.digest == hashlib.sha256(text).hexdigest()
    assert found == text


@pytest.mark.parametrize("source", PLAIN)
async def test_a_def_handler_saves_a_file_in_its_thread(
    jobs: AsyncJobs, source: str, tmp_path: Path
) -> None:
    @jobs.handler("export")
    def export(job: JobContext) -> str:
        given = PLAIN[source](WIDE, tmp_path)
        return job.sync.save_file("a.bin", given, media_type="image/x; version=1").media_type

    async with jobs:
        job = await finished(jobs, export)
        assert await content(jobs, job.id, "a.bin") == WIDE
    assert job.result == "image/x; version=1"


async def test_the_call_of_the_other_kind_of_handler_is_refused(jobs: AsyncJobs) -> None:
    @jobs.handler("coroutine")
    async def coroutine(job: JobContext) -> None:
        with pytest.raises(ConfigurationError, match=r"await job\.save_file"):
            job.sync.save_file("a.csv", b"one")

    @jobs.handler("function")
    def function(job: JobContext) -> None:
        with pytest.raises(ConfigurationError, match=r"job\.sync\.save_file"):
            _ = job.save_file("a.csv", b"one")
        with pytest.raises(TypeError, match="async def"):
            job.sync.save_file("a.csv", slowly(b"one"))

    async with jobs:
        for kind in (coroutine, function):
            assert (await finished(jobs, kind)).status is JobStatus.COMPLETED


def wrong() -> list[tuple[type[Exception], str, Any, dict[str, Any]]]:
    """Return the expected error, and what cannot be saved."""
    return [
        (ValueError, "", b"", {}),
        (ValueError, "../a", b"", {}),
        (ValueError, "a\0", b"", {}),
        (ValueError, "a.csv", b"", {"media_type": "text/csv\r\nX: y"}),
        (TypeError, "a.csv", "a text or a path", {}),
        (TypeError, "a.csv", 7, {}),
        (TypeError, "a.csv", None, {}),
        (TypeError, "a.csv", ["text"], {}),
        (TypeError, "a.csv", io.StringIO("text"), {}),
        (FileNotFoundError, "a.csv", Path("/no/such/file"), {}),
        (FileTooLarge, "a.csv", b"x" * 11, {}),
        (FileTooLarge, "a.csv", Path(__file__), {}),
        (FileTooLarge, "a.csv", [b"x"] * 11, {}),
        (FileTooLarge, "a.csv", slowly(b"x" * 11), {}),
        (DuplicateFile, "first", b"", {}),
    ]


async def test_what_cannot_be_saved_is_refused_and_nothing_is_lost(
    make: Make, storage: Watched
) -> None:
    jobs = make(files=storage, policy=Policy(max_file_bytes=10))
    saved: list[str] = []

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("first", b"kept")
        for error, name, source, options in wrong():
            try:
                await job.save_file(name, source, **options)
            except error:
                continue
            saved.append(f"{name} {source!r}")
        await job.save_file("a.csv", b"kept, too"[:10])

    async with jobs:
        job = await finished(jobs, export)
        assert [await content(jobs, job.id, one) for one in ("first", "a.csv")] == [
            b"kept",
            b"kept, too",
        ]
    assert (job.status, saved) == (JobStatus.COMPLETED, [])
    assert len(storage.contents()) == 2


async def test_a_job_saves_at_most_max_files(make: Make, storage: Watched) -> None:
    jobs = make(files=storage, policy=Policy(max_files=2))

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        for name in "ab":
            await job.save_file(name, b"one")
        with pytest.raises(TooManyFiles):
            await job.save_file("c", b"one")

    async with jobs:
        job = await finished(jobs, export)
    assert [file.name for file in job.files] == ["a", "b"]


async def test_a_limit_fails_the_job_with_a_sentence_and_without_a_retry(
    make: Make, storage: Watched
) -> None:
    policy = Policy(max_file_bytes=10, retry=Retry(max_attempts=3))
    jobs = make(files=storage, policy=policy)

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("a.csv", b"x" * 11)

    async with jobs:
        job = await finished(jobs, export)
    assert job.error is not None
    assert (job.attempt, job.error.code) == (1, "invalid_file")
    assert "'a.csv'" in job.error.message
    assert "10 bytes" in job.error.message
    # Clients see the limit, and operators the option that sets it.
    assert "Policy" not in job.error.message
    assert "Policy.max_file_bytes" in job.attempt_errors[0].traceback
    assert storage.contents() == []


async def test_an_error_of_the_source_is_raised_and_the_name_can_be_used_again(
    jobs: AsyncJobs, storage: Watched
) -> None:
    def broken() -> Iterator[bytes]:
        yield WIDE
        raise LookupError("the query has failed")

    async def broken_later() -> AsyncIterator[bytes]:
        yield WIDE
        raise LookupError("the query has failed")

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        for source in (broken(), broken_later()):
            with pytest.raises(LookupError, match="query"):
                await job.save_file("a.csv", source)
        await job.save_file("a.csv", b"one")

    async with jobs:
        job = await finished(jobs, export)
        assert await content(jobs, job.id, "a.csv") == b"one"
    assert [file.size for file in job.files] == [3]
    assert len(storage.contents()) == 1


async def test_a_storage_that_fails_is_named_and_its_error_is_the_cause(
    jobs: AsyncJobs, storage: Watched
) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        storage.fails.add("write")
        for source in (b"one", slowly(WIDE)):
            with pytest.raises(StorageUnavailable, match="no write") as raised:
                await job.save_file("a.csv", source)
            assert isinstance(raised.value.__cause__, PermissionError)
        storage.fails.clear()
        await job.save_file("b.csv", b"one")

    async with jobs:
        job = await finished(jobs, export)
        with pytest.raises(UnknownFile):
            await jobs.read_file(job.id, "a.csv")
    assert [file.name for file in lifecycle_listed(job)] == ["b.csv"]


def lifecycle_listed(job: Job) -> list[JobFile]:
    return [file for file in job.files if file.size is not None]


async def test_a_queue_without_a_storage_says_how_to_set_one(make: Make) -> None:
    jobs = make()
    jobs.file_storage = None

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        with pytest.raises(ConfigurationError, match="files="):
            await job.save_file("a.csv", b"one")

    async with jobs:
        assert (await finished(jobs, export)).status is JobStatus.COMPLETED


async def test_a_later_attempt_replaces_a_file_and_keeps_the_others(
    jobs: AsyncJobs, storage: Watched
) -> None:
    @jobs.handler("export", retry=Retry(max_attempts=2, initial_delay=0))
    async def export(job: JobContext) -> None:
        if job.attempt == 1:
            await job.save_file("only first", b"kept")
        await job.save_file("a.csv", b"%d" % job.attempt)
        if job.attempt == 1:
            raise RuntimeError("once more")

    async with jobs:
        job = await finished(jobs, export)
        assert await content(jobs, job.id, "a.csv") == b"2"
        assert await content(jobs, job.id, "only first") == b"kept"
    assert [(file.name, file.attempt) for file in job.files] == [("only first", 1), ("a.csv", 2)]
    assert storage.contents() == sorted(file.key for file in job.files)


async def test_a_failed_job_keeps_its_files(jobs: AsyncJobs) -> None:
    @jobs.handler("check")
    async def check(job: JobContext) -> None:
        await job.save_file("errors.txt", b"line 3")
        raise JobFailed("The file has errors.")

    async with jobs:
        job = await finished(jobs, check)
        assert job.status is JobStatus.FAILED
        assert await content(jobs, job.id, "errors.txt") == b"line 3"


async def test_a_file_is_listed_at_once_and_is_a_visible_change(jobs: AsyncJobs) -> None:
    go_on = anyio.Event()

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("a.csv", b"one")
        await go_on.wait()

    async with jobs:
        handle = await jobs.enqueue(export)
        job = await jobs.find(handle.id)
        while not lifecycle_listed(job):
            job = await jobs.next_change(handle.id, after=job.version, timeout=60)
        assert job.status is JobStatus.PROCESSING
        assert await content(jobs, handle.id, "a.csv") == b"one"
        go_on.set()
        assert (await settled(jobs, handle.id)).version > job.version


async def test_progress_and_files_do_not_undo_each_other(jobs: AsyncJobs) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        for number in range(20):
            await job.progress(number)
            await job.save_file(f"{number}.csv", slowly(b"one", 1))

    async with jobs:
        job = await finished(jobs, export)
    assert [file.name for file in job.files] == [f"{number}.csv" for number in range(20)]
    assert (job.status, job.progress) == (JobStatus.COMPLETED, 100)


async def test_several_files_are_saved_at_once(jobs: AsyncJobs) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(job.save_file, f"{number}.csv", slowly(b"%d" % number))
        with pytest.raises(DuplicateFile):
            await job.save_file("3.csv", b"")

    async with jobs:
        job = await finished(jobs, export)
        for number in range(10):
            assert await content(jobs, job.id, f"{number}.csv") == b"%d" % number


async def test_a_save_that_is_not_awaited_fails_the_attempt(
    jobs: AsyncJobs, recwarn: pytest.WarningsRecorder
) -> None:
    kept: list[object] = []

    @jobs.handler("last")
    async def last(job: JobContext) -> None:
        job.save_file("a.csv", b"one")  # type: ignore[unused-coroutine]

    @jobs.handler("next")
    async def next_one(job: JobContext) -> None:
        job.save_file("a.csv", b"one")  # type: ignore[unused-coroutine]
        await job.save_file("b.csv", b"one")

    @jobs.handler("keep")
    async def keep(job: JobContext) -> None:
        kept.append(job.save_file("a.csv", b"one"))

    async with jobs:
        for handler in (last, next_one, keep):
            job = await finished(jobs, handler)
            assert job.status is JobStatus.FAILED
            [error] = job.attempt_errors
            assert error.type == "NotAwaited"
            assert "The file 'a.csv' was not stored" in error.message
            assert "await job.save_file(...)" in error.message
            assert job.files == ()
    kept.clear()
    warned = {str(one.message) for one in recwarn if one.category is RuntimeWarning}
    assert warned == {"coroutine 'JobContext.save_file' was never awaited"}


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_a_cancelled_save_leaves_no_file_and_no_thread(
    jobs: AsyncJobs, storage: Watched, kind: str
) -> None:
    began = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield WIDE
            began.set()
            await anyio.sleep(0.001)

    def endless_in_thread() -> Iterator[bytes]:
        while True:
            yield WIDE
            began.set()

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        source = endless() if kind == "asynchronous" else endless_in_thread()
        await job.save_file("a.csv", source)

    async with jobs:
        job = await running(jobs, export)
        await until(began.is_set)
        await jobs.cancel(job.id)
        ended = await settled(jobs, job.id)
        assert ended.status is JobStatus.CANCELLED
        assert lifecycle_listed(ended) == []
        assert storage.contents() == []
        # A thread reports its end shortly before it ends.
        await until(lambda: all(one.name != "asyncjobs file" for one in threading.enumerate()))


async def test_a_save_that_was_cancelled_while_it_was_listed_can_be_made_again(
    make: Make, new_store: Callable[[], Any], storage: Watched, anyio_backend_name: str
) -> None:
    class Cancelling(FaultyStore):
        """A store that has listed a file when the task that saves it is cancelled."""

        cancel: Callable[[], object] | None = None

        async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
            written = await super().replace(changes)
            if self.cancel is not None and any(lifecycle_listed(one.job) for one in changes):
                self.cancel()
                self.cancel = None
            return written

    if anyio_backend_name == "trio":
        pytest.skip("a scope is cancelled only after the answer of the store")
    store = Cancelling(new_store())
    jobs = make(store=store, files=storage)

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        task = asyncio.create_task(job.save_file("a.csv", b"first"))
        store.cancel = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        await job.save_file("a.csv", b"second")
        with pytest.raises(DuplicateFile):
            await job.save_file("a.csv", b"third")

    async with jobs:
        job = await finished(jobs, export)
        assert job.status is JobStatus.COMPLETED
        assert await content(jobs, job.id, "a.csv") == b"second"
    assert storage.contents() == [file.key for file in job.files]


async def test_a_def_handler_that_saves_is_stopped_at_the_next_chunk(
    jobs: AsyncJobs, storage: Watched
) -> None:
    began = threading.Event()

    def endless() -> Iterator[bytes]:
        while True:
            yield WIDE
            began.set()

    @jobs.handler("export")
    def export(job: JobContext) -> None:
        job.sync.save_file("a.csv", endless())

    async with jobs:
        job = await running(jobs, export)
        await until(began.is_set)
        await jobs.cancel(job.id)
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED
    assert storage.contents() == []


async def test_an_attempt_that_lost_its_job_lists_nothing_and_deletes_its_content(
    jobs: AsyncJobs, storage: Watched
) -> None:
    written, taken, ended = anyio.Event(), anyio.Event(), anyio.Event()

    async def interrupted() -> AsyncIterator[bytes]:
        yield b"one"
        written.set()
        await taken.wait()

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await job.save_file("a.csv", interrupted())
        finally:
            ended.set()

    async with jobs:
        job = await running(jobs, export)
        await written.wait()
        await take_away(jobs, job.id)
        taken.set()
        # The attempt notices its loss while it writes, or when it lists the file.
        await ended.wait()
        assert storage.contents() == []
        found = await jobs.find(job.id)
    assert lifecycle_listed(found) == []


async def take_away(jobs: AsyncJobs, job_id: JobId) -> None:
    """Give a running job to another attempt, as maintenance does after a lapsed lease."""
    while True:
        job = await jobs.find(job_id)
        assert job.lease is not None
        lease = Lease(worker="other:1", token="another", until=job.lease.until)
        stolen = job.changed(lease=lease, revision=job.revision + 1)
        [done] = await jobs.store.replace([Change(stolen, job.revision)])
        if done:
            return


@pytest.mark.own_store
@pytest.mark.parametrize("fault", ["before", "after"])
async def test_records_are_written_again_after_an_outage_of_the_store(
    make: Make, storage: Watched, fault: str
) -> None:
    from asyncjobs.stores.memory import MemoryStore  # noqa: PLC0415

    store = FaultyStore(MemoryStore())
    jobs = make(store=store, files=storage)

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        store.faults = Faults(**{fault: 1.0}, only={"replace"}, most=2)
        await job.save_file("a.csv", b"one")
        store.faults = Faults(**{fault: 1.0}, only={"replace"}, most=2)
        await job.save_file("b.csv", slowly(WIDE))
        store.faults = Faults()

    async with jobs:
        job = await finished(jobs, export)
        assert await content(jobs, job.id, "b.csv") == WIDE
    assert [file.name for file in job.files] == ["a.csv", "b.csv"]
    assert len(storage.contents()) == 2


async def test_the_files_of_a_job_are_deleted_with_it(jobs: AsyncJobs, storage: Watched) -> None:
    @jobs.handler("export", policy=Policy(retention=AT_ONCE))
    async def export(job: JobContext) -> None:
        await job.save_file("a.csv", b"one")
        with pytest.raises(LookupError):
            await job.save_file("b.csv", (_raise(one) for one in "b"))

    @jobs.handler("kept")
    async def kept(job: JobContext) -> None:
        await job.save_file("a.csv", b"one")

    async with jobs:
        other = await finished(jobs, kept)
        handle = await jobs.enqueue(export)
        await until(lambda: len(storage.wrote) == 2)
        await until(lambda: jobs_of(storage) == [other.id])
        assert await jobs.get(handle.id) is None
        assert await content(jobs, other.id, "a.csv") == b"one"


def _raise(_: str) -> bytes:
    raise LookupError


def jobs_of(storage: FolderStorage) -> list[str]:
    return sorted(storage.jobs())


async def test_a_job_whose_files_cannot_be_deleted_is_left_for_a_later_sweep(
    jobs: AsyncJobs, storage: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "asyncjobs")

    @jobs.handler("export", policy=Policy(retention=AT_ONCE))
    async def export(job: JobContext) -> None:
        await job.save_file("a.csv", b"one")
        storage.fails.add("delete")

    @jobs.handler("plain", policy=Policy(retention=AT_ONCE))
    async def plain(job: JobContext) -> None:
        job.check()

    async with jobs:
        handle = await jobs.enqueue(export)
        await until(lambda: "cannot be deleted yet, because of its files" in caplog.text)
        with pytest.raises(UnknownJob):  # for readers it is gone
            await jobs.read_file(handle.id, "a.csv")
        other = await jobs.enqueue(plain)
        await until(lambda: gone(jobs, other.id))
        assert not await gone(jobs, handle.id)
        assert storage.contents() != []
        storage.fails.clear()
        await until(lambda: gone(jobs, handle.id))
    assert storage.contents() == []


async def gone(jobs: AsyncJobs, job_id: JobId) -> bool:
    """Return whether the store no longer has the job."""
    return [*await jobs.store.get([job_id])] == [None]


async def test_a_content_that_was_lost_is_reported(jobs: AsyncJobs, storage: Watched) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("gone.bin", WIDE)
        await job.save_file("cut.bin", WIDE)

    async with jobs:
        job = await finished(jobs, export)
        lost, cut = (storage.path / file.key for file in job.files)
        lost.unlink()
        cut.write_bytes(WIDE[: MIB // 2])
        with pytest.raises(FileMissing):
            await jobs.read_file(job.id, "gone.bin")
        with pytest.raises(FileMissing):
            await content(jobs, job.id, "cut.bin")


async def test_a_sweep_deletes_only_the_files_of_jobs_that_are_gone(
    jobs: AsyncJobs, storage: Watched
) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("a.csv", b"one")

    async with jobs:
        kept, lost = [await finished(jobs, export) for _ in range(2)]
        assert await jobs.sweep_files() == []
        await jobs.store.delete([lost.id])  # as an expired key of Redis
        assert await jobs.sweep_files() == [lost.id]
    assert jobs_of(storage) == [kept.id]


async def test_a_job_that_runs_again_has_no_files_of_the_first(jobs: AsyncJobs) -> None:
    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        if job.attempt == 1:
            await job.save_file("a.csv", b"one")

    async with jobs:
        first = await finished(jobs, export)
        again = await settled(jobs, (await jobs.retry(first.id)).id)
        assert again.files[0].key.startswith(f"{again.id}/")
        assert await content(jobs, first.id, "a.csv") == b"one"
