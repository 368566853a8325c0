"""The interface of a file storage; its docstrings are the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

# A job's id, and the name of one content of it; both are ours.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}")
_FOLDER = re.compile(r"[A-Za-z0-9_-]{1,100}/")


@runtime_checkable
class FileStorage(Protocol):
    """Stores contents under keys, such as `job_1f.../1-9c...`; the part before the slash is a job.

    Keys consist of ASCII letters, digits, `-` and `_`, and one slash. No key is used twice.

    Each method blocks, and is called in a thread; several threads and processes call it at once.
    It may raise any exception, which becomes `StorageUnavailable`. A storage that can be pickled
    also serves handlers that run in their own processes.
    """

    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        """Store the joined chunks; return when they would survive a crash of this machine.

        The chunks are of any size, together larger than the memory, and arrive at any pace. If the
        iterator raises, or the storage fails, nothing may be stored under the key, and the
        exception is raised.
        """
        ...

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, not including, `stop`, in chunks of at most 8 MiB.

        The range is never empty and lies within the content. Raises `FileNotFoundError` at the
        first step if there is no such content. The caller may take minutes between two steps, and
        closes an iterator that has a `close` and is not read to its end.
        """
        ...

    def delete(self, prefix: str, /) -> None:
        """Delete all contents whose keys begin with the prefix, a key or a job's id and a slash.

        Contents that do not exist are no error. When this returns, none comes back after a crash.
        """
        ...

    def jobs(self) -> Iterator[str]:
        """Yield the ids of the jobs that have contents, each once and in any order."""
        ...


def split_key(key: str) -> tuple[str, str]:
    """Return a key's job and the rest; raise `ValueError` for a text that is not a key.

    A storage checks its keys, although they are ours: one with `..` would leave its folder.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"This is not the key of a content: {key!r}")
    job, _, rest = key.partition("/")
    return job, rest


def split_prefix(prefix: str) -> tuple[str, str]:
    """Return a prefix's job and the rest, which may be empty; raise `ValueError` as above."""
    return (prefix[:-1], "") if _FOLDER.fullmatch(prefix) else split_key(prefix)
