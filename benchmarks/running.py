"""The arguments that a run passes to each part."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.figures import Figures
from benchmarks.places import Servers


@dataclass(frozen=True)
class Run:
    servers: Servers
    rounds: int
    quick: bool
    #: Names of sides; all if empty.
    only: tuple[str, ...] = ()
    figures: Figures = field(default_factory=Figures)
    failed: list[str] = field(default_factory=list[str])

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only

    @contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """Continue with other measurements if this one fails; the run fails at its end."""
        try:
            yield
        except Exception:  # noqa: BLE001  # any error of a library
            traceback.print_exc()
            self.failed.append(what)
