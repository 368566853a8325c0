"""The benchmarks page is generated from the recorded figures."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import features, figures, page, plots
from benchmarks.figures import Figure, Figures

EXPLANATION = Path(__file__).parents[2] / "docs" / "explanation"
RECORDED = EXPLANATION / "performance.json"
PAGE = EXPLANATION / "performance.md"


def test_the_page_matches_the_recorded_figures() -> None:
    """If this fails, run the last command on the page."""
    text = PAGE.read_text(encoding="utf-8")
    assert page.rewritten(text, *figures.read(RECORDED)) == text


def test_each_plot_matches_the_recorded_figures() -> None:
    found, _ = figures.read(RECORDED)
    drawn = page.drawn(found)
    shown = re.findall(r"\]\(performance/([\w-]+)\.svg\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(drawn)
    for name, plot in drawn.items():
        assert (EXPLANATION / "performance" / f"{name}.svg").read_text(encoding="utf-8") == plot


def test_every_table_has_its_place_on_the_page() -> None:
    names = re.findall(r"<!-- benchmarks: (\w+) -->", PAGE.read_text(encoding="utf-8"))
    assert sorted(names) == sorted(["machine", *page.TABLES])


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = Figures()
    found.add("stores", "redis", "floor", {"drain [jobs/s]": 3.0, "requests": 1.0})
    found.add("stores", "redis", "floor", {"drain [jobs/s]": 5.0})
    about = figures.described_run(rounds=2, quick=True)
    figures.write(tmp_path / "run.json", found, about)
    again, about_again = figures.read(tmp_path / "run.json")
    assert about_again == about
    assert again.all() == [
        Figure("stores", "redis", "floor", "drain", "jobs/s", (3.0, 5.0)),
        Figure("stores", "redis", "floor", "requests", "", (1.0,)),
    ]


def test_a_table_has_the_ratio_of_the_rounds() -> None:
    found = Figures()
    for ours, floor in ((1.0, 10.0), (4.0, 10.0), (40.0, 50.0)):
        found.add("stores", "redis", "asyncjobs", {"drain [jobs/s]": ours})
        found.add("stores", "redis", "floor", {"drain [jobs/s]": floor})
    table = page.stores(found)
    assert re.search(r"^\| \*\*asyncjobs / floor\*\* [| ]*\| 0\.40 \|", table, re.MULTILINE)


def test_a_kind_of_jobs_is_compared_with_plain_jobs_of_its_round() -> None:
    found = Figures()
    for plain, many, batch in ((10.0, 40.0, 20.0), (80.0, 60.0, 15.0)):
        found.add("features", "redis", features.PLAIN, {"run [jobs/s]": plain})
        found.add("features", "redis", features.MANY, {"run [jobs/s]": many})
        found.add("features", "redis", "in a batch", {"run [jobs/s]": batch})
    table = page.features(found)
    assert "| run jobs per second | Redis |" in table
    assert f"| {features.PLAIN} | 45.0 |" in table
    assert "| in a batch | 17.5 (0.38) |" in table


def test_output_is_compared_with_each_floor() -> None:
    found = Figures()
    for side, rate in (("asyncjobs", 50.0), ("floor, a row per item", 20.0)):
        found.add("output", "sqlite, 1000", side, {"items [per s]": rate})
    assert "| SQLite | 1,000 | 50.0 | 20.0 (2.50) |" in page.output(found)


def test_the_page_names_the_parts_that_were_recorded_later() -> None:
    about = figures.described_run(rounds=2, quick=False)
    again = {**about, "date": "2031-02-03", "rounds": 9}
    found = Figures()
    found.add("hooks", "memory", "nothing", {"CPU of a job [us]": 1.0})
    _, later = figures.with_later((Figures(), about), (found, again))
    assert "`hooks` was recorded on 2031-02-03, medians of 9 rounds." in page.machine(later)
    assert "was recorded" not in page.machine(about)


def test_figures_that_were_not_measured_are_left_out_of_the_page() -> None:
    text = "<!-- benchmarks: hooks -->\nold\n<!-- end of the benchmarks -->\n"
    found = page.rewritten(text, Figures(), {})
    assert "old" not in found
    assert page.rewritten(found, Figures(), {}) == found


@pytest.mark.parametrize(
    "plot",
    [
        plots.bars("Jobs", "jobs < 1 s & more", {"SQLite": {"asyncjobs": 3.0, "floor": 9.5}}),
        plots.lines("Jobs", "ms", "jobs", {"one": [(10, 0.5), (1000, 2.5)], "two": [(10, 0.0)]}),
    ],
)
def test_a_plot_is_well_formed_and_within_its_frame(plot: str) -> None:
    root = ET.fromstring(plot)  # noqa: S314  # our own file
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        assert 0 <= float(element.get("x", "0")) <= width
        assert 0 <= float(element.get("y", "0")) <= height
