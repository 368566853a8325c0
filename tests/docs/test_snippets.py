"""Runs every Python block of the documentation, in order, a file at a time.

Blocks in comments (`<!-- invisible-code-block: python`) check what the prose around them claims.
"""

import logging
from collections.abc import Generator
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.fixture(autouse=True)
def logging_as_before() -> Generator[None]:
    """Undo what a page does to the process's logging, which others look at."""
    loggers = [logging.getLogger(), logging.getLogger("asyncjobs")]
    before = [(one.level, list(one.handlers), list(one.filters)) for one in loggers]
    yield
    for one, (level, handlers, filters) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.handlers, one.filters = handlers, filters


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
