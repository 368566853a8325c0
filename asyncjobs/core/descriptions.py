"""The title, tags and metadata of a job: their limits and their stored form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from asyncjobs.core.printable import refused_character
from asyncjobs.errors import InvalidQuery

#: The longest title, in characters.
MAX_TITLE_CHARS = 200

#: The most tags of a job, and the longest tag in characters.
MAX_TAGS = 10
MAX_TAG_CHARS = 128

#: The largest metadata, as JSON text in bytes.
MAX_METADATA_BYTES = 16 * 1024

#: How deep metadata may be nested. Libraries that read JSON refuse much deeper text.
MAX_METADATA_DEPTH = 100

_TOO_DEEP = f"metadata must be nested at most {MAX_METADATA_DEPTH} levels deep."
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def checked_title(title: str | None) -> str | None:
    """Return a title; raise `TypeError` or `ValueError` if it is not a valid one."""
    if title is None:
        return None
    fault = _fault_of("A title", title, MAX_TITLE_CHARS)
    if fault is not None:
        raise ValueError(fault)
    return title


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return tags without repetitions; raise `TypeError` or `ValueError` if they are not valid.

    A set has no order, and a mapping has values that would be lost.
    """
    if isinstance(tags, str):
        raise TypeError(f"tags must be a sequence of strings, got the string {tags!r}.")
    if not isinstance(tags, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"tags must be a sequence of strings, such as a list; got a {type(tags).__name__}."
        )
    found = tuple(dict.fromkeys(tags))
    if len(found) > MAX_TAGS:
        raise ValueError(f"A job has at most {MAX_TAGS} tags, got {len(found)}.")
    for tag in found:
        fault = tag_fault(tag)
        if fault is not None:
            raise ValueError(fault)
    return found


def tag_fault(tag: str) -> str | None:
    """Return why a text is not a valid tag, as a sentence; None if it is one."""
    return _fault_of("A tag", tag, MAX_TAG_CHARS)


def tag_to_find(tag: str) -> str:
    """Return a tag by which jobs are looked up; raise `InvalidQuery` if no job can have it."""
    fault = tag_fault(tag)
    if fault is not None:
        raise InvalidQuery("tag", fault[:1].lower() + fault[1:].rstrip("."))
    return tag


def metadata_text(metadata: Mapping[str, Any]) -> bytes:
    """Return metadata as JSON text; raise `TypeError` or `ValueError` if it is not valid."""
    if not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"metadata must be a mapping, got {type(metadata).__name__}.")
    if not all(isinstance(name, str) for name in metadata):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("The names in metadata must be strings.")
    try:
        text = json.dumps(
            dict(metadata), allow_nan=False, ensure_ascii=False, separators=(",", ":")
        )
        encoded = text.encode()
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON values: {error}") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise ValueError(
            f"metadata must be at most {MAX_METADATA_BYTES:,} bytes as JSON, got {len(encoded):,}."
        )
    if _is_too_deep(encoded):
        raise ValueError(_TOO_DEEP)
    return encoded


def _is_too_deep(text: bytes) -> bool:
    if text.count(b"{") + text.count(b"[") <= MAX_METADATA_DEPTH:
        return False  # nearly always
    depth = 0
    for byte in _JSON_STRING.sub(b"", text):
        depth += (byte in b"{[") - (byte in b"}]")
        if depth > MAX_METADATA_DEPTH:
            return True
    return False


def _fault_of(what: str, text: object, longest: int) -> str | None:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}.")
    if not text or text != text.strip():
        return f"{what} must not be empty or begin or end with white space: {text!r}."
    if len(text) > longest:
        return f"{what} has at most {longest} characters, got {len(text)}: {text[:40]!r}..."
    if wrong := refused_character(text):
        return f"{what} must not contain the character {wrong}: {text!a}."
    return None
