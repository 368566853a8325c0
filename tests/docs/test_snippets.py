"""Runs every Python block of the documentation, in order, a file at a time.

Blocks in comments (`<!-- invisible-code-block: python`) check what the prose around them claims.
"""

from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_snippet_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace["__name__"] = page.stem
    for example in document.examples():
        try:
            example.evaluate()
        except BaseException as error:
            error.add_note(f"in the block at {page.relative_to(ROOT)}:{example.line}")
            raise
