"""Write the part of reference/lifecycle.md that the code decides.

python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path

from asyncjobs.lifecycle import INVISIBLE, TRANSITIONS
from asyncjobs.model import JobStatus

PAGE = Path(__file__).parent / "reference" / "lifecycle.md"
BEGIN = "<!-- generated from asyncjobs.lifecycle.TRANSITIONS by docs/generate.py -->"
END = "<!-- end of the generated part -->"


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


def regenerated(page: str) -> str:
    """Return the page with its generated part as the code would have it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has lost its markers.")
    return "\n\n".join([before + begin, diagram(), table(), end + after])


if __name__ == "__main__":
    PAGE.write_text(regenerated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
