"""Measured processes: how they are started, and the resources that they use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.places import ROOT, Place

_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A Python process that runs inside a `with` block, and its output."""

    def __init__(self, arguments: Sequence[str], place: Place, **environment: str) -> None:
        self._arguments = arguments
        self._environment = {**place.environment(), **environment}

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a process group of its own
        )
        return self

    def __exit__(self, *_: object) -> None:
        # All has been measured: children are killed, too, and nothing is waited for.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def check(self) -> None:
        """Raise an error with the output if the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._arguments} has ended: {self.log()}")

    def log(self) -> str:
        """Return the end of the output."""
        self._log.seek(0)
        return self._log.read()[-3000:]

    def cpu(self) -> float:
        """Return the processor seconds of the process and its children (Linux)."""
        return sum(_cpu_of(one) for one in _with_children(self._process.pid))

    def memory(self) -> int:
        """Return the resident memory in bytes, without its children (Linux)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        [line] = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


def _with_children(pid: int) -> Generator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text(encoding="ascii").split():
            yield from _with_children(int(child))


def _cpu_of(pid: int) -> float:
    # proc(5): utime, stime, and those of children that have ended, follow the name in brackets.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS
