"""`python -m benchmarks --quick` measures and reports every part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.__main__ import PARTS
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


def test_a_quick_run_measures_all_parts_and_makes_plots_and_tables(tmp_path: Path) -> None:
    out, page = tmp_path / "run.json", tmp_path / "page.md"
    page.write_text("<!-- benchmarks: stores -->\n<!-- end of the benchmarks -->\n")
    measure("--out", out, "--plots", tmp_path / "plots", "--page", page)
    found, about = figures.read(out)
    assert about["quick"]
    assert {one.part for one in found.all()} == set(PARTS)
    for store in STORES:
        sides = {one.side for one in found.of("stores", store)}
        assert "floor" in sides
        assert sides & {"asyncjobs", "asyncjobs local"}
    assert all(value > 0 for one in found.of("stores") for value in one.rounds)
    assert "| **asyncjobs / floor** |" in page.read_text()
    assert {"drain.svg", "http.svg"} <= {one.name for one in (tmp_path / "plots").iterdir()}


@pytest.mark.parametrize("peer", PEERS)
def test_a_single_library_can_be_measured(peer: str, tmp_path: Path) -> None:
    measure("stores", "--only", peer, "--out", tmp_path / "run.json")
    found, _ = figures.read(tmp_path / "run.json")
    assert {one.side for one in found.all()} == {peer}
    assert {"drain", "latency p50", "CPU of a job"} <= {one.measure for one in found.all()}
