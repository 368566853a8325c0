"""A folder as the file storage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from asyncjobs.core.job import parse_job_id
from asyncjobs.files.storage import split_key, split_prefix

_CHUNK_BYTES = 256 * 1024

# Only for the user of the process: files may be private, whatever the umask is.
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

# How often a folder is emptied again into which another process still writes.
_TRIES = 5


class FolderStorage:
    """Stores files below a folder, which is created when the first one is saved.

    All processes of a queue need the same folder: on several machines, a network file system.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, since an application may change its working directory.
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"FolderStorage({str(self.path)!r})"

    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        """Write a temporary file and rename it; both it and its folder are synced to the disk."""
        job, name = split_key(key)
        folder = self.path / job
        self._make(folder)
        temporary = folder / f"{name}.{uuid4().hex}.part"
        try:
            with os.fdopen(os.open(temporary, _CREATE, _FILE_MODE), "wb", buffering=0) as file:
                for chunk in chunks:
                    _write_all(file.fileno(), chunk)
                os.fsync(file.fileno())
            temporary.replace(folder / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync(folder)

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        """Yield a range of a file."""
        job, name = split_key(key)
        with (self.path / job / name).open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                chunk = file.read(min(_CHUNK_BYTES, stop - start))
                if not chunk:
                    return
                start += len(chunk)
                yield chunk

    def delete(self, prefix: str, /) -> None:
        """Delete a file or a job's folder. A symbolic link in its place is deleted itself."""
        job, name = split_prefix(prefix)
        folder = self.path / job
        with suppress(FileNotFoundError):
            if name:
                (folder / name).unlink()
                _sync(folder)
                return
            if folder.is_symlink():
                folder.unlink()
            else:
                _remove(folder)
            _sync(self.path)

    def jobs(self) -> Iterator[str]:
        """Yield the names of the folders that are ids of jobs."""
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if parse_job_id(entry.name) is not None:
                    yield entry.name

    def _make(self, folder: Path) -> None:
        """Create a folder and those above it; each new one survives a crash."""
        if folder.is_dir():
            return
        if folder != folder.parent:
            self._make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)
            _sync(folder.parent)


def _write_all(descriptor: int, chunk: bytes) -> None:
    # A write may be short, as on a full disk, where the next one then raises.
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _remove(folder: Path) -> None:
    for tries_left in reversed(range(_TRIES)):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            raise
        except OSError:
            if not tries_left:
                raise
        else:
            return


def _sync(folder: Path) -> None:
    """Make the entries of a folder survive a crash; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
