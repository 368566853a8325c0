"""Chooses the file storage of a queue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from asyncjobs.errors import ConfigurationError
from asyncjobs.files.folder import FolderStorage
from asyncjobs.files.objects import ObjectStorage
from asyncjobs.files.storage import FileStorage

#: What may be given as the `files` of a queue.
FilesAt = FileStorage | str | os.PathLike[str]

_OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"})


@runtime_checkable
class HasFolder(Protocol):
    """A store that is a file, or lives in this process: files can lie beside it."""

    def folder_for_files(self) -> Path:
        """Return the folder; it need not exist."""
        ...


def storage_of(files: FilesAt | None, store: object) -> FileStorage | None:
    """Return the given storage, or a folder beside the store; None if the store has no such folder.

    A text is a path, or the URL of a folder (`file:///...`) or of an object store (`s3://...`).
    Raises `ConfigurationError` for anything else.
    """
    if files is None:
        return FolderStorage(store.folder_for_files()) if isinstance(store, HasFolder) else None
    if isinstance(files, str):
        return _storage_at(files)
    if isinstance(files, os.PathLike):
        return FolderStorage(files)
    if isinstance(files, FileStorage):  # pyright: ignore[reportUnnecessaryIsInstance]
        return files
    raise ConfigurationError(
        f"`files` must be a folder, a URL or a file storage, got {type(files).__name__}."
    )


def _storage_at(text: str) -> FileStorage:
    # A letter and a colon begin a path of Windows.
    scheme, slashes, _ = text.partition("://")
    if not slashes:
        return FolderStorage(text)
    scheme = scheme.lower()
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise ConfigurationError("The URL of a folder must be like file:///var/lib/files.")
        return FolderStorage(unquote(parts.path))
    if scheme not in _OBJECT_SCHEMES:
        # The message must not quote the URL, which may contain a password.
        raise ConfigurationError(
            f"No file storage has the URL scheme {scheme!r} (known schemes: file, s3, gs, az)."
        )
    return ObjectStorage(text)
