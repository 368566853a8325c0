"""What a handler does that is measured: it leaves the moment at which it ran in a file.

The process that measures reads the file, so that the store is not asked meanwhile.
"""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

_MOMENT = struct.Struct("d")
_VARIABLE = "BENCHMARK_STAMPS"


def use(file: Path) -> None:
    """Name the file to this process and to those it starts."""
    file.touch()
    os.environ[_VARIABLE] = str(file)
    _descriptor.cache_clear()


def stamp(now: float) -> None:
    """Append a moment; appends of this size are atomic, whatever process or thread makes them."""
    os.write(_descriptor(), _MOMENT.pack(now))


@cache
def _descriptor() -> int:
    return os.open(os.environ[_VARIABLE], os.O_WRONLY | os.O_APPEND)


def count() -> int:
    return Path(os.environ[_VARIABLE]).stat().st_size // _MOMENT.size


def read() -> list[float]:
    return sorted(one for [one] in _MOMENT.iter_unpack(Path(os.environ[_VARIABLE]).read_bytes()))


def clear() -> None:
    """Forget the moments; no handler may be running."""
    os.truncate(os.environ[_VARIABLE], 0)
