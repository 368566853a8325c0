"""Runs every Python block of the documentation, in order, one file at a time.

Blocks in comments (`<!-- invisible-code-block: python`) check claims of the text around them.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
# The store of a page's application, unless it is a server.
STORE = re.compile(r'AsyncJobs\(\s*"(memory://|sqlite:///[^"]+)"')
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
MOVABLE = [page for page in PAGES if STORE.search(page.read_text(encoding="utf-8"))]


@pytest.fixture(autouse=True)
def logging_as_before() -> Generator[None]:
    """Undo a page's changes to the process's logging, which other tests inspect."""
    loggers = [logging.getLogger(), logging.getLogger("asyncjobs")]
    before = [(one.level, list(one.handlers), list(one.filters)) for one in loggers]
    yield
    for one, (level, handlers, filters) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.handlers, one.filters = handlers, filters


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(page: Path, name: str) -> None:
    """Run the blocks of a page; `name` locates a block that fails."""
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace["__name__"] = page.stem
    for example in document.examples():
        try:
            example.evaluate()
        except BaseException as error:
            error.add_note(f"in the block at {name}:{example.line}")
            raise


def moved(text: str, new_url: Callable[[], str]) -> str:
    """Move each application of a page to another store; those that shared a file still do."""
    urls = defaultdict[str | int, str](new_url)

    def elsewhere(found: re.Match[str]) -> str:
        memory = found[1] == "memory://"
        return found[0].replace(found[1], urls[found.start() if memory else found[1]])

    return STORE.sub(elsewhere, text)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_snippet_runs(page: Path) -> None:
    run(page, name_of(page))


@pytest.mark.every_store(without="memory")
@pytest.mark.parametrize("page", MOVABLE, ids=name_of)
def test_a_page_s_application_moves_to_another_store_by_its_url_alone(
    page: Path, tmp_path: Path, new_url: Callable[[], str]
) -> None:
    text = page.read_text(encoding="utf-8")
    elsewhere = tmp_path / page.name
    elsewhere.write_text(moved(text, new_url), encoding="utf-8")
    run(elsewhere, name_of(page))
