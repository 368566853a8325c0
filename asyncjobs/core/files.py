"""The rules for the files of a job: their names, their keys, and the list that its state keeps.

The list is written ahead: `announced` adds a file without a size before its content is stored, and
`recorded` completes it. So a job that has any content in the storage has an entry in its list.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable

from asyncjobs.core.job import Job, JobFile, JobId
from asyncjobs.core.printable import refused_character
from asyncjobs.core.randomness import random_hex
from asyncjobs.errors import TooManyFiles

Files = tuple[JobFile, ...]

#: The longest name of a file in bytes of UTF-8, which is also the limit of most file systems.
MAX_FILE_NAME_BYTES = 255

#: The media type of a file if none is given and its name does not tell.
ANY_MEDIA_TYPE = "application/octet-stream"

_MAX_MEDIA_TYPE_CHARACTERS = 255

# RFC 9110 section 8.3.1, without a quoted parameter's escapes.
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE = re.compile(
    rf'{_WORD}/{_WORD}(?: *; *{_WORD}=(?:{_WORD}|"[\x20\x21\x23-\x5b\x5d-\x7e]*"))*'
)

# Windows refuses names that contain these, and browsers replace them.
_SEPARATORS = frozenset("/\\")


def check_file_name(name: str) -> None:
    """Raise `ValueError` unless the text can be the name of a file, on any system and in a URL."""
    if reason := _fault_of(name):
        raise ValueError(f"The file name {name[:300]!r} cannot be used: {reason}.")


def _fault_of(name: str) -> str | None:  # noqa: PLR0911  # one per rule
    if not name:
        return "it is empty"
    if name in {".", ".."}:
        return "it names a folder"
    if not _SEPARATORS.isdisjoint(name):
        return "it contains a slash or a backslash"
    if wrong := refused_character(name):
        return f"it contains the character {wrong}"
    if name[-1] in ". " or name[0] == " ":
        return "it begins with a space, or ends with a space or a dot"
    if (size := len(name.encode())) > MAX_FILE_NAME_BYTES:
        return f"it must have at most {MAX_FILE_NAME_BYTES} bytes in UTF-8, and has {size}"
    return None


def media_type_of(name: str, given: str | None) -> str:
    """Return the given media type, or the usual one of the name's suffix; raise `ValueError`."""
    if given is None:
        guessed, encoding = mimetypes.guess_type(name)
        # `export.csv.gz` is a compressed file: its bytes are no CSV.
        return ANY_MEDIA_TYPE if guessed is None or encoding is not None else guessed
    if len(given) > _MAX_MEDIA_TYPE_CHARACTERS or not _MEDIA_TYPE.fullmatch(given):
        raise ValueError(f"The media type {given[:300]!r} cannot be used: write one like text/csv.")
    return given


def folder_of(job_id: JobId) -> str:
    """Return the beginning of the keys of all contents of a job."""
    return f"{job_id}/"


def new_key(job_id: JobId, attempt: int) -> str:
    """Return a key under which no content was ever stored."""
    return f"{folder_of(job_id)}{attempt}-{random_hex()}"


def listed_files(files: Iterable[JobFile]) -> list[JobFile]:
    """Return the files whose content is stored."""
    return [one for one in files if one.size is not None]


def file_named(job: Job, name: str) -> JobFile | None:
    """Return the stored file of that name."""
    return next((one for one in listed_files(job.files) if one.name == name), None)


def announced(files: Files, new: JobFile, *, limit: int) -> Files:
    """Return the list before the content of `new` is stored.

    A file of the same name stays listed until `recorded`: that of an earlier attempt, or of a save
    of this attempt that was cancelled too late. Raises `TooManyFiles` beyond the limit. Announcing
    the same key again changes nothing.
    """
    # Announcements of earlier attempts, and of a save that failed, have no further use.
    kept = tuple(
        one
        for one in files
        if one.size is not None or (one.attempt == new.attempt and one.name != new.name)
    )
    if len({one.name for one in (*kept, new)}) > limit:
        raise TooManyFiles(limit)
    return (*kept, new)


def recorded(files: Files, stored: JobFile) -> Files | None:
    """Return the list once the content is stored; None if the file was not announced.

    The file takes the place of one with the same name.
    """
    if stored.key not in {one.key for one in files}:
        return None
    place = next(i for i, one in enumerate(files) if one.name == stored.name)
    others = [one for one in files if one.name != stored.name]
    return (*others[:place], stored, *others[place:])


def superseded(before: Iterable[JobFile], after: Iterable[JobFile]) -> list[str]:
    """Return the keys of stored files that a change has removed from the list."""
    kept = {one.key for one in after}
    return [one.key for one in listed_files(before) if one.key not in kept]
