"""The installation page lists every extra and the Python versions of `pyproject.toml`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_extra_is_on_the_page() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    extras = set(PROJECT["optional-dependencies"])
    assert named == extras - {"demo", "test", "docs", "dev"}


def test_the_lowest_python_is_that_of_the_project() -> None:
    [lowest] = re.findall(r"Python ([\d.]+) or later", PAGE)
    assert PROJECT["requires-python"] == f">={lowest}"
