"""Measure asyncjobs beside hand-written floors and other libraries, in one run.

python -m benchmarks                       # all parts; an hour
python -m benchmarks stores http --quick   # check that everything works
python -m benchmarks stores --only asyncjobs/redis floor/redis SAQ
python -m benchmarks hooks --recorded FILE --out FILE  # measure one part of a recorded run again

Requires Linux and the extra `test`. Libraries that are not installed are left out. PostgreSQL and
Valkey are started from the wheels of the extra, unless URLs are given. Run nothing else at the same
time, and only compare figures of one run: read the ratios.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks import figures, page
from benchmarks.places import Servers
from benchmarks.running import Run
from benchmarks.sides.catalogue import ON_ENGINES, SIDES

#: Each is a module with a function `measure`.
PARTS = (
    "stores",
    "output",
    "features",
    "http",
    "watchers",
    "growth",
    "engines",
    "hooks",
    "clients",
)


def arguments() -> argparse.Namespace:
    head, _, about = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{head}\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    add("--quick", action="store_true", help="one short round, whose figures mean little")
    add("--rounds", type=int, help="rounds of each measurement; default: 3")
    add("--only", nargs="+", default=[], metavar="SIDE", help="only these sides (stores, engines)")
    add("--postgres", metavar="URL", help="a server on which databases may be made and dropped")
    add("--redis", metavar="URL", help="an empty Redis or Valkey without a password; it is flushed")
    add("--out", type=Path, metavar="FILE", help="write the figures to this file, as JSON")
    add("--note", help="a sentence about this run, kept with the figures")
    add("--recorded", type=Path, metavar="FILE", help="such a file: measure only the named PARTs")
    add("--plots", type=Path, metavar="FOLDER", help="write plots into this folder, as SVG")
    add("--page", type=Path, metavar="FILE", help="rewrite the tables of this page")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    unknown = set(given.only) - {*SIDES, *ON_ENGINES}
    if unknown:
        parser.error(f"no such side: {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    return given


def main() -> None:
    given = arguments()
    failed: list[str] = []
    recorded = figures.read(given.recorded) if given.recorded else None
    if recorded and not given.parts:
        found, about = recorded
    else:
        rounds = given.rounds or (1 if given.quick else 3)
        about = figures.described_run(rounds=rounds, quick=given.quick)
        if recorded and about["machine"] != recorded[1]["machine"]:
            sys.exit(f"{given.recorded} is from another machine: measure all parts anew.")
        found, failed = measured(given, rounds)
        if recorded:
            found, about = figures.with_later(recorded, (found, about))
        if given.note:
            about["note"] = given.note
    if given.out:
        figures.write(given.out, found, about)
    if given.plots:
        page.draw(given.plots, found)
    if given.page:
        text = given.page.read_text(encoding="utf-8")
        given.page.write_text(page.rewritten(text, found, about), encoding="utf-8")
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}")


def measured(given: argparse.Namespace, rounds: int) -> tuple[figures.Figures, list[str]]:
    """Run the parts; return the figures, and the list of failed measurements."""
    logging.getLogger("asyncjobs").setLevel(logging.ERROR)  # Valkey keeps no log here
    with Servers(given.postgres, given.redis) as servers:
        run = Run(servers, rounds, given.quick, tuple(given.only))
        for part in given.parts or PARTS:
            measure: Callable[[Run], None] = import_module(f"benchmarks.{part}").measure
            with run.attempt(part):
                measure(run)
    return run.figures, run.failed


if __name__ == "__main__":
    main()
