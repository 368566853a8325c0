"""Write the parts of the documentation that repeat the code and its tests.

python docs/generate.py            # reference/lifecycle.md, howto/choose-an-engine.md
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from asyncjobs import JobStatus
from asyncjobs.core.lifecycle import INVISIBLE, TRANSITIONS

ROOT = Path(__file__).parents[1]
LIFECYCLE = ROOT / "docs" / "reference" / "lifecycle.md"
ENGINES = ROOT / "docs" / "howto" / "choose-an-engine.md"
BEGIN = re.compile(r"<!-- generated from .* by docs/generate.py -->")
END = "<!-- end of the generated part -->"

# What an engine can do, by the test that proves it.
POWERS = {
    "delayed jobs": "a_delayed_job_is_delivered",
    "urgent jobs first": "more_urgent",
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


PARTS = {LIFECYCLE: moves, ENGINES: matrix}


def regenerated(path: Path) -> str:
    """Return the page with its generated part as the code would have it."""
    page = path.read_text(encoding="utf-8")
    begin = BEGIN.search(page)
    if begin is None or END not in page:
        raise ValueError(f"{path} has lost its markers.")
    after = page[page.index(END) :]
    return "\n\n".join([page[: begin.end()], PARTS[path](), after])


if __name__ == "__main__":
    for path in PARTS:
        path.write_text(regenerated(path), encoding="utf-8")
