"""Write the parts of the documentation that repeat the code and its tests.

python docs/generate.py            # all pages of PARTS
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from inspect import getdoc, signature
from pathlib import Path

from pydantic import BaseModel

from asyncjobs import JobStatus, Policy, Retry, Settings, errors
from asyncjobs.core.lifecycle import INVISIBLE, TRANSITIONS

ROOT = Path(__file__).parents[1]
LIFECYCLE = ROOT / "docs" / "reference" / "lifecycle.md"
TESTING = ROOT / "docs" / "explanation" / "testing.md"
ENGINES = ROOT / "docs" / "howto" / "choose-an-engine.md"
PYTHON = ROOT / "docs" / "reference" / "python.md"
BEGIN = re.compile(r"<!-- generated from .* by docs/generate.py -->")
END = "<!-- end of the generated part -->"

# What an engine can do, by the test that proves it.
POWERS = {
    "delayed jobs": "a_delayed_job_is_delivered",
    "urgent jobs first": "_urgent",
    "cancel a waiting job": "cancelled_while_it_waits",
    "cancel a running job": "cancelled_while_it_runs",
    "a killed worker's job runs again": "whose_worker_is_killed",
}

NAMES = {"celery": "Celery", "procrastinate": "Procrastinate", "rq": "RQ", "saq": "SAQ"}


def diagram() -> str:
    """Draw the moves as a Mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> pending: submit"]
    lines += [
        f"    {before} --> {after}: {move}"
        for move, starts in TRANSITIONS.items()
        for before, ends in starts.items()
        for after in sorted(ends)
    ]
    lines += [f"    {status} --> [*]" for status in JobStatus if status.terminal]
    return "\n".join([*lines, "```"])


def table() -> str:
    """List the moves, one row each, and the statuses they lead to from each status."""
    lines = [
        "| move | "
        + " | ".join(f"from `{status}`" for status in JobStatus)
        + " | clients see it |",
        "|---" * (len(JobStatus) + 2) + "|",
    ]
    for move, starts in TRANSITIONS.items():
        cells = [" or ".join(f"`{end}`" for end in sorted(starts.get(s, ()))) for s in JobStatus]
        seen = "no" if move in INVISIBLE else "yes"
        lines.append(f"| `{move}` | " + " | ".join(cell or "-" for cell in cells) + f" | {seen} |")
    return "\n".join(lines)


