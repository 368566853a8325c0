"""Each storage fulfils the contract, and the suite detects storages that break it."""

from __future__ import annotations

import inspect
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import pytest

from asyncjobs.core.job import new_job_id
from asyncjobs.errors import ConfigurationError
from asyncjobs.files import FileStorage, FolderStorage, ObjectStorage, storage_of
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import FilesConformance
from tests.waiting import until_sync


class TestFolder(FilesConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> FileStorage:
        return FolderStorage(tmp_path / "deep" / "files")


class TestObjectsInAFolder(FilesConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> FileStorage:
        from obstore.store import LocalStore  # noqa: PLC0415

        return ObjectStorage(LocalStore(tmp_path / "files", mkdir=True, automatic_cleanup=True))


class TestObjectsInMemory(FilesConformance):
    shares_processes = False

    @pytest.fixture
    def storage(self) -> FileStorage:
        return ObjectStorage("memory:///")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if find_spec("moto") is None:
        pytest.skip("needs moto[server]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        until_sync(lambda: _answers(url))
        yield url
        process.terminate()


@pytest.mark.thorough
class TestObjectsInS3(FilesConformance):
    @pytest.fixture
    def storage(self, server: str) -> FileStorage:
        from obstore.store import S3Store  # noqa: PLC0415

        bucket = f"b{os.urandom(6).hex()}"
        assert httpx2.put(f"{server}/{bucket}").status_code == 200
        return ObjectStorage(
            S3Store(
                bucket,
                prefix="files/of jobs",
                endpoint=server,
                access_key_id="id",
                secret_access_key="secret",
                region="us-east-1",
                client_options={"allow_http": True},
            )
        )

    def test_an_aborted_upload_leaves_no_parts(self, storage: Any, server: str) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * 20_000_000
            raise LookupError

        with pytest.raises(LookupError):
            storage.write(f"{new_job_id()}/1-a", chunks())
        buckets = httpx2.get(server).text
        for part in buckets.split("<Name>")[1:]:
            name = part.partition("<")[0]
            assert "<Upload>" not in httpx2.get(f"{server}/{name}?uploads").text


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.HTTPError:
        return False


# the suite detects broken storages


class KeepsAbortedContents(FolderStorage):
    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        kept: list[bytes] = []
        with suppress(LookupError):
            kept.extend(chunks)
            super().write(key, iter(kept))
            return
        super().write(key, iter(kept))
        raise LookupError("the source has ended early")


class HidesTheSourcesError(FolderStorage):
    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        with suppress(LookupError):
            super().write(key, chunks)


class DropsEmptyContents(FolderStorage):
    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        first = next(chunks, b"")
        if first:
            super().write(key, chain((first,), chunks))


class ReadsToTheEnd(FolderStorage):
    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        return super().read(key, start, stop + 1)


class ReadsFromTheStart(FolderStorage):
    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        return super().read(key, 0, stop - start)


class ReadsAllAtOnce(FolderStorage):
    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        yield b"".join(super().read(key, start, stop))


class ReadsNothingForUnknownKeys(FolderStorage):
    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        with suppress(FileNotFoundError):
            yield from super().read(key, start, stop)


class DeletesByTheBeginningOfTheId(FolderStorage):
    def delete(self, prefix: str, /) -> None:
        super().delete(prefix)
        if prefix.endswith("/"):
            for folder in self.path.glob(f"{prefix[:-1]}*"):
                shutil.rmtree(folder)


class DeletesOnlyOneContent(FolderStorage):
    def delete(self, prefix: str, /) -> None:
        if not prefix.endswith("/"):
            super().delete(prefix)
        elif (folder := self.path / prefix).is_dir():
            next(folder.iterdir()).unlink()


class DeletesTheJobWithOneContent(FolderStorage):
    def delete(self, prefix: str, /) -> None:
        super().delete(prefix.partition("/")[0] + "/")


class CannotDeleteTwice(FolderStorage):
    def delete(self, prefix: str, /) -> None:
        if not (self.path / prefix).exists():
            raise FileNotFoundError(prefix)
        super().delete(prefix)


class ListsOncePerContent(FolderStorage):
    def jobs(self) -> Iterator[str]:
        for job in super().jobs():
            yield from [job] * len([*(self.path / job).iterdir()])


class ListsDeletedJobs(FolderStorage):
    def delete(self, prefix: str, /) -> None:
        super().delete(prefix)
        (self.path / prefix.partition("/")[0]).mkdir(parents=True, exist_ok=True)


class LeavesItsFolder(FolderStorage):
    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        (self.path / key).parent.mkdir(parents=True, exist_ok=True)
        (self.path / key).write_bytes(b"".join(chunks))


class CannotBePickled(FolderStorage):
    def __reduce__(self) -> Any:
        raise TypeError("it has a connection")


BROKEN = (
    KeepsAbortedContents,
    HidesTheSourcesError,
    DropsEmptyContents,
    ReadsToTheEnd,
    ReadsFromTheStart,
    ReadsAllAtOnce,
    ReadsNothingForUnknownKeys,
    DeletesByTheBeginningOfTheId,
    DeletesOnlyOneContent,
    DeletesTheJobWithOneContent,
    CannotDeleteTwice,
    ListsOncePerContent,
    ListsDeletedJobs,
    LeavesItsFolder,
    CannotBePickled,
)

RULES = [
    name
    for name, _ in inspect.getmembers(FilesConformance, inspect.isfunction)
    if name.startswith("test_")
]


def holds(name: str, storage: FileStorage) -> bool:
    """Return whether a rule holds, in all of its cases."""
    rule = getattr(FilesConformance(), name)
    marks = [mark.args for mark in getattr(rule, "pytestmark", ())]
    cases = [{parameter: value} for parameter, values in marks for value in values] or [{}]
    for case in cases:
        try:
            rule(storage, **case)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001  # any failure
            return False
    return True


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_storage_that_breaks_the_contract_fails_the_suite(
    broken: type[FolderStorage], tmp_path: Path
) -> None:
    assert not all(holds(name, broken(tmp_path / name)) for name in RULES)


# the folder


def test_files_are_private_and_temporary_ones_are_removed(tmp_path: Path) -> None:
    storage, job_id = FolderStorage(tmp_path / "files"), new_job_id()

    def chunks() -> Iterator[bytes]:
        yield b"one"
        [part] = (tmp_path / "files" / job_id).iterdir()
        assert part.name.endswith(".part")

    storage.write(f"{job_id}/1-a", chunks())
    folder = tmp_path / "files" / job_id
    assert [one.name for one in folder.iterdir()] == ["1-a"]
    modes = [one.stat().st_mode & 0o777 for one in (folder.parent, folder, folder / "1-a")]
    assert modes == [0o700, 0o700, 0o600]


def test_a_folder_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    storage, job_id = FolderStorage(tmp_path / "files"), new_job_id()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / job_id).symlink_to(outside)
    storage.delete(f"{job_id}/")
    assert [*(tmp_path / "files").iterdir()] == []
    assert (outside / "kept").read_text() == "kept"


def test_other_folders_are_no_jobs(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "note.txt").touch()
    assert [*FolderStorage(tmp_path).jobs()] == []


def test_a_relative_folder_stays_the_same_if_the_process_changes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = FolderStorage("files")
    monkeypatch.chdir("/")
    assert storage.path == tmp_path / "files"


# the choice


def folder(found: FileStorage | None) -> str | None:
    return str(found.path) if isinstance(found, FolderStorage) else None


def test_a_queue_on_sqlite_keeps_its_files_beside_the_database(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    assert folder(storage_of(None, store)) == f"{tmp_path}/jobs.db-files"


def test_a_queue_in_memory_has_a_folder_of_its_own_that_is_removed_with_it() -> None:
    store, other = MemoryStore(), MemoryStore()
    storage, same = storage_of(None, store), storage_of(None, store)
    assert isinstance(storage, FolderStorage)
    assert folder(storage) == folder(same) != folder(storage_of(None, other))
    storage.write(f"{new_job_id()}/1-a", iter([b"one"]))
    assert storage.path.is_dir()
    del store
    assert not storage.path.exists()


def test_a_store_without_a_folder_has_no_storage() -> None:
    assert storage_of(None, object()) is None


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/var/files", "/var/files"),
        (Path("/var/files"), "/var/files"),
        ("file:///var/my%20files", "/var/my files"),
        ("file://localhost/var/files", "/var/files"),
    ],
)
def test_a_path_or_a_file_url_is_a_folder(given: str | Path, path: str) -> None:
    assert folder(storage_of(given, object())) == path


@pytest.mark.parametrize("url", ["s3://bucket/a", "gs://bucket/a"])
def test_the_url_of_an_object_store_is_opened_by_obstore(url: str) -> None:
    assert isinstance(storage_of(url, object()), ObjectStorage)


@pytest.mark.parametrize("wrong", ["ftp://me:secret@host/a", "file://host/a", 7, b"/var"])
def test_anything_else_is_refused_without_quoting_it(wrong: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        storage_of(wrong, object())
    assert "secret" not in str(refused.value)
