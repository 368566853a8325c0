"""Example code of the authors' pages passes mypy's strict mode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = ("write-a-store", "write-a-dispatcher")


def module_of(page: str) -> str:
    """Join the Python blocks of a page; each line keeps its number."""
    path = ROOT / "docs" / "howto" / f"{page}.md"
    document = Document.parse(str(path), PythonCodeBlockParser())
    lines = [""] * len(document.text.splitlines())
    for example in document.examples():
        block = str(example.parsed).splitlines()
        # An example's line is that of its fence, or of the comment that holds it.
        lines[example.line : example.line + len(block)] = block
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_passes_strict_mypy(page: str, tmp_path: Path) -> None:
    module = tmp_path / f"{page.replace('-', '_')}.py"
    module.write_text(module_of(page), encoding="utf-8")
    # The project's cache: without it, mypy parses pydantic and pytest for half a minute.
    options = [
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(ROOT / ".mypy_cache"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *options, str(module)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