def matrix() -> str:
    """List the rules that each engine's tests prove, and the kinds of workers they run on."""
    pytest = ("-m", "pytest", "-q", "-n0", "-m", "thorough", "--collect-only", "tests/engines")
    collected = subprocess.run(
        [sys.executable, *pytest], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shown: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for engine, rule, kind in re.findall(
        r"test_(\w+)\.py::.*?(test_\w+)\[(.*)\]", collected.stdout
    ):
        for power, test in POWERS.items():
            if test in rule:
                shown[engine][power].add(kind.replace("asyncio", "").strip("-"))
    lines = ["| engine | kinds of workers | " + " | ".join(POWERS) + " |"]
    lines.append("|---" * (len(POWERS) + 2) + "|")
    for engine, powers in shown.items():
        kinds = sorted(powers["delayed jobs"] - {""})
        cells = ["yes" if power in powers else "-" for power in POWERS]
        name = NAMES.get(engine, engine)
        lines.append(f"| {name} | {', '.join(kinds) or 'its own'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def moves() -> str:
    """Draw and list what may follow what."""
    return f"{diagram()}\n\n{table()}"


def shown(default: object) -> str:
    """Write a default value for people."""
    match default:
        case timedelta():
            return shown_duration(default.total_seconds())
        case int() if default and default % 2**30 == 0:
            return f"{default // 2**30} GiB"
        case int() if default and default % 2**20 == 0:
            return f"{default // 2**20} MiB"
        case BaseModel():
            return f"`{type(default).__name__}()`"
        case str():
            return f'`"{default}"`'
        case _:
            return str(default)


def shown_duration(seconds: float) -> str:
    """Write a duration in its largest unit."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}{'s' if seconds > length else ''}"
    return f"{seconds:g} s"


def settings() -> str:
    """List the settings with their defaults; their descriptions are those of the docstring."""
    described = re.findall(
        r"^- `(\w+)`: (.*?)(?=^- |\n\n|\Z)", getdoc(Settings) or "", re.MULTILINE | re.DOTALL
    )
    defaults = {field.name: field.default for field in fields(Settings)}
    lines = ["| field | default | what it is |", "|---|---|---|"]
    for name, text in described:
        lines.append(f"| `{name}` | {shown(defaults.pop(name))} | {' '.join(text.split())} |")
    if defaults:
        raise ValueError(f"The docstring of Settings does not describe {[*defaults]}.")
    return "\n".join(lines)


def limits(kind: type[BaseModel], described: dict[str, str]) -> Callable[[], str]:
    """List the fields of a model with their defaults and the descriptions given here."""

    def table() -> str:
        lines = ["| field | default | what it is |", "|---|---|---|"]
        for name, field in kind.model_fields.items():
            lines.append(f"| `{name}` | {shown(field.default)} | {described[name]} |")
        return "\n".join(lines)

    return table


POLICY = {
    "queue": "the queue in which jobs wait",
    "timeout": "the limit of one attempt; `None`: up to the deadline",
    "deadline": "the limit of the whole job, from when it may begin",
    "retention": "how long a terminal job is kept; `None`: until it is deleted by hand",
    "retry": "how often an attempt that raised or timed out is tried again",
    "max_deliveries": "attempts whose worker may vanish",
    "max_releases": "times that a shutdown may give the job back before it fails",
    "max_payload_bytes": "the size of the payload as JSON",
    "max_result_bytes": "the size of the result as JSON",
    "max_file_bytes": "the size of a [file](../howto/files.md) that a job saves",
    "max_files": "how many files a job saves",
    "max_output_bytes": "the size of the [output](../howto/stream-output.md) that a job emits",
    "max_output_items": "how many items a job emits",
    "emit_every": "how long emitted items are collected before they are stored",
    "inline_wait": "how long a submission over HTTP waits for the job's end before it answers 202",
}

RETRY = {
    "max_attempts": "how many attempts may fail, the first included",
    "initial_delay": "the longest pause before the second attempt",
    "factor": "by how much the pause grows with each failure",
    "max_delay": "the longest pause before any attempt",
}


def error_tree() -> str:
    """List the exceptions as drawn at the top of their module, and the data of each."""
    lines = ["| error | when | data |", "|---|---|---|"]
    drawn = re.findall(r"^([│├└─ ]+)(\w+) *(.*)$", errors.__doc__ or "", re.MULTILINE)
    for branch, name, when in drawn:
        kind = getattr(errors, name)
        data = [] if kind.__init__ is Exception.__init__ else [*signature(kind).parameters]
        indent = "- " if len(branch) > len("├── ") else ""
        said = when or (getdoc(kind) or "").splitlines()[0]
        lines.append(f"| {indent}`{name}` | {said} | {', '.join(f'`{one}`' for one in data)} |")
    return "\n".join(lines)


def test_record() -> str:
    """List how many tests passed in the runs that `.ci/record.py` has recorded."""
    record = json.loads(TESTING.with_suffix(".json").read_text(encoding="utf-8"))
    runs = [record["default"], record["thorough"]]
    lines = [
        f"Recorded on {record['date']} with Python {record['python']}.",
        "",
        "| folder of `tests` | default run | thorough run | recorded in the thorough run |",
        "|---|---|---|---|",
    ]
    for folder in sorted({*runs[0], *runs[1]}):
        default, thorough = ({**run.get(folder, {})} for run in runs)
        counts = [f"{run.pop('tests', 0):,}" for run in (default, thorough)]
        more = ", ".join(f"{value:,} {name}" for name, value in thorough.items())
        lines.append(f"| `{folder}` | {' | '.join(counts)} | {more} |")
    totals = (f"{sum(one['tests'] for one in run.values()):,}" for run in runs)
    lines.append(f"| **all** | {' | '.join(totals)} | |")
    return "\n".join(lines)


#: The parts of each page, in the order of its markers.
PARTS: dict[Path, list[Callable[[], str]]] = {
    LIFECYCLE: [moves],
    ENGINES: [matrix],
    TESTING: [test_record],
    PYTHON: [limits(Policy, POLICY), limits(Retry, RETRY), settings, error_tree],
}


def regenerated(path: Path) -> str:
    """Return the page with its generated parts as the code would have them."""
    page = path.read_text(encoding="utf-8")
    before, *pieces = BEGIN.split(page)
    markers = BEGIN.findall(page)
    if len(pieces) != len(PARTS[path]) or page.count(END) != len(pieces):
        raise ValueError(f"{path} has lost its markers.")
    for marker, part, piece in zip(markers, PARTS[path], pieces, strict=True):
        before += f"{marker}\n\n{part()}\n\n{piece[piece.index(END) :]}"
    return before


if __name__ == "__main__":
    for path in PARTS:
        path.write_text(regenerated(path), encoding="utf-8")
