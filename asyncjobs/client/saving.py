"""Writes a file that appears under its name only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import BinaryIO, Self

from asyncjobs.client.errors import DownloadFailed

# Most file systems allow 255 bytes, and a character has at most 4.
_SHOWN_CHARACTERS = 50


class PartFile:
    """A file under a temporary name beside its target. Leave it by `with`: that removes the rest.

    It blocks. Opening raises `OSError` if the folder does not exist or cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f".{target.name[:_SHOWN_CHARACTERS]}.{token_hex(8)}.part")
        self._file: BinaryIO | None = None

    def open(self) -> BinaryIO:
        """Return the temporary file, which is created when it is first needed."""
        if self._file is None:
            self._file = self._part.open("xb")
        return self._file

    def write(self, data: bytes, at: int) -> None:
        """Write bytes at a place in the file."""
        file = self.open()
        file.seek(at)
        file.write(data)

    def complete(self, size: int) -> Path:
        """Cut the file to its size and give it its name; return the target."""
        file = self.open()
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        return self._part.replace(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def target_of(to: str | os.PathLike[str], name: str) -> Path:
    """Return the path under which a file is saved: `to`, or that of its name in the folder `to`.

    Raises `DownloadFailed` if a server's name leads out of the folder.
    """
    path = Path(to)
    if not path.is_dir():
        return path
    target = path / name
    if (target.parent, target.name) != (path, name) or name == ".." or "\0" in name:
        raise DownloadFailed(name, "its name leads out of the folder, so give a path")
    return target
