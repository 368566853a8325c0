"""`python -m benchmarks --quick` measures and reports every part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import features, figures
from benchmarks.__main__ import PARTS
from benchmarks.figures import Figures
from benchmarks.sides.catalogue import SIDES, STORES

ROOT = Path(__file__).parents[2]
PEERS = [name for name, entry in SIDES.items() if "/" not in name and entry.installed]


def measure(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def measures(found: Figures, part: str) -> dict[tuple[str, str], set[str]]:
    """Return the measures of each subject and side."""
    by_side: dict[tuple[str, str], set[str]] = {}
    for one in found.of(part):
        by_side.setdefault((one.subject, one.side), set()).add(one.measure)
    return by_side


def test_a_quick_run_measures_all_parts_and_makes_plots_and_tables(tmp_path: Path) -> None:
    out, page = tmp_path / "run.json", tmp_path / "page.md"
    tables = ("stores", "features")
    marks = [f"<!-- benchmarks: {one} -->\n<!-- end of the benchmarks -->\n" for one in tables]
    page.write_text("".join(marks))
    measure("--out", out, "--plots", tmp_path / "plots", "--page", page)
    found, about = figures.read(out)
    assert about["quick"]
    assert {one.part for one in found.all()} == set(PARTS)
    for store in STORES:
        sides = {one.side for one in found.of("stores", store)}
        assert "floor" in sides
        assert sides & {"asyncjobs", "asyncjobs local"}
    measured = measures(found, "features")
    assert set(measured) == {(one, kind) for one in STORES[:2] for kind in features.KINDS}
    assert all(names == {"accepted", "run", "CPU of a job"} for names in measured.values())
    for part in tables:
        assert all(value > 0 for one in found.of(part) for value in one.rounds)
    assert "| **asyncjobs / floor** |" in page.read_text()
    assert "| run jobs per second | memory | SQLite |" in page.read_text()
    assert {"drain.svg", "http.svg"} <= {one.name for one in (tmp_path / "plots").iterdir()}


def test_named_libraries_are_measured_anew_and_other_parts_of_the_recorded_run_are_kept(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run.json"
    old = Figures()
    for part in ("stores", "hooks"):
        old.add(part, "memory", "old", {"CPU of a job [us]": 1.0})
    figures.write(out, old, figures.described_run(rounds=7, quick=False))
    measure("stores", "--only", *PEERS, "--recorded", out, "--out", out)
    found, about = figures.read(out)
    measured = measures(found, "stores")
    assert set(measured) == {(SIDES[peer].store, peer) for peer in PEERS}
    for names in measured.values():
        assert {"drain", "latency p50", "CPU of a job"} <= names
    assert found.of("hooks") == old.of("hooks")
    assert (about["rounds"], about["quick"]) == (7, False)
    assert {**about["later"]["stores"], "date": ""} == {"date": "", "rounds": 1, "quick": True}
