"""The measured handler appends the time at which it ran to a file.

The measuring process reads the file, so that it does not query the store at the same time.
"""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

_MOMENT = struct.Struct("d")
_VARIABLE = "BENCHMARK_STAMPS"


def use(file: Path) -> None:
    """Set the file for this process and its children."""
    file.touch()
    os.environ[_VARIABLE] = str(file)
    _descriptor.cache_clear()


def stamp(now: float) -> None:
    """Append a time; appends of this size are atomic in all processes and threads."""
    os.write(_descriptor(), _MOMENT.pack(now))


@cache
def _descriptor() -> int:
    return os.open(os.environ[_VARIABLE], os.O_WRONLY | os.O_APPEND)


def count() -> int:
    return Path(os.environ[_VARIABLE]).stat().st_size // _MOMENT.size


def read() -> list[float]:
    return sorted(one for [one] in _MOMENT.iter_unpack(Path(os.environ[_VARIABLE]).read_bytes()))


def clear() -> None:
    """Delete the times; no handler may be running."""
    os.truncate(os.environ[_VARIABLE], 0)
